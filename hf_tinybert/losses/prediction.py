"""Prediction-layer distillation (TinyBERT paper, equation 10)."""

from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import DistillationLoss, token_mean


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, attention_mask: Tensor | None = None
) -> Tensor:
    """CE(z_T/t, z_S/t) = −Σ_c softmax(z_T/t)_c · log softmax(z_S/t)_c of each example, (B,) in float32 (equation 10).

    Logits are (B, C), or (B, S, C) with `attention_mask` (B, S): then the mean over real tokens. No factor t² (the
    paper has none): put it into the weight. The original code divides by C as well; this does not.
    """
    target = F.softmax(teacher_logits.float() / temperature, dim=-1)
    values = -(target * F.log_softmax(student_logits.float() / temperature, dim=-1)).sum(-1)
    return token_mean(values, attention_mask) if values.dim() > 1 else values


class PredictionLoss(DistillationLoss):
    """Soft cross-entropy to the teacher's logits; for a regression head (C = 1) the squared distance to its score.

    `temperature` t > 0, default 1 as in the paper. Raises ValueError otherwise.
    """

    name = "prediction"
    reads = frozenset({"logits"})

    def __init__(self, weight: float = 1.0, temperature: float = 1.0):
        super().__init__(weight)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}.")
        self.temperature = float(temperature)

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """One value an example, (B,)."""
        if student.logits.shape[-1] == 1:  # a softmax over one class is constant and would train nothing
            squared = (student.logits.float() - teacher.logits.float()).square().squeeze(-1)
            return token_mean(squared, student.attention_mask) if squared.dim() > 1 else squared
        return soft_cross_entropy(student.logits, teacher.logits, self.temperature, student.attention_mask)
