"""The teacher's logits as a column of the data set: made once, padded to a batch again."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from .ensemble import combine_logits, normalised
from .heads import is_masked_lm, logits_of, read_logits
from .sharded_map import sharded_map
from .teachers import TEACHER_LOGITS, forward_columns, weights_digest


def cache_logits(
    teacher: PreTrainedModel | Sequence[PreTrainedModel],
    dataset: datasets.Dataset,
    processing_class: PreTrainedTokenizerBase,
    batch_size: int = 64,
    data_collator: Callable[[list[dict]], dict[str, Any]] | None = None,
    weights: Sequence[float] | None = None,
    how: str = "mean",
) -> datasets.Dataset:
    """`dataset` with the teacher's logits in a column `teacher_logits`, which `DistillationTrainer` reads instead of
    running the teacher.

    One pass in eval mode, rows of similar length together, shared between processes. Where the data set is on disk, so
    is the result (`sharded_map`), named by the rows' fingerprint and a digest of the teacher's weights: the same call
    again reads it, another teacher or other rows do not. Logits are (C,) a row, or (n, C) of its n tokens, (n, 2) of
    a span; in float32. `data_collator`: default padding. Several teachers: combined by `weights` and `how`
    (`combine_logits`). Raises ValueError for masked language modelling, which masks anew each time.
    """
    teachers = [teacher] if isinstance(teacher, PreTrainedModel) else list(teacher)
    if any(map(is_masked_lm, teachers)):
        raise ValueError("Logits of masked tokens cannot be kept, as other tokens are masked in each epoch.")
    weights = normalised(weights, len(teachers))
    collate = data_collator or DataCollatorWithPadding(processing_class)
    columns = {name for teacher in teachers for name in forward_columns(teacher)}
    if data_collator:  # that of multiple choice cannot do without labels
        columns |= {"label", "labels"}
    columns &= {*dataset.column_names}

    def run(rows: list[dict]) -> list[Any]:
        batch = collate(rows)
        found = []
        for teacher in teachers:
            taken = forward_columns(teacher)
            inputs = {name: value.to(teacher.device) for name, value in batch.items() if name in taken}
            found.append(read_logits(teacher.eval()(**inputs)).float().cpu())
        logits = combine_logits(found, weights, how, logits_of(teachers[0]), batch.get("attention_mask"))
        if logits.dim() == 3:  # of tokens: those of padding are left out
            return [values[mask.bool()].numpy() for values, mask in zip(logits, batch["attention_mask"], strict=True)]
        return list(logits.numpy())

    @torch.no_grad()
    def logits(batch: dict[str, list]) -> dict[str, Any]:
        lengths = [len(ids) for ids in batch["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        found: list[Any] = [None] * len(lengths)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            values = run([{name: batch[name][index] for name in columns} for index in chosen])
            for index, value in zip(chosen, values, strict=True):
                found[index] = value
        return {TEACHER_LOGITS: found}

    key = f"{TEACHER_LOGITS} {[weights_digest(teacher) for teacher in teachers]} {sorted(columns)} {weights} {how}"
    return sharded_map(dataset, logits, key, batch_size=32 * batch_size, desc="Teacher logits")


def pad_logits(collate: Callable[[list[dict]], dict[str, Any]]) -> Callable[[list[dict]], dict[str, Any]]:
    """`collate` that also takes kept logits; of tokens, (n, C) a row, they go where its mask has tokens, (B, S, C)."""
    return partial(_collate, collate=collate)


def _collate(rows: list[dict], collate: Callable[[list[dict]], dict[str, Any]]) -> dict[str, Any]:
    batch = collate([{name: value for name, value in row.items() if name != TEACHER_LOGITS} for row in rows])
    kept = [torch.as_tensor(row[TEACHER_LOGITS]) for row in rows if TEACHER_LOGITS in row]
    if kept and kept[0].dim() == 1:
        batch[TEACHER_LOGITS] = torch.stack(kept)
    elif kept:
        mask = batch["attention_mask"].bool()
        if mask.sum(1).tolist() != [len(logits) for logits in kept]:
            raise ValueError(
                "The column teacher_logits has other numbers of tokens than its rows: it was made for other rows or "
                "by another tokenizer. Make it again with cache_logits."
            )
        batch[TEACHER_LOGITS] = kept[0].new_zeros((*mask.shape, kept[0].shape[-1]))
        batch[TEACHER_LOGITS][mask] = torch.cat(kept)
    return batch
