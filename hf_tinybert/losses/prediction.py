"""Prediction-layer distillation (TinyBERT, Jiao et al., 2020, equation 10)."""

from typing import Any

from torch import Tensor

from ..activations import Activations
from ..layer_mapping import LayerMapping
from ..models.prediction_heads import soft_binary_cross_entropy, soft_cross_entropy, span_cross_entropy
from .base import DistillationLoss
from .citations import TINYBERT

__all__ = ["PredictionLoss", "soft_binary_cross_entropy", "soft_cross_entropy", "span_cross_entropy"]


class PredictionLoss(DistillationLoss):
    """The distance of the student's predictions to the teacher's, in the form that the kind of head calls for.

    Classes, choices and masked tokens: `soft_cross_entropy`. Classes of tokens: its mean over real tokens. Spans:
    `span_cross_entropy`. Several labels: `soft_binary_cross_entropy`. Regression: the squared difference of the scores.
    See `hf_tinybert.models.prediction_heads`.

    Args:
        weight: λ, default 1.
        temperature: t > 0, default 1 as in the paper.

    Raises:
        ValueError: If the temperature is not positive.
    """

    name = "prediction"
    reads = frozenset({"logits"})
    citation = TINYBERT

    def __init__(self, weight: float = 1.0, temperature: float = 1.0):
        super().__init__(weight)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}.")
        self.temperature = float(temperature)

    @property
    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """One value for each example, (B,)."""
        return student.prediction_head.soft_loss(student.logits, teacher.logits, self.temperature, student.logits_mask)
