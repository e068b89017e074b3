"""The teacher: loaded, frozen, placed, and asked only for what the losses read."""

import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoConfig, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from .activations import Activations
from .capture import ActivationCapture
from .sharded_map import sharded_map


def load_teacher(name_or_path: str) -> PreTrainedModel:
    """The model of a Hub id or a local folder, by the class that its config names, head included.

    Raises ValueError where the config names no class of transformers (remote code never runs from here) or where the
    files lack weights of the head: an untrained head would teach noise.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    architecture = (config.architectures or ["none"])[0]
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise ValueError(
            f"The config of teacher '{name_or_path}' names the class '{architecture}', unknown to transformers. "
            "Load the teacher yourself (trust_remote_code=True if you trust it) and pass the model."
        )
    teacher, loading = model_class.from_pretrained(name_or_path, output_loading_info=True)
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


TEACHER_LOGITS = "teacher_logits"


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


def weights_digest(model: PreTrainedModel) -> str:
    """A hash of every weight, by name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class TeacherForward:
    """Runs `teacher` without gradients, in eval mode, and returns Activations; its head only if logits are read.

    `compile_options` are those of `torch.compile`; None runs it as it is.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        capture: ActivationCapture,
        reads_logits: bool,
        compile_options: dict[str, Any] | None = None,
    ):
        self.teacher = teacher
        self.capture = capture
        self.captures = bool(capture.attention_layers or capture.hidden_layers)
        self.reads_logits = reads_logits
        models = {True: teacher if reads_logits else teacher.base_model, False: teacher.base_model}
        self._with_head = {head: (model, forward_columns(model)) for head, model in models.items()}
        if compile_options is not None and not capture.records_softmax:
            compiled = {model: torch.compile(model, **compile_options) for model in models.values()}
            self._with_head = {head: (compiled[model], names) for head, (model, names) in self._with_head.items()}
        self.columns = self._with_head[True][1]

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any], head: bool = True) -> Activations:
        """`head=False` leaves the head out although logits are read."""
        self.teacher.eval()
        model, columns = self._with_head[head]
        inputs = {name: value for name, value in inputs.items() if name in columns}
        with self.capture.recording() as scores:
            outputs = model(**inputs, **self.capture.forward_arguments)
        return self.capture.read(outputs, inputs.get("attention_mask"), scores)


def forward_columns(model: PreTrainedModel) -> list[str]:
    """The inputs that `model.forward` names, labels left out."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and "label" not in p.name]
