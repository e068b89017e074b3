"""One adapter for each family of encoders; a new family is a subclass of `Architecture`."""

from .albert import Albert
from .base import Architecture, Block, architecture_of, model_types
from .bert import Bert, BertLike, Electra, Roberta
from .deberta import DebertaV2
from .distilbert import DistilBert

__all__ = [
    "Albert",
    "Architecture",
    "Bert",
    "BertLike",
    "Block",
    "DebertaV2",
    "DistilBert",
    "Electra",
    "Roberta",
    "architecture_of",
    "model_types",
]
