"""The teacher: loaded, frozen, placed, and asked only for what the losses read."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from .activations import Activations
from .capture import ActivationCapture


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


class TeacherForward:
    """Runs `teacher` without gradients, in eval mode, and returns Activations; its head only if `logits` are read."""

    def __init__(self, teacher: PreTrainedModel, capture: ActivationCapture, logits: bool):
        self.teacher = teacher
        self.capture = capture
        self.model = teacher if logits else teacher.base_model
        self.columns = forward_columns(self.model)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Activations:
        self.teacher.eval()
        inputs = {name: value for name, value in inputs.items() if name in self.columns}
        with self.capture.recording() as scores:
            outputs = self.model(**inputs, **self.capture.forward_arguments)
        return self.capture.read(outputs, inputs.get("attention_mask"), scores)


def forward_columns(model: PreTrainedModel) -> list[str]:
    """The inputs that `model.forward` names, labels left out."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and "label" not in p.name]
