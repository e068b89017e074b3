"""What the logits of a head say: one of several classes, any of several labels, or where a span begins and ends."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
)

from .activations import Logits


def logits_of(model: PreTrainedModel) -> Logits:
    """What the logits of a model's head are, by its class and its config's `problem_type`."""
    if type(model).__name__ in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return Logits.POSITIONS
    if model.config.problem_type == "multi_label_classification":
        return Logits.LABELS
    return Logits.CLASSES


def is_masked_lm(model: PreTrainedModel) -> bool:
    """Whether a model predicts masked tokens, so that only the logits at labelled tokens are predictions."""
    return type(model).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


def is_multiple_choice(model: PreTrainedModel) -> bool:
    """Whether a model chooses among the sequences of a row, (B, choices, S)."""
    return type(model).__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()


def read_logits(outputs: Mapping[str, Any]) -> Tensor | None:
    """The logits of one forward pass; those of a span's start and end side by side, (B, S, 2)."""
    if "start_logits" in outputs:
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)
    return outputs.get("logits")
