"""The default recipe of a task distillation: its phases, and how many variants and epochs so many rows are given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from ..tasks import RandomWords

MOST_COPIES = 10
DISTILLED_ROWS = 100_000  # rows with their variants
LAYER_READS = 340_000  # rows that the student reads in the intermediate phase, over all epochs
DISTILLED_READS = 200_000  # rows that the student reads in the prediction phase, over all epochs
LABELLED_READS = 16_000  # rows that it reads in the labels phase, over all epochs
TEACHER_READS = 6_000  # rows that a teacher reads in fine-tuning, over all epochs
CLASS_READS = 1_000  # labelled rows that either of these reads for each class, if that is more
TEACHER_RATE, BASE_WIDTH = 5e-5, 768  # the learning rate of the fine-tuning of a teacher of BERT-base's width
MOST_LAYER_EPOCHS, MOST_EPOCHS, FEWEST_LABEL_EPOCHS = 50, 10, 3
NARROW = 0.5  # the share of the teacher's width below which a student has an intermediate phase
SHORT_TOKENS = 40  # a longer row counts as several


@dataclass(frozen=True)
class Recipe:
    """What depends on rows and models.

    Args:
        copies: The number of variants of a row.
        intermediate_epochs: The epochs of the intermediate phase.
        prediction_epochs: The epochs of the prediction phase.
        labels_epochs: The epochs of the labels phase.
        teacher_epochs: The epochs of the fine-tuning of a teacher.
        learns_layers: Whether there is an intermediate phase.
        teacher_rate: The learning rate of the fine-tuning of a teacher.
    """

    copies: int
    intermediate_epochs: int
    prediction_epochs: int
    labels_epochs: int
    teacher_epochs: int
    learns_layers: bool = False
    teacher_rate: float = TEACHER_RATE

    @classmethod
    def for_rows(
        cls, labelled: int, transfer: int, copies: int | None = None, tokens: float = SHORT_TOKENS, classes: int = 0
    ) -> "Recipe":
        """The recipe for so many rows.

        A row has up to 10 variants, fewer if that would be more than 100,000 rows. The intermediate phase reads about
        340,000 rows, without variants, in 1 to 50 epochs, and the prediction phase about 200,000, in 1 to 10. The
        labels phase reads about 16,000, in 3 to 10 epochs, and the fine-tuning of a teacher about 6,000, in as many;
        both read at least 1,000 for each class. If rows have more than 40 tokens on average, all these numbers are
        smaller in proportion, so that the time of a run does not grow with the length of its rows.

        Args:
            labelled: The number of rows with labels.
            transfer: The number of rows without.
            copies: The number of variants of a row; default None chooses it.
            tokens: The mean number of tokens of a row.
            classes: The number of classes; 0 without any.
        """
        weight = max(1.0, tokens / SHORT_TOKENS)
        labelled, rows = labelled * weight, max(1, labelled + transfer) * weight
        if copies is None:
            copies = max(0, min(MOST_COPIES, int(DISTILLED_ROWS // rows) - 1))
        return cls(
            copies,
            _epochs(LAYER_READS, rows, MOST_LAYER_EPOCHS),
            _epochs(DISTILLED_READS, rows * (1 + copies), MOST_EPOCHS),
            _label_epochs(max(LABELLED_READS, CLASS_READS * classes), labelled),
            _label_epochs(max(TEACHER_READS, CLASS_READS * classes), labelled),
        )

    def augmentation(self, seed: int) -> RandomWords | None:
        """What makes the variants; None without any."""
        return RandomWords(self.copies, seed=seed) if self.copies else None


def fine_tuning_rate(teachers: Sequence[PreTrainedConfig]) -> float:
    """The learning rate that teachers are fine-tuned at, 5e-5 · 768 / width of the widest.

    Args:
        teachers: The configurations of the teachers.
    """
    return TEACHER_RATE * BASE_WIDTH / max(teacher.hidden_size for teacher in teachers)


def is_narrow(teacher: PreTrainedConfig, hidden_size: int) -> bool:
    """Whether a student is less than half as wide as its teacher, so that it learns the teacher's layers first.

    Args:
        teacher: The configuration of the teacher.
        hidden_size: The student's width.
    """
    return hidden_size < NARROW * teacher.hidden_size


def _epochs(reads: int, rows: float, most: int) -> int:
    return max(1, min(most, round(reads / rows)))


def _label_epochs(reads: int, labelled: float) -> int:
    """The epochs in which so many rows with labels are read, 3 to 10; 0 without any."""
    return max(FEWEST_LABEL_EPOCHS, min(MOST_EPOCHS, math.ceil(reads / labelled))) if labelled else 0
