"""Prediction-layer distillation (TinyBERT, Jiao et al., 2020, equation 10)."""

from typing import Any

from torch import Tensor

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import TINYBERT, DistillationLoss


class PredictionLoss(DistillationLoss):
    """The distance of the student's predictions to the teacher's, in the form of the prediction head's kind.

    | prediction head | form |
    |---|---|
    | classes, choices, masked tokens | `soft_cross_entropy` |
    | classes of tokens | `soft_cross_entropy`, the mean over real tokens |
    | spans | `span_cross_entropy` |
    | several labels | `soft_binary_cross_entropy` |
    | regression | the squared difference of the scores, whatever the temperature |

    The functions are in `hf_tinybert.models.prediction_heads`.

    Args:
        weight: λ, default 1. The equation has no factor t²; it can be part of λ.
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
        """The soft loss of each example, (B,)."""
        return student.prediction_head.soft_loss(student.logits, teacher.logits, self.temperature, student.logits_mask)
