"""Data augmentation: variants of the rows of a data set, made by changing words of their texts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any

import datasets

from ..sharded_map import sharded_map

MOST_ROWS = 100_000  # that new words are drawn from


class Augmentation(ABC):
    """Makes variants of rows. A variant depends on its row, the settings and the texts of the data set only.

    Call the object with a data set and the names of its one or two columns of text. Each variant has the labels of its
    original. A loss that reads the teacher's logits takes those of the variant.

    Attributes:
        copies: The largest number of variants of a row (`MaskedWords`: of a text).
        seed: The seed of the random choices.
    """

    copies: int
    seed: int

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the variants depend on, besides the rows; it names their cache."""

    @property
    def record(self) -> dict[str, Any]:
        """What the lineage of a student keeps of the augmentation."""
        return self.settings

    @abstractmethod
    def row_variants(self, rows: Sequence[Sequence[str]], words: Sequence[str]) -> list[list[tuple[str, ...]]]:
        """Different variants of each row, none of them the row itself.

        Args:
            rows: The one or two texts of each row.
            words: Words of the data set, each as often as it occurs (`words_of`).
        """

    def __call__(self, dataset: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
        """Each row, followed by its variants.

        The result is cached on disk, shard by shard, if the data set is on disk.

        Args:
            dataset: The rows.
            columns: The one or two columns of text.

        Raises:
            ValueError: If the data set has no such column.
        """
        missing = [name for name in columns if name not in dataset.column_names]
        if missing:
            raise ValueError(f"The data set has no column {missing}, only {dataset.column_names}.")
        words = words_of(dataset, columns)

        def augment(batch: dict[str, list]) -> dict[str, list]:
            texts = list(zip(*(batch[column] for column in columns), strict=True))
            rows = []
            for index, variants in enumerate(self.row_variants(texts, words)):
                row = {name: values[index] for name, values in batch.items()}
                rows.append(row)
                rows += [row | dict(zip(columns, variant, strict=True)) for variant in variants]
            return {name: [row[name] for row in rows] for name in batch}

        key = f"augmentation {self.settings} {list(columns)}"
        # Each row becomes up to `copies` + 1 rows: small batches keep the memory low.
        return sharded_map(dataset, augment, key, batch_size=500, features=dataset.features, desc="Augmenting")


class CombinedAugmentation(Augmentation):
    """The variants of several augmentations, each variant once.

    Args:
        parts: The augmentations.
    """

    def __init__(self, *parts: Augmentation):
        self.parts, self.copies, self.seed = parts, sum(part.copies for part in parts), parts[0].seed

    @property
    def settings(self) -> dict[str, Any]:
        return {"combined": [part.settings for part in self.parts]}

    @property
    def record(self) -> dict[str, Any]:
        return {"combined": [part.record for part in self.parts]}

    def row_variants(self, rows: Sequence[Sequence[str]], words: Sequence[str]) -> list[list[tuple[str, ...]]]:
        """The different variants of each row that the parts make."""
        by_part = [part.row_variants(rows, words) for part in self.parts]
        return [list(dict.fromkeys(chain.from_iterable(variants))) for variants in zip(*by_part, strict=True)]


def words_of(dataset: datasets.Dataset, columns: Sequence[str]) -> list[str]:
    """The words of a data set, each as often as it occurs, what white space separates being a word.

    Args:
        dataset: The rows; of more than `MOST_ROWS`, so many of them, evenly spread.
        columns: The columns of text.
    """
    rows = dataset.select(range(0, len(dataset), -(-len(dataset) // MOST_ROWS) or 1)).select_columns([*columns])
    return [word for row in rows for column in columns for word in row[column].split()]
