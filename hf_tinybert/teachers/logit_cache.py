"""The teacher's logits as a column of the data set: computed once, and padded to a batch again."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..models.forward import forward_columns
from ..models.prediction_heads import PredictionHead, prediction_head_of
from ..models.row_checks import InputLimits, check_rows
from ..models.weights import weights_digest
from ..sharded_map import sharded_map
from .ensemble import combine_logits, normalised
from .teacher import TEACHER_LOGITS

Collator = Callable[[list[dict]], dict[str, Any]]


def cache_logits(
    teacher: PreTrainedModel | Sequence[PreTrainedModel],
    dataset: datasets.Dataset,
    processing_class: PreTrainedTokenizerBase,
    batch_size: int = 64,
    data_collator: Collator | None = None,
    weights: Sequence[float] | None = None,
    how: str = "mean",
) -> datasets.Dataset:
    """Add the teacher's logits as a column `teacher_logits`, so that `DistillationTrainer` need not run the teacher.

    The teacher runs once in eval mode, with rows of similar length in a batch, and processes share the work. If the
    data set is on disk, so is the result (`sharded_map`). Its name depends on the rows' fingerprint and on a digest of
    the teacher's weights: the same call reads it again, another teacher or other rows do not.

    Args:
        teacher: A model, or several, whose logits are combined.
        dataset: Tokenised rows.
        processing_class: The tokenizer, which pads.
        batch_size: Rows a forward pass.
        data_collator: Rows → a batch; default padding.
        weights: A weight for each of several teachers; default equal.
        how: "mean" or "confidence" (`combine_logits`).

    Returns:
        `dataset` with logits in float32: (C,) a row, or (n, C) of its n tokens, (n, 2) for spans.

    Raises:
        ValueError: For masked language models, which mask other tokens in each epoch, and for a row that the teachers
            cannot read.
    """
    teachers = [teacher] if isinstance(teacher, PreTrainedModel) else list(teacher)
    head = prediction_head_of(teachers[0])
    if not all(prediction_head_of(model).cacheable for model in teachers):
        raise ValueError("Logits of masked tokens cannot be cached, as other tokens are masked in each epoch.")
    weights = normalised(weights, len(teachers))
    check_rows(dataset, InputLimits.of_models(teachers, "choices" in head.input_axes), "dataset")
    collate = data_collator or DataCollatorWithPadding(processing_class)
    columns = {name for model in teachers for name in forward_columns(model)}
    if data_collator:  # that of multiple choice cannot do without labels
        columns |= {"label", "labels"}
    columns &= {*dataset.column_names}

    def batch_logits(rows: list[dict]) -> list[Any]:
        batch = collate(rows)
        logits, mask = [_logits(model, batch) for model in teachers], batch.get("attention_mask")
        return head.pack(combine_logits(logits, weights, head, how, mask), mask)

    @torch.no_grad()
    def add_logits(batch: dict[str, list]) -> dict[str, Any]:
        lengths = [len(ids) for ids in batch["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        logits: list[Any] = [None] * len(lengths)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            values = batch_logits([{name: batch[name][index] for name in columns} for index in chosen])
            for index, value in zip(chosen, values, strict=True):
                logits[index] = value
        return {TEACHER_LOGITS: logits}

    key = f"{TEACHER_LOGITS} {[weights_digest(model) for model in teachers]} {sorted(columns)} {weights} {how}"
    return sharded_map(dataset, add_logits, key, batch_size=32 * batch_size, desc="Teacher logits")


def _logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    columns = forward_columns(model)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name in columns}
    return prediction_head_of(model).logits(model.eval()(**inputs)).float().cpu()


def pad_logits(collate: Collator, prediction_head: PredictionHead) -> Collator:
    """A data collator that also takes cached logits; those of tokens are placed where the mask has tokens."""
    return partial(_collate, collate=collate, prediction_head=prediction_head)


def _collate(rows: list[dict], collate: Collator, prediction_head: PredictionHead) -> dict[str, Any]:
    batch = collate([{name: value for name, value in row.items() if name != TEACHER_LOGITS} for row in rows])
    cached = [torch.as_tensor(row[TEACHER_LOGITS]) for row in rows if TEACHER_LOGITS in row]
    if cached:
        batch[TEACHER_LOGITS] = prediction_head.unpack(cached, batch.get("attention_mask"))
    return batch
