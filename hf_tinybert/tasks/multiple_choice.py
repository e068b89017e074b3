"""Multiple choice as in SWAG: a context and several endings. The model scores each ending; one is right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import pyarrow as pa
from transformers import (
    AutoModelForMultipleChoice,
    DataCollatorForMultipleChoice,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from .base import Task, select_columns
from .column_checks import check_column, check_texts
from .metrics import Accuracy


@dataclass(frozen=True)
class MultipleChoice(Task):
    """A context and several endings; the model reads the context once with each ending.

    Attributes:
        text: The column of the context and, if there is one, the column of the text that every ending continues (in
            SWAG the beginning of a sentence).
        endings: Columns of one ending each, or one column of lists of endings.
        label: The column of the index of the right ending.
        max_length: Tokens of a context with one ending, at most (default 128); longer ones are truncated.
    """

    auto_class: ClassVar[type] = AutoModelForMultipleChoice
    endings: tuple[str, ...] = ("choices",)
    label: str = "label"
    max_length: int = 128

    @classmethod
    def from_dataset(
        cls,
        data: datasets.DatasetDict,
        text: Sequence[str],
        endings: Sequence[str] = ("choices",),
        label: str = "label",
        validation: str = "validation",
        max_length: int = 128,
    ) -> tuple["MultipleChoice", datasets.DatasetDict]:
        """The task of any data set.

        Args:
            data: Splits `train` and `validation`.
            text: The column of the context and, if there is one, that of the text that every ending continues.
            endings: Columns of one ending each, or one column of lists of endings.
            label: The column of the index of the right ending.
            validation: The name of the validation split.
            max_length: Tokens of a context with one ending, at most.

        Returns:
            The task and its rows, in the columns of the task.

        Raises:
            ValueError: If a split or a column is missing, or for rows that `check` refuses.
        """
        data = select_columns(data, ("train", validation), (*text, *endings, label))
        task = cls(
            "task",
            tuple(text),
            validation=(validation,),
            endings=tuple(endings),
            label=label,
            max_length=max_length,
        )
        task.check(data)
        return task, data

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return (*self.text, *self.endings, self.label)

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`, which here also raises ValueError if numbers of endings differ or a label is not an index."""
        super().check(data)
        for split, rows in data.items():
            where = f"{self.name}/{split}"
            check_texts(rows, self.endings, where, levels=int(len(self.endings) == 1))
            check_column(rows, self.label, where, _is_no_float, "the number of the right ending")
            counts = {len(endings) for endings in self._endings(rows[:])}
            if len(counts) > 1:
                raise ValueError(f"{where} has rows of {sorted(counts)} endings: all need the same number.")
            count = max(counts)
            if count == 0:
                raise ValueError(
                    f"{where} has rows without endings in {[*self.endings]}: give the endings to choose from."
                )
            if unknown := sorted(set(rows.unique(self.label)) - set(range(count)), key=str):
                raise ValueError(
                    f"{where} has the labels {unknown}: give the number of the right ending, 0 to {count - 1}."
                )

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens, a list for each choice of a row, and `labels`; truncated to `max_length`, unpadded."""

        def encode(batch):
            endings = self._endings(batch)
            context, *start = (batch[name] for name in self.text)
            first = [text for text, choices in zip(context, endings, strict=True) for _ in choices]
            starts = start[0] if start else [""] * len(endings)
            second = [f"{text} {end}".strip() for text, ends in zip(starts, endings, strict=True) for end in ends]
            encoded = tokenizer(first, second, truncation=True, max_length=self.max_length)
            count = len(endings[0])
            nested = {
                name: [values[i : i + count] for i in range(0, len(values), count)] for name, values in encoded.items()
            }
            return {**nested, "labels": batch[self.label]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Any]]:
        """The function that pads all choices of all rows to the same length: (B, choices, S)."""
        return DataCollatorForMultipleChoice(tokenizer)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Accuracy."""
        return (Accuracy.name,)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy, also as `score`."""
        return self.scored(Accuracy.scores(prediction.predictions.argmax(-1), prediction.label_ids))

    def _endings(self, batch: dict[str, list]) -> list[Sequence[str]]:
        if len(self.endings) == 1:
            return batch[self.endings[0]]
        return list(zip(*(batch[name] for name in self.endings), strict=True))


def _is_no_float(dtype: pa.DataType) -> bool:
    return not pa.types.is_floating(dtype)


SWAG = MultipleChoice(
    "swag",
    ("sent1", "sent2"),
    endings=("ending0", "ending1", "ending2", "ending3"),
    source="allenai/swag",
    config="regular",
)
"""SWAG: which of four endings continues a sentence."""
