"""Word vectors such as GloVe, for the words of which `MaskedWords` finds the nearest ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch


@dataclass
class WordVectors:
    """Vectors of words.

    Attributes:
        words: V words.
        vectors: (V, D), in the order of the words.

    Raises:
        ValueError: If there are not as many vectors as words.
    """

    words: list[str]
    vectors: np.ndarray

    def __post_init__(self):
        if len(self.words) != len(self.vectors):
            raise ValueError(f"There are {len(self.words)} words and {len(self.vectors)} vectors: give one for each.")
        vectors = torch.from_numpy(np.array(self.vectors, dtype=np.float32))
        self._unit = torch.nn.functional.normalize(vectors, dim=-1)
        self._index = {word: index for index, word in reversed(list(enumerate(self.words)))}

    @classmethod
    def load(cls, path: str | Path, words: str | Path | None = None, limit: int = 100_000) -> "WordVectors":
        """Read vectors from a file.

        Args:
            path: A text file in GloVe's format, or an .npy file of vectors alone.
            words: The words of an .npy file in their order: a text file with one a line, or a parquet file, whose
                first column holds them.
            limit: The number of vectors to read, from the beginning; default 100,000, as in TinyBERT's code.

        Raises:
            ValueError: For an .npy file without `words`.
        """
        if Path(path).suffix != ".npy":
            with open(path, encoding="utf8") as lines:
                rows = [line.rstrip("\n").split(" ") for _, line in zip(range(limit), lines, strict=False)]
            return cls([row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float32))
        if words is None:
            raise ValueError(f"{path} holds vectors only: pass words, the file that has their words in order.")
        if Path(words).suffix == ".parquet":
            table = datasets.Dataset.from_parquet(str(words))
            names = table[table.column_names[0]][:limit]
        else:
            names = Path(words).read_text(encoding="utf8").split("\n")[:limit]
        return cls(list(names), np.load(path, mmap_mode="r")[:limit])

    def nearest(self, words: Iterable[str], k: int) -> dict[str, list[str]]:
        """The `k` other words with the largest cosine similarity to each word; words without a vector are left out.

        Args:
            words: The words to look up.
            k: The number of neighbours.

        Returns:
            {word: its neighbours, nearest first}.
        """
        known = [word for word in words if word in self._index]
        if not known:
            return {}
        rows = self._unit[[self._index[word] for word in known]]
        k_and_itself = min(k + 1, len(self.words))
        indices = torch.cat([(part @ self._unit.T).topk(k_and_itself).indices for part in rows.split(512)]).tolist()
        neighbours = [[self.words[index] for index in row] for row in indices]
        return {
            word: [name for name in names if name != word][:k] for word, names in zip(known, neighbours, strict=True)
        }
