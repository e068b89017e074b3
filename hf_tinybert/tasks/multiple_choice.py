"""Multiple choice as in SWAG: a context and several endings, of which the model scores each and one is right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
from transformers import (
    AutoModelForMultipleChoice,
    DataCollatorForMultipleChoice,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from .base import Task, select_columns
from .metrics import Accuracy


@dataclass(frozen=True)
class MultipleChoice(Task):
    """A context and endings; the model reads the context beside each ending.

    - `text`: the column of the context and, if any, that of what every ending goes on from (a question).
    - `endings`: columns of one ending each, or one column of lists of them; `label`: that of the right one's index.
    - `max_length` (128 tokens) is of a context with one ending; what is longer is cut.
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
        """The task of any data set with a `train` and a `validation` split, and its rows in that task's columns.

        Raises ValueError for a split or a column it lacks, and for rows that `check` refuses.
        """
        data = select_columns(data, ("train", validation), (*text, *endings, label))
        columns = {"endings": tuple(endings), "label": label}
        task = cls("task", tuple(text), validation=(validation,), max_length=max_length, **columns)
        task.check(data)
        return task, data

    @property
    def columns(self) -> tuple[str, ...]:
        """What rows must have."""
        return (*self.text, *self.endings, self.label)

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`; also raises ValueError for other numbers of endings in some rows, or labels that are none."""
        super().check(data)
        for split, rows in data.items():
            counts, where = set(map(len, self._endings(rows[:]))), f"{self.name}/{split}"
            if len(counts) > 1:
                raise ValueError(f"{where} has rows of {sorted(counts)} endings: all need the same number.")
            if unknown := set(rows.unique(self.label)) - set(range(*counts)):
                count, unknown = max(counts), sorted(unknown, key=str)
                raise ValueError(
                    f"{where} has the labels {unknown}: give the number of the right ending, 0 to {count - 1}."
                )

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens, a list of the choices' in each row, and `labels`; cut to `max_length`, unpadded."""

        def encode(batch):
            endings = self._endings(batch)
            context, *start = (batch[name] for name in self.text)
            first = [text for text, choices in zip(context, endings, strict=True) for _ in choices]
            starts = start[0] if start else [""] * len(endings)
            second = [f"{text} {end}".strip() for text, ends in zip(starts, endings, strict=True) for end in ends]
            encoded = tokenizer(first, second, truncation=True, max_length=self.max_length)
            count = len(endings[0])
            nested = {name: [of[i : i + count] for i in range(0, len(of), count)] for name, of in encoded.items()}
            return {**nested, "labels": batch[self.label]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Any]]:
        """Pads all choices of all rows alike: (B, choices, S)."""
        return DataCollatorForMultipleChoice(tokenizer)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy, also as `score`."""
        found = {"predictions": prediction.predictions.argmax(-1), "references": prediction.label_ids}
        return self.scored(Accuracy(keep_in_memory=True).compute(**found))

    def _endings(self, batch: dict[str, list]) -> list[Sequence[str]]:
        if len(self.endings) == 1:
            return batch[self.endings[0]]
        return list(zip(*(batch[name] for name in self.endings), strict=True))


SWAG = MultipleChoice(
    "swag",
    ("sent1", "sent2"),
    endings=("ending0", "ending1", "ending2", "ending3"),
    source="allenai/swag",
    config="regular",
)
