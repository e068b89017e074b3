"""The teacher: loaded, frozen, placed, and asked only for what the losses read."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .activation_cache import ActivationCache, cache_activations, check_same
from .activations import Activations
from .capture import ActivationCapture
from .compatibility import check_finite
from .ensemble import about_teacher, combine_logits
from .loading import from_pretrained
from .vocabulary import check_same_tokens, own_tokenizer

logger = logging.get_logger(__name__)

TEACHER_LOGITS, TEACHER_ROW = "teacher_logits", "teacher_row"


def load_teacher(name_or_path: str, processing_class=None) -> PreTrainedModel:
    """The model of a Hub id or a local folder, by the class that its config names, head included.

    Raises ValueError where the config names no class of transformers (remote code never runs from here), where the
    files lack weights of the head (an untrained one would teach noise), and where `processing_class` is a tokenizer
    whose tokens have other ids than in the teacher's own.
    """
    if isinstance(processing_class, PreTrainedTokenizerBase) and (own := own_tokenizer(name_or_path)) is not None:
        check_same_tokens(processing_class, own)
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


def check_cached_logits(cached: Tensor, live: Tensor, attention_mask: Tensor | None) -> None:
    """Raise ValueError where a `teacher_logits` column is not what the teacher says now, to one part in twenty.

    Another teacher, other tokens or other rows are much further off; bf16 against float32 is nearer. Of logits of
    tokens, (B, S, C), only those of real tokens are kept.
    """
    if cached.dim() == 3 and cached.shape == live.shape and attention_mask is not None:
        cached, live = (logits[attention_mask.bool()] for logits in (cached, live))
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

    `reads` is what the losses read (`DistillationLoss`), of these layers; the head runs only where that is logits. A
    pass runs without gradients, in eval mode, under `autocast` unless the weights are of a lower precision themselves.
    `compile_options` are those of `torch.compile`; None does not compile. `padding_free` as in `ActivationCapture`.
    Use it inside `capture.enabled()`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reads: frozenset[str],
        attention_layers: Iterable[int] = (),
        hidden_layers: Iterable[int] = (),
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        compile_options: dict[str, Any] | None = None,
        padding_free: bool = False,
    ):
        self.model = model
        self.reads_logits = "logits" in reads
        layers = attention_layers, hidden_layers
        self.capture = ActivationCapture(model, *layers, "values" in reads, not self.reads_logits, padding_free)
        self.captures = bool(self.capture.attention_layers or self.capture.hidden_layers)
        self.autocast = autocast
        self.cache: ActivationCache | None = None
        models = {True: model if self.reads_logits else model.base_model, False: model.base_model}
        self._with_head = {head: (module, forward_columns(module)) for head, module in models.items()}
        self.columns = self._with_head[True][1]
        if compile_options is not None and not self.capture.records_softmax:
            compiled = {module: torch.compile(module, **compile_options) for module in models.values()}
            self._with_head = {head: (compiled[module], names) for head, (module, names) in self._with_head.items()}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any], head: bool = True) -> Activations:
        """One forward pass; `head=False` leaves the head out although logits are read."""
        self.model.eval()
        module, columns = self._with_head[head]
        inputs = {name: value for name, value in inputs.items() if name in columns}
        if not (head and self.reads_logits) and inputs["input_ids"].dim() == 3:
            inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}  # choices, to an encoder
        autocast = self.autocast if self.model.dtype == torch.float32 else nullcontext
        with self.capture.recording() as scores, autocast():
            outputs = module(**inputs, **self.capture.forward_arguments)
        return self.capture.read(outputs, inputs.get("attention_mask"), scores)

    def read(self, inputs: Mapping[str, Any], check: bool = False) -> Activations:
        """What the losses read, but for logits that the batch has (`Ensemble`).

        `check` runs the teacher in any case and raises ValueError where what is kept is stale.
        """
        needs_logits = self.reads_logits and TEACHER_LOGITS not in inputs
        activations = Activations()
        if check or (self.captures and self.cache is None) or needs_logits:
            activations = self.run(inputs, head=needs_logits or check)
        if self.cache is not None:
            if TEACHER_ROW not in inputs:
                raise ValueError(
                    f"The batch lacks the column {TEACHER_ROW}, by which kept teacher activations are found: make the "
                    "data collator keep it, or set teacher_cache_gb=0."
                )
            kept = self.cache.read(inputs[TEACHER_ROW], inputs["attention_mask"])
            if check:
                check_same(kept, activations)
                kept.logits, kept.kind = activations.logits, activations.kind
            activations = kept
        return activations

    def keep(
        self,
        dataset: datasets.Dataset,
        collate: Callable[[list[dict]], Mapping[str, Any]],
        budget_gb: float,
        worthwhile: bool,
    ) -> bool:
        """Whether what is captured of `dataset` is on disk from now on and read from there (`cache_activations`)."""
        columns, reason = getattr(dataset, "column_names", None) or (), None
        if self.reads_logits and TEACHER_LOGITS not in columns:
            reason = "the teacher has to run for its logits (cache_logits keeps those)"
        elif not isinstance(dataset, datasets.Dataset) or "attention_mask" not in columns:
            reason = "that takes a datasets.Dataset with an attention_mask"
        elif isinstance(dataset.features["attention_mask"].feature, datasets.List):
            reason = "that takes rows of one sequence, not of several choices"
        if reason:
            logger.warning(f"Teacher activations are not kept: {reason}.")
            return False
        depends = [self.capture.attention_layers, self.capture.hidden_layers, self.capture.values, self.columns]
        with self.autocast():
            device = self.model.device.type
            depends += [self.model.dtype, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        key = f"{weights_digest(self.model)} {depends}"
        run = partial(self.run, head=False)
        self.cache = cache_activations(run, dataset, collate, key, budget_gb, worthwhile)
        return self.cache is not None


class Ensemble:
    """Any number of teachers, read as one; with none, there are only the logits that a batch has.

    `weights` sum to 1 and `how` is "mean" or "confidence" (`combine_logits`): every teacher is handed out with the
    logits of all.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float], how: str = "mean"):
        self.teachers, self.weights, self.how = teachers, weights, how
        self.columns = list(dict.fromkeys(chain.from_iterable(teacher.columns for teacher in teachers)))

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> list[Activations]:
        """One checked forward pass of each, its own logits with it."""
        return checked([teacher.run(inputs) for teacher in self.teachers])

    @torch.no_grad()
    def read(self, inputs: Mapping[str, Any], check: bool = False) -> list[Activations]:
        """What the losses read of each teacher; `check` runs them and raises ValueError where what is kept is stale.

        A column `teacher_logits` stands for the combined logits of all.
        """
        found = [teacher.read(inputs, check) for teacher in self.teachers] or [Activations()]
        if check:
            checked(found)
        logits, cached = [each.logits for each in found], inputs.get(TEACHER_LOGITS)
        live = None
        if all(z is not None for z in logits):
            live = combine_logits(logits, self.weights, self.how, found[0].kind, found[0].attention_mask)
        if check and cached is not None and live is not None:
            check_cached_logits(cached, live, inputs.get("attention_mask"))
        return [replace(each, logits=live if cached is None else cached) for each in found]

    def keep(self, dataset, collate, budget_gb: float, worthwhile: bool) -> datasets.Dataset:
        """`dataset`, with row numbers where any teacher's activations are on disk; `budget_gb` is for all of them."""
        for number, teacher in enumerate(self.teachers, start=1):
            if not teacher.captures:
                continue
            with about_teacher(number, len(self.teachers)):
                if teacher.keep(dataset, collate, budget_gb, worthwhile):
                    budget_gb -= teacher.cache.records.nbytes / 1e9
        kept = any(teacher.cache is not None for teacher in self.teachers)
        return dataset.add_column(TEACHER_ROW, np.arange(len(dataset))) if kept else dataset

    def lower(self, dtype: torch.dtype) -> bool:
        """Bring the teachers that run live to `dtype`; whether that changed any."""
        changed = [each for each in self.teachers if each.cache is None and each.model.dtype != dtype]
        for teacher in changed:
            teacher.model.to(dtype)
        return bool(changed)


def checked(teachers: list[Activations]) -> list[Activations]:
    """What is given; raises ValueError, naming the teacher and the activation, where one holds NaN or infinity."""
    for number, activations in enumerate(teachers, start=1):
        with about_teacher(number, len(teachers)):
            check_finite(activations)
    return teachers


def forward_columns(model: PreTrainedModel) -> list[str]:
    """The inputs that `model.forward` names, labels left out."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and "label" not in p.name]
