"""Tasks, one kind a file: columns, labels, head, tokenisation, collation, metrics."""

from .augmentation import Augmentation, CombinedAugmentation
from .base import ExampleScorer, Task
from .masked_words import MaskedWords
from .multiple_choice import SWAG, MultipleChoice
from .question_answering import SQUAD, SQUAD_V2, QuestionAnswering, squad_scores
from .random_words import RandomWords
from .squad_format import read_squad
from .text_classification import GLUE, TextClassification
from .token_classification import TokenClassification, read_conll
from .unlabelled_text import UnlabelledText
from .word_vectors import WordVectors

TASKS = GLUE | {task.name: task for task in (SQUAD, SQUAD_V2, SWAG)}

__all__ = [
    "GLUE",
    "SQUAD",
    "SQUAD_V2",
    "SWAG",
    "TASKS",
    "Augmentation",
    "CombinedAugmentation",
    "ExampleScorer",
    "MaskedWords",
    "MultipleChoice",
    "QuestionAnswering",
    "RandomWords",
    "Task",
    "TextClassification",
    "TokenClassification",
    "UnlabelledText",
    "WordVectors",
    "read_conll",
    "read_squad",
    "squad_scores",
]
