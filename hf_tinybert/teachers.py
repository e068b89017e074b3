"""The teacher: loaded, frozen, placed, and asked only for what the losses read."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .activation_cache import ActivationCache, cache_activations, check_same
from .activations import Activations
from .capture import ActivationCapture
from .loading import from_pretrained
from .sharded_map import sharded_map

logger = logging.get_logger(__name__)

TEACHER_LOGITS, TEACHER_ROW = "teacher_logits", "teacher_row"


def load_teacher(name_or_path: str) -> PreTrainedModel:
    """The model of a Hub id or a local folder, by the class that its config names, head included.

    Raises ValueError where the config names no class of transformers (remote code never runs from here) or where the
    files lack weights of the head: an untrained head would teach noise.
    """
    teacher, loading = from_pretrained(None, name_or_path, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(
            f"Teacher '{name_or_path}' lacks weights for {sorted(loading['missing_keys'])}: they would be random. "
            "Fine-tune the teacher on the task first."
        )
    return teacher


def freeze(teacher: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Eval mode, no gradients, on `device` unless the teacher is already spread over devices or quantised.

    Raises ValueError where a weight is NaN or infinite.
    """
    check_weights(teacher)
    if getattr(teacher, "hf_device_map", None) is None and not getattr(teacher, "is_quantized", False):
        teacher.to(device)
    return teacher.requires_grad_(False).eval()


def check_weights(teacher: PreTrainedModel) -> None:
    """Raise ValueError, naming the weight, where the teacher holds NaN or infinity."""
    for name, parameter in teacher.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ValueError(f"The teacher's weight '{name}' holds NaN or infinity: reload or retrain the teacher.")


