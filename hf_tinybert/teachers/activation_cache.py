"""The teacher's hidden states, queries and keys of a data set on disk: one bf16 record a token, memory-mapped."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, find_executable_batch_size
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from ..activations import Activations, QueryKey
from ..whole_files import DiskError, disk_errors, written_whole

logger = logging.get_logger(__name__)

LAYOUT_FILE, OFFSETS_FILE, RECORDS_FILE = "layout.json", "offsets.npy", "records.bf16"
CHANGED = (
    "The batch is not what the cached teacher activations were made from: the data collator or the data set changes "
    "tokens from epoch to epoch. Set teacher_cache_gb=0, so that the teacher runs live."
)


@dataclass(frozen=True)
class Part:
    """A part of a record: the hidden state of a layer, or its queries, keys (and values).

    Args:
        layer: The layer, counted from 1; 0 is the embedding output.
        width: Numbers a token.
        heads: Attention heads; 0 for a hidden state.
        vectors: 2 for queries and keys, 3 with values; 0 for a hidden state.
        scaling: That of the attention scores.
    """

    layer: int
    width: int
    heads: int = 0
    vectors: int = 0
    scaling: float = 0.0

    def values(self, activations: Activations) -> Tensor:
        """This part of `activations`, (B, S, width)."""
        if not self.heads:
            return activations.hidden_states[self.layer]
        scores = activations.attentions[self.layer - 1]
        return torch.cat([x.transpose(1, 2).flatten(2) for x in scores.vectors], -1)

    def query_key(self, values: Tensor) -> QueryKey:
        """Queries, keys (and values) from (B, S, width)."""
        query, key, *value = values.unflatten(-1, (self.vectors, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return QueryKey(query, key, self.scaling, *value)

    def comparable(self, values: Tensor) -> Tensor:
        """Values (B, S, width) in a form that does not depend on where position 0 is: scores instead of vectors."""
        if not self.heads:
            return values
        scores = self.query_key(values)
        return scores.query @ scores.key.mT


@dataclass(frozen=True)
class Layout:
    """The parts of a record: hidden states by layer, then queries, keys (and values) by layer."""

    parts: tuple[Part, ...]

    @classmethod
    def from_activations(cls, activations: Activations) -> "Layout | None":
        """The layout of what was captured; None if there are S×S scores, which are not cached."""
        if any(isinstance(scores, Tensor) for scores in activations.attentions or ()):
            return None
        parts = [
            Part(layer, states.shape[-1])
            for layer, states in enumerate(activations.hidden_states or ())
            if states is not None
        ]
        for layer, scores in enumerate(activations.attentions or (), start=1):
            if scores is not None:
                vectors, (_, heads, _, d) = len(scores.vectors), scores.query.shape
                parts.append(Part(layer, vectors * heads * d, heads, vectors, scores.scaling))
        return cls(tuple(parts))

    @classmethod
    def load(cls, folder: Path) -> "Layout":
        """The layout that `save` wrote."""
        return cls(tuple(Part(**part) for part in json.loads((folder / LAYOUT_FILE).read_text())))

    def save(self, folder: Path) -> None:
        """Write the layout. It is written last: it says that the cache is whole."""
        with written_whole(folder / LAYOUT_FILE) as file:
            file.write_text(json.dumps([asdict(part) for part in self.parts]))

    @property
    def width(self) -> int:
        """Numbers a token."""
        return sum(part.width for part in self.parts)

    def activations(self, records: Tensor, attention_mask: Tensor) -> Activations:
        """Activations from records (B, S, width)."""
        depth = 1 + max(part.layer for part in self.parts)
        hidden_states, attentions = [None] * depth, [None] * (depth - 1)
        for part, values in zip(self.parts, records.split([part.width for part in self.parts], -1), strict=True):
            if part.heads:
                attentions[part.layer - 1] = part.query_key(values)
            else:
                hidden_states[part.layer] = values
        return Activations(attention_mask, hidden_states=tuple(hidden_states), attentions=tuple(attentions))


class ActivationCache:
    """A folder that `cache_activations` made, read by row numbers, page by page."""

    def __init__(self, folder: Path):
        self.layout = Layout.load(folder)
        self.offsets = np.load(folder / OFFSETS_FILE)
        shape = int(self.offsets[-1]), self.layout.width
        self.records = np.memmap(folder / RECORDS_FILE, np.int16, "r", shape=shape)

    def lookup(self, rows: Tensor, attention_mask: Tensor) -> Activations:
        """The activations of rows of the data set.

        Args:
            rows: Row numbers, (B,).
            attention_mask: Where their tokens are, (B, S); what stands at padding is arbitrary.

        Raises:
            ValueError: If the mask counts other tokens than were cached.
        """
        chosen = [self.records[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()]
        lengths = torch.tensor([len(record) for record in chosen], device=attention_mask.device)
        real = attention_mask.to(torch.int64)
        if not torch.equal(real.sum(1), lengths):
            raise ValueError(CHANGED)
        records = torch.from_numpy(np.concatenate(chosen)).view(torch.bfloat16).to(attention_mask.device)
        position = real.cumsum(1) - 1 + (lengths.cumsum(0) - lengths)[:, None]
        return self.layout.activations(records[position.clamp(min=0)], attention_mask)


def cache_activations(
    forward: Callable[[Mapping[str, Any]], Activations],
    dataset: datasets.Dataset,
    collate: Callable[[list[dict]], Mapping[str, Any]],
    key: str,
    budget_gb: float,
    worthwhile: bool = True,
    batch_size: int = 32,
) -> ActivationCache | None:
    """Cache what `forward` captures of every row under `HF_DATASETS_CACHE`, named by the rows' fingerprint and `key`.

    The cache is made once and read by every later run; a pass that was killed, or whose files have become corrupt, is
    made again. Processes share the pass. A disk that is full or read-only is no error: then there is no cache.

    Args:
        forward: A batch → activations.
        dataset: Rows with an `attention_mask`.
        collate: Rows → a batch.
        key: Stands for the teacher and all that its activations depend on.
        budget_gb: The size allowed, in 10⁹ bytes; the free disk is another limit.
        worthwhile: Whether to make a cache that does not exist yet.
        batch_size: The most rows of a forward pass; fewer if memory runs out.

    Returns:
        The cache; None if it does not fit, with the reason in the log, or if it is not `worthwhile`.
    """
    name = hashlib.sha256(f"{dataset._fingerprint} {key}".encode()).hexdigest()[:16]
    folder, state = Path(datasets.config.HF_DATASETS_CACHE, "teacher_activations", name), PartialState()
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock") if state.is_main_process else nullcontext()  # one run at a time
            with lock:
                state.wait_for_everyone()
                cache = _open(folder, int(lengths_of(dataset).sum()))
                state.wait_for_everyone()  # all have seen whether it is whole before one writes
                if cache is None and worthwhile and _make(folder, forward, dataset, collate, budget_gb, batch_size):
                    cache = ActivationCache(folder)
                return cache
    except DiskError as error:
        logger.warning(f"Teacher activations are not cached, the teacher runs live. {error}")
        return None


def lengths_of(dataset: datasets.Dataset) -> np.ndarray:
    """The number of tokens of each row."""
    return np.array([sum(mask) for mask in dataset["attention_mask"]])


def _open(folder: Path, tokens: int) -> ActivationCache | None:
    """The cache in a folder; None if there is none or, with a warning, one whose files are corrupt."""
    if not (folder / LAYOUT_FILE).exists():
        return None
    try:
        cache = ActivationCache(folder)
        if int(cache.offsets[-1]) == tokens and (folder / RECORDS_FILE).stat().st_size == cache.records.nbytes:
            return cache
        reason = "a file is cut off"
    except (ValueError, TypeError, KeyError, EOFError, FileNotFoundError) as error:
        reason = str(error)
    logger.warning(f"The cached teacher activations in {folder} are corrupt ({reason}): they are made again.")
    return None


def _make(folder: Path, forward, dataset, collate, budget_gb: float, batch_size: int) -> bool:
    state = PartialState()
    lengths = lengths_of(dataset)
    order = np.argsort(-lengths, kind="stable")  # the longest first: what does not fit in memory fails at once
    rows = [dataset[int(row)] for row in order[[0, -1]]]
    first = forward(collate(rows))
    layout = Layout.from_activations(first)
    if layout is None:
        logger.warning("Teacher activations are not cached: this architecture hands out S×S scores.")
        return False
    if not first.attention_mask[:, 0].all():
        _check_left_padding(layout, first, forward(collate(rows[1:])))
    shape = int(lengths.sum()), layout.width
    offsets, reserved = np.concatenate([[0], lengths.cumsum()]), [False]
    if state.is_main_process:
        reserved = [_fits(shape, budget_gb, folder) and _reserve(folder, offsets, shape)]
    if not broadcast_object_list(reserved)[0]:
        return False
    records = np.memmap(folder / RECORDS_FILE, np.int16, "r+", shape=shape)
    share = order[state.process_index :: state.num_processes]

    def write(batch_size: int) -> None:
        batches = [share[i : i + batch_size] for i in range(0, len(share), batch_size)]
        for batch in tqdm(batches, desc="Teacher activations", disable=not state.is_main_process):
            activations = forward(collate([dataset[int(row)] for row in batch]))
            real = activations.attention_mask.bool()
            values = torch.cat([part.values(activations)[real] for part in layout.parts], -1).to(torch.bfloat16)
            rows = np.split(values.view(torch.int16).cpu().numpy(), lengths[batch].cumsum()[:-1])
            for row, record in zip(batch, rows, strict=True):
                records[offsets[row] : offsets[row + 1]] = record

    find_executable_batch_size(write, starting_batch_size=max(1, min(batch_size, len(share))))()
    records.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        layout.save(folder)
    state.wait_for_everyone()
    return True


def _reserve(folder: Path, offsets: np.ndarray, shape: tuple[int, int]) -> bool:
    """Write the offsets and reserve the disk of the records, so that a disk that fills up kills no process later."""
    try:
        with disk_errors(folder):
            (folder / LAYOUT_FILE).unlink(missing_ok=True)  # from now on the cache is not whole
            np.save(folder / OFFSETS_FILE, offsets)
            with (folder / RECORDS_FILE).open("wb") as file:
                size = 2 * shape[0] * shape[1]
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
    except DiskError as error:
        (folder / RECORDS_FILE).unlink(missing_ok=True)
        logger.warning(f"Teacher activations are not cached, the teacher runs live. {error}")
        return False
    return True


def _fits(shape: tuple[int, int], budget_gb: float, folder: Path) -> bool:
    size, room = 2 * shape[0] * shape[1], min(budget_gb * 1e9, 0.9 * shutil.disk_usage(folder).free)
    if size > room:
        logger.warning(
            f"Teacher activations are not cached, and the teacher runs in every epoch: they take {size / 1e9:.2f} GB "
            f"({2 * shape[1]} bytes a token), and teacher_cache_gb and the free disk allow {room / 1e9:.2f}. "
            f"With room on the disk, set teacher_cache_gb to {math.ceil(size / 1e9)}."
        )
    return size <= room


def _check_left_padding(layout: Layout, beside: Activations, alone: Activations) -> None:
    """Check that the activations of the last row of a batch are those of the row by itself.

    Raises:
        ValueError: If they are not, as the teacher counts positions from the left.
    """
    for part in layout.parts:
        padded, expected = (
            part.comparable(part.values(activations)[-1:, activations.attention_mask[-1].bool()].float())
            for activations in (beside, alone)
        )
        if (padded - expected).norm() > 0.05 * expected.norm():
            raise ValueError(
                "Rows are padded on the left, so that the positions of their tokens, and with them the teacher's "
                "activations, depend on the other rows of a batch: set processing_class.padding_side = 'right'."
            )


def variance_lost(lower: Activations, full: Activations) -> float:
    """The share of the variance over tokens that lower precision loses, of the part of a record that loses most.

    Σ‖a' − a‖² / Σ‖a − ā‖², summed over real tokens, with the mean ā of a over them. It is infinite or not a number if
    a is the same for every token, and 0 if there is no part.

    Args:
        lower: a', of the batch in lower precision.
        full: a, of the same batch.
    """
    layout, real = Layout.from_activations(full), full.attention_mask.bool()
    shares = [torch.tensor(0.0)]
    for part in layout.parts if layout else ():
        exact, rounded = (part.values(activations)[real].float() for activations in (full, lower))
        variance = (exact - exact.mean(0)).square().sum()
        shares.append(((rounded - exact).square().sum() / variance).cpu())
    return torch.stack(shares).max().item()


def check_same(cached: Activations, live: Activations) -> None:
    """Check that cached and live activations differ by no more than bf16 rounding explains.

    Raises:
        ValueError: If they do.
    """
    layout, real = Layout.from_activations(live), cached.attention_mask.bool()
    for part in layout.parts if layout else ():
        stored, now = (part.values(activations)[real].float() for activations in (cached, live))
        if stored.shape != now.shape or (stored - now).norm() > 0.05 * now.norm():
            raise ValueError(CHANGED)
