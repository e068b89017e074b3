"""The first rows of the training data, read before training begins and trained on nevertheless."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import datasets
from datasets.fingerprint import Hasher
from torch.utils.data import IterableDataset, get_worker_info
from transformers.trainer_utils import has_length


class OpenedStream(IterableDataset):
    """A stream of which rows have been read. Its first pass begins with them and goes on where reading stopped.

    Later passes, and several worker processes, open the stream anew.

    Args:
        stream: What is iterated; it may be one that can be read only once, such as a generator.
        first: The rows that have been read, and the iterator that goes on after them.
    """

    def __init__(self, stream: Any, first: Iterator):
        self.stream, self._first = stream, first
        self.column_names = getattr(stream, "column_names", None)

    def __iter__(self) -> Iterator:
        worker = get_worker_info()
        first, self._first = self._first, None
        return iter(self.stream) if first is None or (worker is not None and worker.num_workers > 1) else first

    def __len__(self) -> int:
        """The length of the stream; TypeError if it has none."""
        return len(self.stream)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_first": None}  # an open iterator cannot be sent to a process that was not forked

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream the number of the pass, if it wants to know."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


def is_stream(dataset: Any) -> bool:
    """Whether rows come one after the other, and not by number."""
    return isinstance(dataset, IterableDataset) or not (dataset is None or has_length(dataset))


def read_first_rows(dataset: Any, count: int) -> tuple[list, Any]:
    """The first rows of the training data, and training data that still begins with them.

    Args:
        dataset: Rows by number, or a stream.
        count: The most rows to read.

    Returns:
        The rows, and `dataset`; in its place an `OpenedStream` if it is a stream that may not give them again. Streams
        of `datasets` are read anew for each pass: those that do begin with the same row are returned as they are, as
        they know more than an iterator (shards, epochs).

    Raises:
        ValueError: If there is no data set, or no row in it.
    """
    if is_stream(dataset):
        iterator = iter(dataset)
        rows = list(islice(iterator, count))
    else:
        rows = [] if dataset is None else [dataset[i] for i in range(min(count, len(dataset)))]
    if not rows:
        raise ValueError("train_dataset is missing or empty: check the path or the filter that made it.")
    if not is_stream(dataset):
        return rows, dataset
    if not isinstance(dataset, datasets.IterableDataset):
        return rows, OpenedStream(dataset, chain(rows, iterator))
    second_pass = iter(dataset)
    repeated = list(islice(second_pass, 1))
    if Hasher.hash(repeated) == Hasher.hash(rows[:1]):
        return rows, dataset
    # the second pass has read ahead, and the generator that both share would end with it
    return rows, OpenedStream(dataset, chain(rows, repeated, iterator, second_pass))
