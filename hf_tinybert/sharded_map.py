"""`datasets.map` for expensive functions: in shards, shared between processes, cached on disk shard by shard."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from accelerate import PartialState
from tqdm.auto import tqdm

from .sound_caches import cache_file, remove_corrupt
from .whole_files import disk_errors


def sharded_map(
    dataset: datasets.Dataset,
    function: Callable[[dict[str, list]], dict[str, list]],
    key: str,
    shard_size: int = 10_000,
    desc: str | None = None,
    **map_arguments: Any,
) -> datasets.Dataset:
    """`dataset.map(function, batched=True)`, one shard at a time, the processes taking turns.

    The cache file of a shard is named by the fingerprint of its rows and by `key`. The same call again, after it was
    interrupted or in another process, therefore computes nothing twice. A file that has become corrupt is made again.

    Args:
        dataset: The rows.
        function: Batch → batch, as `datasets.Dataset.map` takes it.
        key: Names the function and everything that its result depends on beside the rows.
        shard_size: Rows a shard, default 10,000.
        desc: The text beside the progress bar.
        map_arguments: Further arguments of `datasets.Dataset.map`, such as `batch_size` and `features`.

    Returns:
        The mapped rows, in their order.

    Raises:
        DiskError: If the disk of the cache is full or cannot be written to.
    """
    state, count = PartialState(), max(1, -(-len(dataset) // shard_size))
    bar = tqdm(total=len(dataset), desc=desc, unit="row", disable=not state.is_main_process)

    def counted(batch: dict[str, list]) -> dict[str, list]:
        result = function(batch)
        bar.update(len(next(iter(batch.values()))))
        return result

    def mapped_shard(index: int) -> datasets.Dataset:
        rows = dataset.shard(count, index, contiguous=True) if count > 1 else dataset
        name = hashlib.sha256(f"{rows._fingerprint} {key}".encode()).hexdigest()[:16]
        cached = cache_file(rows, name)
        remove_corrupt(cached)
        with _without_bars(), disk_errors(cached or "memory"):
            return rows.map(counted, batched=True, new_fingerprint=name, **map_arguments)

    with bar:
        shards = {index: mapped_shard(index) for index in range(state.process_index, count, state.num_processes)}
        state.wait_for_everyone()  # Then the shards of the other processes are on disk.
        mapped = [shards[i] if i in shards else mapped_shard(i) for i in range(count)]
        bar.update(len(dataset) - bar.n)  # with the rows that were on disk
    return datasets.concatenate_datasets(mapped)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The bar of `datasets` is left out: there would be one for each shard."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
