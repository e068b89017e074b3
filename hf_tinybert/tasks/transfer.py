"""Transfer data: rows without labels, which a teacher labels, or rows with the soft labels of another model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import datasets
import numpy as np

from ..teachers.teacher import TEACHER_LOGITS
from .text_classification import TextClassification

TEACHER_PROBABILITIES = "teacher_probabilities"
LEAST_PROBABILITY = 1e-6  # a probability of 0, whose logit is infinite, counts as this one


@dataclass(frozen=True)
class TransferData:
    """The transfer rows of a task, each text once.

    Args:
        rows: The rows, with the task's columns of text and, if another model has labelled them, `teacher_logits`.
        empty: The number of rows that were removed because a text is missing or blank.
        duplicates: The number of rows that were removed because they are in the transfer data or in the training split
            already.
        validation: The number of rows that were removed because they are in a validation split.
    """

    rows: datasets.Dataset
    empty: int = 0
    duplicates: int = 0
    validation: int = 0

    @classmethod
    def build(
        cls, rows: datasets.Dataset, task: TextClassification, data: datasets.DatasetDict | None = None
    ) -> "TransferData":
        """The transfer data in `rows`.

        Two texts count as equal if they differ in white space and capitals alone.

        Args:
            rows: Rows with the task's columns of text. They may have soft labels in one further column:
                `teacher_logits`, a list of numbers in the order of the task's labels, or `teacher_probabilities`, such
                a list or a dictionary of label → probability. Other columns are ignored.
            task: The task.
            data: Its splits, whose texts are removed from the rows; default none.

        Raises:
            ValueError: If a column is missing, if soft labels do not fit the task, or if no row is left.
        """
        if missing := [name for name in task.text if name not in rows.column_names]:
            raise ValueError(
                f"The transfer data has no column {missing}, only {rows.column_names}: name its columns of text as "
                f"the task does, {[*task.text]}."
            )
        labelled = {_key(texts): split for split in data or {} for texts in _texts(data[split], task.text)}
        kept, seen, empty, duplicates, validation = [], set(), 0, 0, 0
        for index, texts in enumerate(_texts(rows, task.text)):
            key = _key(texts)
            if not all(isinstance(text, str) and text.strip() for text in texts):
                empty += 1
            elif labelled.get(key, "train") != "train":
                validation += 1
            elif key in seen or key in labelled:
                duplicates += 1
            else:
                seen.add(key)
                kept.append(index)
        if not kept:
            raise ValueError(f"None of the {len(rows)} transfer rows is left: {empty} are empty, the others known.")
        soft = [name for name in (TEACHER_LOGITS, TEACHER_PROBABILITIES) if name in rows.column_names][:1]
        rows = rows.select(kept).select_columns([*task.text, *soft])
        return cls(_with_logits(rows, task, kept) if soft else rows, empty, duplicates, validation)

    @property
    def has_logits(self) -> bool:
        """Whether another model has labelled the rows."""
        return TEACHER_LOGITS in self.rows.column_names

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows, and of those that were removed."""
        removed = {"empty": self.empty, "duplicates": self.duplicates, "validation": self.validation}
        return {"rows": len(self.rows), **removed}

    def __str__(self) -> str:
        removed = {"blank": self.empty, "duplicates": self.duplicates, "of a validation split": self.validation}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in removed.items() if count)
        return f"{len(self.rows):,} transfer rows" + (f" (removed: {reasons})" if reasons else "")


def soft_label_names(rows: datasets.Dataset) -> tuple[str, ...] | None:
    """The labels of rows whose `teacher_probabilities` are mappings from label to probability; None for other rows."""
    feature = rows.features.get(TEACHER_PROBABILITIES)
    return tuple(feature) if isinstance(feature, dict) else None


def _texts(rows: datasets.Dataset, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    for batch in rows.select_columns([*columns]).iter(batch_size=10_000):
        yield from zip(*(batch[column] for column in columns), strict=True)


def _key(texts: Sequence[str | None]) -> bytes:
    """8 bytes that two rows share if their texts are equal."""
    return blake2b("\0".join(" ".join((t or "").split()) for t in texts).casefold().encode(), digest_size=8).digest()


def _with_logits(rows: datasets.Dataset, task: TextClassification, numbers: Sequence[int]) -> datasets.Dataset:
    """Rows with soft labels as `teacher_logits`, (C,) a row in float32; `numbers` are those of the user's rows."""
    (column,) = set(rows.column_names) - set(task.text)
    size = len(task.labels) or 1
    if column == TEACHER_PROBABILITIES and task.regression:
        raise ValueError(f"A regression has no {TEACHER_PROBABILITIES}: give the scores as {TEACHER_LOGITS}.")

    def convert(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        return {TEACHER_LOGITS: [logits(v, numbers[i]) for v, i in zip(batch[column], indices, strict=True)]}

    def logits(value, number: int) -> list[float]:
        if isinstance(value, dict):
            value = [value.get(name) for name in task.labels]
        try:
            values = np.atleast_1d(np.asarray(value, dtype="float64"))
        except (TypeError, ValueError):
            values = np.array([np.nan])
        if values.shape != (size,) or not np.isfinite(values).all():
            raise ValueError(
                f"Row {number} of the transfer data has {column}={value!r}: give {size} numbers, in the order of "
                f"{[*task.labels] or ['the score']}."
            )
        if column == TEACHER_LOGITS:
            return values.tolist()
        if (values < 0).any() or (values > 1).any():
            raise ValueError(f"Row {number} of the transfer data has {column}={value}: they lie between 0 and 1.")
        values = np.clip(values, LEAST_PROBABILITY, 1)
        if task.multi_label:
            return (np.log(values) - np.log(np.clip(1 - values, LEAST_PROBABILITY, 1))).tolist()
        return np.log(values).tolist()

    features = datasets.Features(
        {name: rows.features[name] for name in task.text} | {TEACHER_LOGITS: datasets.List(datasets.Value("float32"))}
    )
    return rows.map(
        convert,
        batched=True,
        with_indices=True,
        features=features,
        remove_columns=[column] if column == TEACHER_PROBABILITIES else [],
        desc="Soft labels",
    )
