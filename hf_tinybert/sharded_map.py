"""`datasets.map` for expensive functions: in shards, shared between processes, cached on disk shard by shard."""

import hashlib
from collections.abc import Callable
from typing import Any

import datasets
from accelerate import PartialState


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
    interrupted or in another process, therefore computes nothing twice.

    Args:
        dataset: The rows.
        function: Batch → batch, as `datasets.Dataset.map` takes it.
        key: Names the function and everything that its result depends on beside the rows.
        shard_size: Rows a shard, default 10,000.
        desc: The text beside the progress bar.
        map_arguments: Further arguments of `datasets.Dataset.map`, such as `batch_size` and `features`.

    Returns:
        The mapped rows, in their order.
    """
    state, count = PartialState(), max(1, -(-len(dataset) // shard_size))

    def mapped_shard(index: int) -> datasets.Dataset:
        rows = dataset.shard(count, index, contiguous=True) if count > 1 else dataset
        name = hashlib.sha256(f"{rows._fingerprint} {key}".encode()).hexdigest()[:16]
        progress = desc if count == 1 else f"{desc} {index + 1}/{count}"
        return rows.map(function, batched=True, new_fingerprint=name, desc=progress, **map_arguments)

    shards = {index: mapped_shard(index) for index in range(state.process_index, count, state.num_processes)}
    state.wait_for_everyone()  # Then the shards of the other processes are on disk.
    return datasets.concatenate_datasets([shards[i] if i in shards else mapped_shard(i) for i in range(count)])
