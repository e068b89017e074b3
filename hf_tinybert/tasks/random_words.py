"""Random operations on words: variants of a row that need no model, for a teacher to label."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .augmentation import Augmentation


@dataclass(frozen=True)
class RandomWords(Augmentation):
    """Variants of a row with some of its words deleted, swapped, inserted or replaced (`random_variant`).

    Such a variant may mean something else than its original, so that it needs the teacher's logits and not the label.
    In a variant of a pair of texts the first, the second or both are changed, with equal probability. Words are what
    white space separates.

    Args:
        copies: The number of draws for each row, hence the largest number of its variants (default 10).
        share: The largest share of words that are changed (default 0.3).
        seed: The seed of the random choices.

    Raises:
        ValueError: If `copies` is below 1, or `share` is outside (0, 1].
    """

    copies: int = 10
    share: float = 0.3
    seed: int = 0

    def __post_init__(self):
        if self.copies < 1 or not 0 < self.share <= 1:
            raise ValueError(f"copies={self.copies}, share={self.share}: copies is at least 1, share lies in (0, 1].")

    @property
    def settings(self) -> dict[str, Any]:
        return {"method": "random_words", **asdict(self)}

    def row_variants(self, rows: Sequence[Sequence[str]], words: Sequence[str]) -> list[list[tuple[str, ...]]]:
        """Up to `copies` different variants of each row, none of them the row itself.

        Args:
            rows: The one or two texts of each row.
            words: What inserted words are drawn from.
        """
        return [self._variants(tuple(row), words) for row in rows]

    def _variants(self, row: tuple[str, ...], words: Sequence[str]) -> list[tuple[str, ...]]:
        rng = random.Random(f"{self.seed} {row}")
        sides = [{0}] if len(row) == 1 else [{0}, {1}, {0, 1}]
        variants: dict[tuple[str, ...], None] = {}
        for _ in range(self.copies):
            changed = rng.choice(sides)
            texts = (
                random_variant(text, words, self.share, rng) if side in changed else text
                for side, text in enumerate(row)
            )
            variants[tuple(texts)] = None
        variants.pop(row, None)
        return list(variants)


def random_variant(text: str, words: Sequence[str], share: float, rng: random.Random) -> str:
    """A text after one to `share`·n random operations on its n words.

    An operation takes a random word and, with equal probability, deletes it, swaps it with the next one, inserts a
    word of `words` before it, or replaces it by one. The only word of a text is not deleted.

    Args:
        text: The text; one without words stays as it is.
        words: What new words are drawn from.
        share: The largest number of operations, as a share of the words.
        rng: The source of the random choices.
    """
    changed = text.split()
    if not changed or not words:
        return text
    for _ in range(rng.randint(1, max(1, round(share * len(changed))))):
        place = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0 if len(changed) > 1:
                del changed[place]
            case 1 if place + 1 < len(changed):
                changed[place], changed[place + 1] = changed[place + 1], changed[place]
            case 2:
                changed.insert(place, rng.choice(words))
            case 3:
                changed[place] = rng.choice(words)
    return " ".join(changed)
