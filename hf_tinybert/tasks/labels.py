"""Labels as ids: columns of lists, and the order of a model's prediction head."""

import re
from collections.abc import Collection, Sequence

import datasets

MOST_GAPS = 1000
NUMBERS = {"False": 0, "True": 1}


def as_class_label_lists(data: datasets.DatasetDict, column: str) -> datasets.DatasetDict:
    """A column of lists of strings or integers as lists of ClassLabels.

    Args:
        data: The splits.
        column: The name of the column. The classes are those of `train`: sorted strings, or `LABEL_0` to the largest
            integer. Lists of ClassLabels stay.

    Raises:
        ValueError: If the lists hold something else, or nothing, or if a split has a string that `train` has not.
    """
    feature = data["train"].features[column]
    inner = feature.feature
    if isinstance(inner, datasets.ClassLabel):
        return data
    dtype = str(getattr(inner, "dtype", inner))
    if not isinstance(inner, datasets.Value) or not ("string" in dtype or "int" in dtype):
        raise ValueError(f"'{column}' holds lists of {dtype}: give lists of strings, integers or ClassLabels.")
    values = {split: {value for row in rows[column][:] for value in row or ()} for split, rows in data.items()}
    if not values["train"] or None in values["train"]:
        raise ValueError(f"'{column}' has empty lists alone, or values that are missing, in the split 'train'.")
    if "int" in dtype:
        names = numbered_labels(values["train"], column)
    else:
        names = sorted(values["train"])
        for split, labels in values.items():
            if unknown := sorted(labels - set(names), key=str):
                raise ValueError(f"Split '{split}' has the labels {unknown} in '{column}', which train has not.")
    plain = datasets.Value("string" if "string" in dtype else "int64")
    # shuffled rows are slices of one row each, which a cast takes minutes for
    data = data.flatten_indices().cast_column(column, datasets.List(plain))
    return data.cast_column(column, datasets.List(datasets.ClassLabel(names=names)))


def numbered_labels(labels: Collection[int], column: str) -> list[str]:
    """`LABEL_0` to the largest integer.

    Args:
        labels: The integers.
        column: What messages call their column.

    Raises:
        ValueError: If one is negative, or if there are so many gaps that the integers are no numbers of classes.
    """
    if min(labels) < 0:
        raise ValueError(f"'{column}' has the label {min(labels)}: number the classes from 0.")
    if max(labels) > 10 * len(labels) + MOST_GAPS:
        raise ValueError(
            f"'{column}' has {len(labels)} different integers up to {max(labels)}: number the classes from 0 without "
            "gaps, or give strings."
        )
    return [f"LABEL_{index}" for index in range(1 + max(labels))]


def align_labels(data: datasets.DatasetDict, column: str, labels: Sequence[str]) -> datasets.DatasetDict:
    """A column of ClassLabels, or of lists of them, with the ids that a model's prediction head has.

    Labels are matched by name, apart from case; failing that, labels that are numbers (`LABEL_1`, `1`, `True`) by
    number. Names beside a head whose own labels are numbers keep their order.

    Args:
        data: The splits.
        column: The name of the column.
        labels: The labels of the head in the order of their ids.

    Raises:
        ValueError: If the column has a label that the head has not.
    """
    feature = data["train"].features[column]
    lists = isinstance(feature, datasets.List)
    names = (feature.feature if lists else feature).names
    if list(names) == list(labels):
        return data
    used = set()
    for rows in data.values():
        used |= {value for row in rows[column][:] for value in row} if lists else set(rows.unique(column))
    used &= set(range(len(names)))
    ids = _ids({names[index] for index in used}, labels)
    if ids is None:
        if len(names) == len(labels) and all(_number(label) == index for index, label in enumerate(labels)):
            return data
        raise ValueError(
            f"'{column}' has the labels {[names[index] for index in sorted(used)]}, the model's prediction head has "
            f"{list(labels)}: give the rows the labels of the head, or pass a model without a prediction head."
        )
    changed = {index: ids[names[index]] for index in used}

    def align(batch):
        if lists:
            return {column: [[changed.get(value, value) for value in row] for row in batch[column]]}
        return {column: [changed.get(value, value) for value in batch[column]]}

    aligned = datasets.ClassLabel(names=list(labels))
    features = datasets.Features(data["train"].features | {column: datasets.List(aligned) if lists else aligned})
    return data.map(align, batched=True, features=features, desc="Aligning labels")


def _ids(names: Collection[str], labels: Sequence[str]) -> dict[str, int] | None:
    """The id of each name among `labels`; None if one has none."""
    by_name = {label.lower(): index for index, label in enumerate(labels)}
    for ids in ({name: by_name.get(name.lower()) for name in names}, {name: _number(name) for name in names}):
        if all(index is not None and index < len(labels) for index in ids.values()):
            return ids
    return None


def _number(name: str) -> int | None:
    """The number that a label is, None if it is a name."""
    match = re.fullmatch(r"(?:LABEL_)?(\d+)", name)
    return int(match[1]) if match else NUMBERS.get(name)
