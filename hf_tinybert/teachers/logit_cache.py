"""The teacher's logits as a column of the data set: computed once, and padded to a batch again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from ..native_dtypes import AUTO, bfloat16_serves, check_dtype, mean_over_processes, target_dtype
from ..sharded_map import sharded_map
from .ensemble import combine_logits, normalised
from .teacher import TEACHER_LOGITS, lowered

Collator = Callable[[list[dict]], dict[str, Any]]


def cache_logits(
    teacher: PreTrainedModel | Sequence[PreTrainedModel],
    dataset: datasets.Dataset,
    processing_class: PreTrainedTokenizerBase,
    batch_size: int = 64,
    data_collator: Collator | None = None,
    weights: Sequence[float] | None = None,
    how: str = "mean",
    dtype: str | None = None,
) -> datasets.Dataset:
    """Add the teacher's logits as a column `teacher_logits`, so that `DistillationTrainer` need not run the teacher.

    The teacher runs once in eval mode, with rows of similar length in a batch, and processes share the work. If the
    data set is on disk, so is the result (`sharded_map`). Its name depends on the rows' fingerprint and on a digest of
    the teacher's weights and its data type: the same call reads it again, another teacher or other rows do not.

    Args:
        teacher: A model, or several, whose logits are combined.
        dataset: Tokenised rows.
        processing_class: The tokenizer, which pads.
        batch_size: Rows a forward pass.
        data_collator: Rows → a batch; default padding.
        weights: A weight for each of several teachers; default equal.
        how: "mean" or "confidence" (`combine_logits`).
        dtype: The data type of the teacher's weights and arithmetic: "float32", "bfloat16", "float16" or "auto";
            default as it is loaded. "auto" brings a teacher in float32 to bfloat16 if its device multiplies bfloat16
            natively and its logits lose less than 0.1 % on a batch of rows from all over the data set (`share_lost`).
            Otherwise the teacher stays as it is loaded, and the log says why.

    Returns:
        `dataset` with logits in float32: (C,) a row, or (n, C) of its n tokens, (n, 2) for spans.

    Raises:
        ValueError: For masked language models, which mask other tokens in each epoch, for a row that the teachers
            cannot read, and for an unknown `dtype`.
    """
    check_dtype(dtype, "dtype")
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

    @torch.no_grad()
    def logits_and_mask(rows: list[dict]) -> tuple[Tensor, Tensor | None]:
        batch = collate(rows)
        logits, mask = [_logits(model, batch) for model in teachers], batch.get("attention_mask")
        return combine_logits(logits, weights, head, how, mask), mask

    def add_logits(batch: dict[str, list]) -> dict[str, Any]:
        lengths = [len(ids) for ids in batch["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        logits: list[Any] = [None] * len(lengths)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            values = head.pack(*logits_and_mask([{name: batch[name][index] for name in columns} for index in chosen]))
            for index, value in zip(chosen, values, strict=True):
                logits[index] = value
        return {TEACHER_LOGITS: logits}

    key = f"{TEACHER_LOGITS} {[weights_digest(model) for model in teachers]} {sorted(columns)} {weights} {how}"
    if dtype == AUTO and len(dataset):
        step = -(-len(dataset) // batch_size)
        spread = dataset.select_columns(sorted(columns)).select(range(0, len(dataset), step)).to_list()
        dtype = _decided_dtype(teachers, head, lambda: logits_and_mask(spread))
    targets = [dtype and target_dtype(dtype, model) for model in teachers]
    if any(targets):
        key += f" {targets}"
    with _in_dtypes(teachers, targets):
        return sharded_map(dataset, add_logits, key, batch_size=32 * batch_size, desc="Teacher logits")


@contextmanager
def _in_dtypes(teachers: Sequence[PreTrainedModel], dtypes: Sequence[torch.dtype | None]) -> Iterator[None]:
    with ExitStack() as stack:
        for model, dtype in zip(teachers, dtypes, strict=True):
            if dtype is not None:
                stack.enter_context(lowered(model, dtype))
        yield


def _decided_dtype(
    teachers: Sequence[PreTrainedModel],
    head: PredictionHead,
    logits_and_mask: Callable[[], tuple[Tensor, Tensor | None]],
) -> str | None:
    """The data type that "auto" stands for: itself, or None if the teachers stay, with the reason in the log."""

    def changes() -> dict[str, float]:
        logits, mask = logits_and_mask()
        with _in_dtypes(teachers, [target_dtype(AUTO, model) for model in teachers]):
            lost = share_lost(logits_and_mask()[0], logits, head, mask)
        return {"the logits": mean_over_processes(lost)}

    return AUTO if bfloat16_serves(teachers, changes) else None


def share_lost(lower: Tensor, logits: Tensor, head: PredictionHead, attention_mask: Tensor | None) -> float:
    """The share of what logits say beyond their mean that lower precision loses.

    (L(z', z) − L(z, z)) / (L(z̄, z) − L(z, z)), with the loss L(student, teacher) of the prediction head, the mean z̄ of
    the logits over rows (and tokens) and the logits z' in lower precision. It is KL(z ‖ z') / KL(z ‖ z̄) for classes
    and the share of unexplained variance for scores. It does not depend on an offset of the logits, and is infinite
    or not a number if z says the same of every row.

    Args:
        lower: z', (B, C) or (B, S, C).
        logits: z, of the same shape.
        head: The kind of head that they come from.
        attention_mask: (B, S).
    """
    mask = head.mask(None, attention_mask)
    real = logits[mask.bool()] if logits.dim() == 3 and mask is not None else logits
    mean = real.flatten(0, -2).mean(0).expand_as(logits)
    lowest, rounded, uninformed = (head.soft_loss(z, logits, mask=mask).mean() for z in (logits, lower, mean))
    return ((rounded - lowest) / (uninformed - lowest)).item()


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
