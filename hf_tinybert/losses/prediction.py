"""Prediction-layer distillation (TinyBERT paper, equation 10)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations, Logits
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


def span_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, attention_mask: Tensor | None = None
) -> Tensor:
    """`soft_cross_entropy` over the real tokens, mean of the start's and the end's, (B,) in float32.

    Logits are (B, S, 2), of the start and the end of an answer; `attention_mask` is (B, S).
    """
    target, logits = (logits.float().mT / temperature for logits in (teacher_logits, student_logits))
    if attention_mask is not None:
        padding = ~attention_mask.bool()[:, None]
        target, logits = (values.masked_fill(padding, torch.finfo(values.dtype).min) for values in (target, logits))
    return soft_cross_entropy(logits, target)  # whose mean over tokens is the one over start and end here


def soft_binary_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−[p·log q + (1 − p)·log(1 − q)] with p = σ(z_T/t), q = σ(z_S/t), mean over the labels, (B,) in float32.

    Logits are (B, C), of C labels that exclude each other in no way.
    """
    target = (teacher_logits.float() / temperature).sigmoid()
    return F.binary_cross_entropy_with_logits(student_logits.float() / temperature, target, reduction="none").mean(-1)


class PredictionLoss(DistillationLoss):
    """Soft cross-entropy to the teacher's logits, in the form that the head calls for (`heads.Logits`).

    Classes: `soft_cross_entropy`, of token classes its mean over real tokens, in masked language modelling over the
    masked ones. Spans: `span_cross_entropy`. Several labels: `soft_binary_cross_entropy`. A regression head (C = 1):
    the squared distance to the teacher's score. `temperature` t > 0, default 1 as in the paper. Raises ValueError
    otherwise.
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
        pair, mask = (student.logits, teacher.logits), student.attention_mask
        if student.kind is Logits.POSITIONS:
            return span_cross_entropy(*pair, self.temperature, mask)
        if student.kind is Logits.LABELS:
            return soft_binary_cross_entropy(*pair, self.temperature)
        if student.logits_mask is not None:  # a tenth of the tokens, each with as many logits as the vocabulary
            predicted = student.logits_mask.nonzero(as_tuple=True)
            values = soft_cross_entropy(*(logits[predicted] for logits in pair), self.temperature)
            every = values.new_zeros(student.logits_mask.shape).index_put(predicted, values)
            return token_mean(every, student.logits_mask)
        if student.logits.shape[-1] == 1:  # a softmax over one class is constant and would train nothing
            squared = (student.logits.float() - teacher.logits.float()).square().squeeze(-1)
            return token_mean(squared, mask) if squared.dim() > 1 else squared
        return soft_cross_entropy(*pair, self.temperature, mask)
