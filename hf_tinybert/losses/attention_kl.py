"""Attention distillation after softmax, as in MobileBERT's attention transfer (Sun et al., 2020)."""

import torch
from torch import Tensor

from ..activations import Activations, QueryKey, token_mean
from ..layer_mapping import LayerMapping
from .base import DistillationLoss, check_equal_heads

NEVER = -1e30  # a score that softmax turns into 0, and that still can be subtracted from itself


def attention_kl(
    student: QueryKey, teacher: QueryKey, attention_mask: Tensor | None = None, block: int = 128
) -> Tensor:
    """KL(A^T ‖ A) of attention probabilities A = softmax(QKᵀ·scaling), the mean over heads and real queries.

    The scores are computed in blocks of queries, so that the memory is linear in S. The gradient is computed in the
    same pass and flows to the student only.

    Args:
        student: Queries and keys, (B, H, S, d); values are not read.
        teacher: The teacher's, with as many heads; d may differ.
        attention_mask: (B, S), true at real tokens; None if every token is real.
        block: The number of queries whose scores are computed at a time, default 128.

    Returns:
        (B,) in float32.

    Raises:
        ValueError: If the numbers of heads differ.
    """
    check_equal_heads("attention_kl", student.query.shape[1], teacher.query.shape[1])
    return _AttentionKL.apply(
        student.query,
        student.key,
        teacher.query,
        teacher.key,
        attention_mask,
        student.scaling,
        teacher.scaling,
        block,
    )


class _AttentionKL(torch.autograd.Function):
    """`attention_kl`; saves the gradients of query and key, (B, H, S, d), for the backward pass."""

    @staticmethod
    def forward(ctx, query, key, teacher_query, teacher_key, mask, scaling, teacher_scaling, block):
        batch, heads, length, _ = query.shape
        total = torch.zeros(batch, device=query.device)
        differentiates = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(x, dtype=torch.float32) for x in (query, key)] if differentiates else []
        for start in range(0, length, block):
            rows = slice(start, start + block)
            student_log = _log_probabilities(query[:, :, rows], key, scaling, mask)
            teacher_log = _log_probabilities(teacher_query[:, :, rows], teacher_key, teacher_scaling, mask)
            teacher_probabilities = teacher_log.exp()
            divergence = (teacher_log.sub_(student_log) * teacher_probabilities).sum(-1)
            score_grad = student_log.exp_().sub_(teacher_probabilities)
            if mask is not None:
                divergence, score_grad = divergence * mask[:, None, rows], score_grad * mask[:, None, rows, None]
            total += divergence.sum((1, 2))
            if differentiates:
                score_grad = score_grad.to(query.dtype)
                gradients[0][:, :, rows] = score_grad @ key
                gradients[1] += score_grad.mT @ query[:, :, rows]
        count = heads * (length if mask is None else mask.sum(1).clamp(min=1))
        ctx.save_for_backward(*gradients)
        ctx.factor, ctx.dtype = scaling / count, query.dtype
        return total / count

    @staticmethod
    def backward(ctx, grad):
        factor = (grad * ctx.factor)[:, None, None, None]
        return *((gradient * factor).to(ctx.dtype) for gradient in ctx.saved_tensors), *[None] * 6


def _log_probabilities(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    scores = (query @ key.mT * scaling).float()
    if mask is not None:
        scores.masked_fill_(~mask.bool()[:, None, None, :], NEVER)
    return scores.log_softmax(-1)


def score_matrix(attention: QueryKey | Tensor) -> Tensor:
    """The scores of a layer in full, (B, H, S, S), from its queries and keys if it has them."""
    return attention.scores() if isinstance(attention, QueryKey) else attention


def score_matrix_kl(student_scores: Tensor, teacher_scores: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The loss of `attention_kl` from the scores themselves, quadratic in S: for DeBERTa.

    Args:
        student_scores: (B, H, S, S), before softmax; −∞ where a key is masked.
        teacher_scores: (B, H, S, S), likewise.
        attention_mask: (B, S), true at real tokens; None if every token is real.

    Returns:
        (B,) in float32.

    Raises:
        ValueError: If the numbers of heads differ.
    """
    check_equal_heads("attention_kl", student_scores.shape[1], teacher_scores.shape[1])
    student_log, teacher_log = (
        _log_softmax(student_scores, attention_mask),
        _log_softmax(teacher_scores, attention_mask),
    )
    return token_mean((teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean(1), attention_mask)


def _log_softmax(scores: Tensor, attention_mask: Tensor | None) -> Tensor:
    scores = scores.float().clamp(min=NEVER)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask.bool()[:, None, None, :], NEVER)
    return scores.log_softmax(-1)


class AttentionKLLoss(DistillationLoss):
    """L = Σ_m (1/H)·Σ_h KL(A^T_g(m),h ‖ A_m,h) of attention probabilities, over the mapped layers.

    Args:
        weight: λ, default 1.
        block: The number of queries whose scores are computed at a time, default 128.
    """

    name = "attention_kl"
    reads = frozenset({"attentions"})
    needs_equal_heads = True
    citation = (
        "Sun et al. (2020). MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices. arXiv:2004.02984."
    )

    def __init__(self, weight: float = 1.0, block: int = 128):
        super().__init__(weight)
        self.block = block

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The sum over the mapped layers, (B,).

        Raises:
            ValueError: If the numbers of heads differ.
        """
        return sum(
            self._layer_loss(student.attentions[m - 1], teacher.attentions[g - 1], student.attention_mask)
            for m, g in self.attention_layers(layer_mapping)
        )

    def _layer_loss(self, student: QueryKey | Tensor, teacher: QueryKey | Tensor, mask: Tensor | None) -> Tensor:
        if isinstance(student, QueryKey) and isinstance(teacher, QueryKey):
            return attention_kl(student, teacher, mask, self.block)
        return score_matrix_kl(score_matrix(student), score_matrix(teacher), mask)
