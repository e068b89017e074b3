"""A teacher: loaded, frozen, placed, and asked only for what the losses read."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..activations import Activations
from ..layer_mapping import LayerMapping
from ..models.capture import ActivationCapture
from ..models.forward import forward_columns, same_modes
from ..models.weights import weights_digest
from ..native_dtypes import AUTO, bfloat16_serves, mean_over_processes, target_dtype
from .activation_cache import ActivationCache, cache_activations, check_same, variance_lost

logger = logging.get_logger(__name__)

TEACHER_LOGITS, TEACHER_ROW = "teacher_logits", "teacher_row"
DECIDING_ROWS = 16  # which decide the data type of the cache


def place(model: PreTrainedModel, device: torch.device) -> None:
    """Move a teacher to a device, unless it is spread over devices or quantised."""
    if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
        model.to(device)


@contextmanager
def frozen(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """A teacher on `device`, in eval mode, without gradients; at the end modes and gradients are as they were."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    place(model, device)
    with same_modes(model):
        model.requires_grad_(False).eval()
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


@contextmanager
def lowered(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """A model in lower precision; at the end it has its weights again, which wait in the host's memory."""
    parameters = [(parameter, parameter.data.cpu()) for parameter in model.parameters()]
    buffers = [(*place, buffer.cpu()) for *place, buffer in _buffers(model)]
    model.to(dtype)
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data.to(parameter.device)
        for module, name, buffer in buffers:
            setattr(module, name, buffer.to(getattr(module, name).device))


def _buffers(model: PreTrainedModel) -> list[tuple[nn.Module, str, Tensor]]:
    return [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]


@dataclass(frozen=True)
class Execution:
    """How teachers run.

    Args:
        autocast: The autocast of a teacher whose weights are float32.
        compile_options: The arguments of `torch.compile`; None does not compile.
        padding_free: Whether the layers run on real tokens alone.
        device: Where the teacher runs; None leaves it where it is.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext
    compile_options: Mapping[str, Any] | None = None
    padding_free: bool = False
    device: torch.device | None = None


class Teacher:
    """One teacher: its model, weight and layer mapping and, while it is `reading`, its capture and its cache.

    Args:
        model: The model.
        layer_mapping: The pairs (student layer, teacher layer).
        weight: Its share among several teachers.
    """

    def __init__(self, model: PreTrainedModel, layer_mapping: LayerMapping, weight: float = 1.0):
        self.model, self.layer_mapping, self.weight = model, layer_mapping, weight
        self.cache: ActivationCache | None = None
        self.cached_lower = False  # whether the cache holds what the model computes in lower precision

    @contextmanager
    def reading(
        self,
        reads: frozenset[str],
        attention_layers: Iterable[int] = (),
        hidden_layers: Iterable[int] = (),
        execution: Execution | None = None,
    ) -> Iterator[None]:
        """Set the model up to be read, frozen; at the end it is as it was.

        Layers are captured only while `run` runs, so that whoever else calls the model meets the plain model.

        Args:
            reads: What the losses read (`DistillationLoss.reads`). The head runs only if that includes "logits".
            attention_layers: Layers whose attention they read, counted from 1.
            hidden_layers: Layers whose hidden states they read, counted from 1; 0 is the embedding output.
            execution: How the model runs.

        Raises:
            ValueError: If the model cannot run without padding although `execution` says so.
        """
        self.execution = execution or Execution()
        self.reads_logits = "logits" in reads
        self.capture = ActivationCapture(
            self.model,
            attention_layers,
            hidden_layers,
            values="values" in reads,
            truncate=not self.reads_logits,
            padding_free=self.execution.padding_free,
        )
        encoder = self.model.base_model
        whole = self.model if self.reads_logits else encoder
        self.columns, self._encoder_columns = forward_columns(whole), forward_columns(encoder)
        if self.execution.compile_options is not None and not self.capture.records_calls:
            compiled = torch.compile(encoder, **self.execution.compile_options)
            whole = torch.compile(whole, **self.execution.compile_options) if whole is not encoder else compiled
            encoder = compiled
        self._whole, self._encoder = whole, encoder
        try:
            with frozen(self.model, self.execution.device or self.model.device), ExitStack() as self._lowered:
                yield
        finally:
            self.cache = self._whole = self._encoder = None
            self.cached_lower = False

    def lower(self, dtype: torch.dtype) -> None:
        """Bring the model to `dtype` until `restore`, or for the rest of the time in which it is `reading`."""
        self._lowered.enter_context(lowered(self.model, dtype))

    def restore(self) -> None:
        """Undo `lower`."""
        self._lowered.close()

    @property
    def captures(self) -> bool:
        """Whether the losses read any of its layers."""
        return bool(self.capture.attention_layers or self.capture.hidden_layers)

    def runs_on(self, inputs: Mapping[str, Any]) -> bool:
        """Whether it has to run for a batch: the losses read what neither the batch nor its cache holds."""
        return (self.captures and self.cache is None) or (self.reads_logits and TEACHER_LOGITS not in inputs)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any], head: bool = True) -> Activations:
        """One forward pass.

        Args:
            inputs: The batch; columns that the model does not take are ignored.
            head: False leaves the prediction head out, even if the losses read logits.
        """
        self.model.eval()
        module, columns = (self._whole, self.columns) if head else (self._encoder, self._encoder_columns)
        inputs = {name: value for name, value in inputs.items() if name in columns}
        if not (head and self.reads_logits) and inputs["input_ids"].dim() == 3:
            inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}  # choices, to an encoder
        autocast = self.execution.autocast if self.model.dtype == torch.float32 else nullcontext
        with self.capture.enabled(), self.capture.recording() as scores, autocast():
            outputs = module(**inputs, **self.capture.forward_arguments)
        return self.capture.collect(outputs, inputs.get("attention_mask"), scores)

    def observe(self, inputs: Mapping[str, Any], verify: bool = False) -> Activations:
        """What the losses read of it, from its cache if there is one; without logits if the batch holds them.

        Args:
            inputs: The batch.
            verify: Whether to run the model in any case and compare the cache with what it says now.

        Raises:
            ValueError: If the cache is stale, or if the batch lacks the column that finds its rows.
        """
        activations = Activations()
        if verify or self.runs_on(inputs):
            activations = self.run(inputs, head=verify or TEACHER_LOGITS not in inputs)
        if self.cache is None:
            return activations
        if TEACHER_ROW not in inputs:
            raise ValueError(
                f"The batch lacks the column {TEACHER_ROW}, by which cached teacher activations are found: make the "
                "data collator keep it, or set teacher_cache_gb=0."
            )
        cached = self.cache.lookup(inputs[TEACHER_ROW], inputs["attention_mask"])
        if verify:
            check_same(cached, activations)
            cached.logits, cached.prediction_head = activations.logits, activations.prediction_head
        return cached

    def cache_rows(
        self,
        dataset: datasets.Dataset,
        collate: Callable[[list[dict]], Mapping[str, Any]],
        budget_gb: float,
        worthwhile: bool,
        dtype: str | None,
    ) -> bool:
        """Cache what is captured of `dataset` on disk, and read it from there from now on.

        Args:
            dataset: The training rows.
            collate: Rows → a batch on the device.
            budget_gb: Disk space, in 10⁹ bytes.
            worthwhile: Whether a cache that does not exist yet is to be made.
            dtype: The data type that the model computes in; None for its own. "auto" is bfloat16 if that is native to
                the device and loses less than 0.1 % of the variance on rows from all over the data (`variance_lost`).

        Returns:
            Whether there is a cache (`cache_activations`); if not, the reason is in the log.
        """
        reason = self._reason_against_cache(dataset)
        if reason:
            logger.warning(f"Teacher activations are not cached: {reason}.")
            return False
        depends = [self.capture.attention_layers, self.capture.hidden_layers, self.capture.values, self.columns]
        digest, target = weights_digest(self.model), self._dtype_of_cache(dtype, dataset, collate)
        with lowered(self.model, target) if target else nullcontext():
            with self.execution.autocast():
                device = self.model.device.type
                depends += [self.model.dtype, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
            run = partial(self.run, head=False)
            self.cache = cache_activations(run, dataset, collate, f"{digest} {depends}", budget_gb, worthwhile)
        self.cached_lower = target is not None and self.cache is not None
        return self.cache is not None

    def _dtype_of_cache(self, dtype: str | None, dataset: datasets.Dataset, collate) -> torch.dtype | None:
        """The data type to bring the model to for the cache; None if it stays as it is."""
        target = dtype and target_dtype(dtype, self.model)
        if not target or dtype != AUTO:
            return target

        def changes() -> dict[str, float]:
            rows = range(0, len(dataset), math.ceil(len(dataset) / DECIDING_ROWS))
            batch = collate([dataset[row] for row in rows])
            full = self.run(batch, head=False)
            with lowered(self.model, target):
                lost = variance_lost(self.run(batch, head=False), full)
            return {"the cached activations": mean_over_processes(lost)}

        return target if bfloat16_serves([self.model], changes) else None

    def _reason_against_cache(self, dataset: Any) -> str | None:
        columns = getattr(dataset, "column_names", None) or ()
        if self.reads_logits and TEACHER_LOGITS not in columns:
            return "the teacher has to run for its logits (cache_logits caches those)"
        if not isinstance(dataset, datasets.Dataset) or "attention_mask" not in columns:
            return "that takes a datasets.Dataset with an attention_mask"
        if isinstance(dataset.features["attention_mask"].feature, datasets.List):
            return "that takes rows of one sequence, not of several choices"
        return None
