"""`datasets.map` for work that is dear: in shards, shared between processes, kept on disk shard by shard."""

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
    **options: Any,
) -> datasets.Dataset:
    """`dataset.map(function, batched=True)`, shards of `shard_size` rows one by one, the processes taking turns.

    `key` stands for `function` and all that it depends on: with the fingerprint of the rows it names the cache file,
    so that the same call again, also after it was killed, or in another process, computes nothing twice.
    """
    state, count = PartialState(), max(1, -(-len(dataset) // shard_size))

    def shard(index: int) -> datasets.Dataset:
        rows = dataset.shard(count, index, contiguous=True) if count > 1 else dataset
        name = hashlib.sha256(f"{rows._fingerprint} {key}".encode()).hexdigest()[:16]
        what = desc if count == 1 else f"{desc} {index + 1}/{count}"
        named = {"new_fingerprint": name, "desc": what}
        return rows.map(function, batched=True, **named, **options)

    own = {index: shard(index) for index in range(state.process_index, count, state.num_processes)}
    state.wait_for_everyone()  # then the others' are on disk
    return datasets.concatenate_datasets([own[i] if i in own else shard(i) for i in range(count)])
