"""Finding the subclass that fits: a new kind of head or architecture is one new class, without registration."""

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def subclasses(base: type[T]) -> Iterator[type[T]]:
    """Every subclass of `base`, direct ones first, each generation in the order of definition."""
    generation = base.__subclasses__()
    while generation:
        yield from generation
        generation = [child for parent in generation for child in parent.__subclasses__()]


def newest_match(base: type[T], matches: Callable[[type[T]], bool]) -> type[T] | None:
    """The subclass of `base` that matches: the most derived one, then the one defined last; None if there is none."""
    return next((kind for kind in reversed([*subclasses(base)]) if matches(kind)), None)
