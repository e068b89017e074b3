"""The teacher's hidden states, queries and keys of a data set on disk: one bf16 record a token, memory-mapped."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from .activations import Activations, QueryKey

logger = logging.get_logger(__name__)


class ActivationCache:
    """A folder of `cache_activations`, read by row numbers, page by page as they are asked for."""

    def __init__(self, folder: Path):
        self.layout = json.loads((folder / "layout.json").read_text())
        self.offsets = np.load(folder / "offsets.npy")
        shape = int(self.offsets[-1]), sum(part["width"] for part in self.layout)
        self.records = np.memmap(folder / "records.bf16", np.int16, "r", shape=shape)

    def read(self, rows: Tensor, attention_mask: Tensor) -> Activations:
        """Activations of the data set's `rows` (B,), laid out as `attention_mask` (B, S) says; padding is arbitrary.

        Raises ValueError where the masks count other tokens than were kept.
        """
        chosen = [self.records[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()]
        lengths = torch.tensor([len(record) for record in chosen], device=attention_mask.device)
        real = attention_mask.to(torch.int64)
        if not torch.equal(real.sum(1), lengths):
            raise ValueError(_CHANGED)
        records = torch.from_numpy(np.concatenate(chosen)).view(torch.bfloat16).to(attention_mask.device)
        position = real.cumsum(1) - 1 + (lengths.cumsum(0) - lengths)[:, None]
        parts = records[position.clamp(min=0)].split([part["width"] for part in self.layout], -1)
        depth = 1 + max(part["layer"] for part in self.layout)
        hidden_states, attentions = [None] * depth, [None] * (depth - 1)
        for part, values in zip(self.layout, parts, strict=True):
            if part["heads"]:
                query, key, *value = values.unflatten(-1, (part["vectors"], part["heads"], -1)).permute(2, 0, 3, 1, 4)
                attentions[part["layer"] - 1] = QueryKey(query, key, part["scaling"], *value)
            else:
                hidden_states[part["layer"]] = values
        return Activations(attention_mask, None, tuple(hidden_states), {}, tuple(attentions))


_CHANGED = (
    "The batch is not what the kept teacher activations were made from: the data collator or the data set changes "
    "tokens from epoch to epoch. Set teacher_cache_gb=0, so that the teacher runs live."
)


def cache_activations(
    forward: Callable[[Mapping[str, Any]], Activations],
    dataset: datasets.Dataset,
    collate: Callable[[list[dict]], Mapping[str, Any]],
    key: str,
    budget_gb: float,
    worthwhile: bool = True,
    batch_size: int = 32,
) -> ActivationCache | None:
    """The cache of what `forward` captures for every row; None, with the reason logged, where it does not fit.

    Kept under `HF_DATASETS_CACHE`, named by the rows' fingerprint and `key`, which stands for the teacher and all that
    its activations depend on: made once and read by every later run; a killed pass is made again. Processes share the
    pass. Not made where the records pass `budget_gb` (10⁹ bytes) or the free disk, or unless `worthwhile`.
    """
    name = hashlib.sha256(f"{dataset._fingerprint} {key}".encode()).hexdigest()[:16]
    folder, state = Path(datasets.config.HF_DATASETS_CACHE, "teacher_activations", name), PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock") if state.is_main_process else nullcontext():  # one run at a time
        state.wait_for_everyone()
        if not (folder / "layout.json").exists() and not (
            worthwhile and _write(folder, forward, dataset, collate, budget_gb, batch_size)
        ):
            return None
    return ActivationCache(folder)


def _write(folder: Path, forward, dataset, collate, budget_gb: float, batch_size: int) -> bool:
    state = PartialState()
    lengths = np.array([sum(mask) for mask in dataset["attention_mask"]])
    order = np.argsort(-lengths, kind="stable")  # the longest first: what does not fit in memory fails at once
    layout = _layout(forward(collate([dataset[int(order[0])]])))
    if layout is None:
        logger.warning("Teacher activations are not kept: this architecture hands out S×S scores.")
        return False
    shape = int(lengths.sum()), sum(part["width"] for part in layout)
    size, room = 2 * shape[0] * shape[1], min(budget_gb * 1e9, 0.9 * shutil.disk_usage(folder).free)
    if size > room:
        logger.warning(
            f"Teacher activations are not kept: they take {size / 1e9:.2f} GB ({2 * shape[1]} bytes a token), and "
            f"teacher_cache_gb and the free disk allow {room / 1e9:.2f}."
        )
        return False
    offsets = np.concatenate([[0], lengths.cumsum()])
    if state.is_main_process:
        np.save(folder / "offsets.npy", offsets)
        np.memmap(folder / "records.bf16", np.int16, "w+", shape=shape)
    state.wait_for_everyone()
    records = np.memmap(folder / "records.bf16", np.int16, "r+", shape=shape)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    own = batches[state.process_index :: state.num_processes]
    for batch in tqdm(own, desc="Teacher activations", disable=not state.is_main_process):
        activations = forward(collate([dataset[int(row)] for row in batch]))
        real = activations.attention_mask.bool()
        found = torch.cat([_values(activations, part)[real] for part in layout], -1).to(torch.bfloat16)
        found = np.split(found.view(torch.int16).cpu().numpy(), lengths[batch].cumsum()[:-1])
        for row, values in zip(batch, found, strict=True):
            records[offsets[row] : offsets[row + 1]] = values
    records.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        (folder / "layout.json").write_text(json.dumps(layout))  # last: it says that the rest is whole
    state.wait_for_everyone()
    return True


def _layout(activations: Activations) -> list[dict[str, Any]] | None:
    """The parts of a record: hidden states, then query, key (and value) by layer; None for scores without factors."""
    parts = []
    for layer, states in enumerate(activations.hidden_states or ()):
        if states is not None:
            parts.append({"layer": layer, "width": states.shape[-1], "heads": 0})
    for layer, scores in enumerate(activations.attentions or (), start=1):
        if isinstance(scores, Tensor):
            return None
        if scores is not None:
            vectors, (_, heads, _, d) = len(scores.vectors), scores.query.shape
            parts.append({"layer": layer, "width": vectors * heads * d, "heads": heads})
            parts[-1] |= {"vectors": vectors, "scaling": scores.scaling}
    return parts


def _values(activations: Activations, part: Mapping[str, Any]) -> Tensor:
    if not part["heads"]:
        return activations.hidden_states[part["layer"]]
    scores = activations.attentions[part["layer"] - 1]
    return torch.cat([x.transpose(1, 2).flatten(2) for x in scores.vectors], -1)


def check_same(cached: Activations, live: Activations) -> None:
    """Raise ValueError where cached and live activations differ by more than bf16 rounding explains."""
    layout, real = _layout(live), cached.attention_mask.bool()
    for part in layout or ():
        kept, now = (_values(activations, part)[real].float() for activations in (cached, live))
        if kept.shape != now.shape or (kept - now).norm() > 0.05 * now.norm():
            raise ValueError(_CHANGED)