def cache_logits(
    teacher: PreTrainedModel,
    dataset: datasets.Dataset,
    processing_class: PreTrainedTokenizerBase,
    batch_size: int = 64,
) -> datasets.Dataset:
    """`dataset` with the teacher's logits in a column `teacher_logits`, which `DistillationTrainer` reads instead of
    running the teacher.

    One pass in eval mode, rows of similar length together, shared between processes. Where the data set is on disk, so
    is the result (`sharded_map`), named by the rows' fingerprint and a digest of the teacher's weights: the same call
    again reads it, another teacher or other rows do not. Logits are (C,) a row, in float32.
    """
    teacher.eval()
    collate, columns = DataCollatorWithPadding(processing_class), forward_columns(teacher)
    columns = [name for name in columns if name in dataset.column_names]

    @torch.no_grad()
    def logits(batch: dict[str, list]) -> dict[str, Any]:
        lengths = [len(ids) for ids in batch["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        found: list[Any] = [None] * len(lengths)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            inputs = collate([{name: batch[name][index] for name in columns} for index in chosen])
            outputs = teacher(**inputs.to(teacher.device)).logits.float().cpu().numpy()
            for index, values in zip(chosen, outputs, strict=True):
                found[index] = values
        return {TEACHER_LOGITS: found}

    key = f"{TEACHER_LOGITS} {weights_digest(teacher)} {columns}"
    return sharded_map(dataset, logits, key, batch_size=32 * batch_size, desc="Teacher logits")


def check_cached_logits(cached: Tensor, live: Tensor) -> None:
    """Raise ValueError where a `teacher_logits` column is not what the teacher says now, to one part in twenty.

    Another teacher, other tokens or other rows are much further off; bf16 against float32 is nearer.
    """
    if cached.shape != live.shape or (cached - live).abs().max() > 0.05 * live.abs().max():
        raise ValueError(
            "The column teacher_logits is not what teacher_model computes on these rows: it was made by another "
            "teacher or tokenizer, or for other rows. Remove the column, or make it again with cache_logits."
        )


def weights_digest(model: PreTrainedModel) -> str:
    """A hash of every weight, by name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class Teacher:
    """What the losses read of a teacher: kept logits and activations where there are any, a forward pass otherwise.

    A pass runs without gradients, in eval mode, and the head only where logits are read; under `autocast` unless the
    weights are of a lower precision themselves. `compile_options` are those of `torch.compile`; None does not compile.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        capture: ActivationCapture,
        reads_logits: bool,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        compile_options: dict[str, Any] | None = None,
    ):
        self.model = model
        self.capture = capture
        self.captures = bool(capture.attention_layers or capture.hidden_layers)
        self.reads_logits = reads_logits
        self.autocast = autocast
        self.cache: ActivationCache | None = None
        models = {True: model if reads_logits else model.base_model, False: model.base_model}
        self._with_head = {head: (module, forward_columns(module)) for head, module in models.items()}
        self.columns = self._with_head[True][1]
        if compile_options is not None and not capture.records_softmax:
            compiled = {module: torch.compile(module, **compile_options) for module in models.values()}
            self._with_head = {head: (compiled[module], names) for head, (module, names) in self._with_head.items()}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any], head: bool = True) -> Activations:
        """One forward pass; `head=False` leaves the head out although logits are read."""
        self.model.eval()
        module, columns = self._with_head[head]
        inputs = {name: value for name, value in inputs.items() if name in columns}
        autocast = self.autocast if self.model.dtype == torch.float32 else nullcontext
        with self.capture.recording() as scores, autocast():
            outputs = module(**inputs, **self.capture.forward_arguments)
        return self.capture.read(outputs, inputs.get("attention_mask"), scores)

    def read(self, inputs: Mapping[str, Any], check: bool = False) -> Activations:
        """What the losses read; `check` runs the teacher too and raises ValueError where what is kept is stale."""
        logits = inputs.get(TEACHER_LOGITS)
        activations = Activations()
        if check or (self.captures and self.cache is None) or (self.reads_logits and logits is None):
            activations = self.run(inputs, head=logits is None or check)
        if self.cache is not None:
            if TEACHER_ROW not in inputs:
                raise ValueError(
                    f"The batch lacks the column {TEACHER_ROW}, by which kept teacher activations are found: make the "
                    "data collator keep it, or set teacher_cache_gb=0."
                )
            kept = self.cache.read(inputs[TEACHER_ROW], inputs["attention_mask"])
            if check:
                check_same(kept, activations)
                kept.logits = activations.logits
            activations = kept
        if logits is not None:
            if check and self.reads_logits:
                check_cached_logits(logits, activations.logits)
            activations.logits = logits
        return activations

    def keep(
        self,
        dataset: datasets.Dataset,
        collate: Callable[[list[dict]], Mapping[str, Any]],
        budget_gb: float,
        worthwhile: bool,
    ) -> datasets.Dataset:
        """`dataset` with row numbers once what is captured is on disk (`cache_activations`), else `dataset` itself."""
        columns, reason = getattr(dataset, "column_names", None) or (), None
        if self.reads_logits and TEACHER_LOGITS not in columns:
            reason = "the teacher has to run for its logits (cache_logits keeps those)"
        elif not isinstance(dataset, datasets.Dataset) or "attention_mask" not in columns:
            reason = "that takes a datasets.Dataset with an attention_mask"
        if reason:
            logger.warning(f"Teacher activations are not kept: {reason}.")
            return dataset
        depends = [self.capture.attention_layers, self.capture.hidden_layers, self.capture.values, self.columns]
        with self.autocast():
            device = self.model.device.type
            depends += [self.model.dtype, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        key = f"{weights_digest(self.model)} {depends}"
        run = partial(self.run, head=False)
        self.cache = cache_activations(run, dataset, collate, key, budget_gb, worthwhile)
        return dataset if self.cache is None else dataset.add_column(TEACHER_ROW, np.arange(len(dataset)))


def forward_columns(model: PreTrainedModel) -> list[str]:
    """The inputs that `model.forward` names, labels left out."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and "label" not in p.name]
