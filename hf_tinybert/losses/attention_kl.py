"""Attention distillation after softmax, as MobileBERT's attention transfer (Sun et al., 2020, arXiv 2004.02984)."""

import torch
from torch import Tensor

from ..activations import Activations, QueryKey, token_mean
from ..layer_mapping import LayerMapping
from .base import DistillationLoss, check_equal_heads

NEVER = -1e30  # a score that softmax turns into 0, and that still can be subtracted from itself


def attention_kl(
    student: QueryKey, teacher: QueryKey, attention_mask: Tensor | None = None, block: int = 128
) -> Tensor:
    """KL(A^T ‖ A) of attention probabilities A = softmax(QKᵀ·scaling), mean over heads and real queries, (B,).

    In float32. Queries and keys are (B, H, S, d): as many heads, head sizes may differ; values are not read.
    `attention_mask` is (B, S). `block` queries at a time: the memory is linear in S, and the gradient, to the student
    only, is made in the same pass. Raises ValueError for differing head counts.
    """
    check_equal_heads("attention_kl", student.query.shape[1], teacher.query.shape[1])
    factors = student.query, student.key, teacher.query, teacher.key
    return _AttentionKL.apply(*factors, attention_mask, student.scaling, teacher.scaling, block)


class _AttentionKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, teacher_query, teacher_key, mask, scaling, teacher_scaling, block):
        batch, heads, length, _ = query.shape
        total = torch.zeros(batch, device=query.device)
        differentiates = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(x, dtype=torch.float32) for x in (query, key)] if differentiates else []
        for start in range(0, length, block):
            here = slice(start, start + block)
            ours = (query[:, :, here] @ key.mT * scaling).float()
            theirs = (teacher_query[:, :, here] @ teacher_key.mT * teacher_scaling).float()
            if mask is not None:
                padding = ~mask.bool()[:, None, None, :]
                ours, theirs = ours.masked_fill_(padding, NEVER), theirs.masked_fill_(padding, NEVER)
            ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
            target = theirs.exp()
            divergence = (theirs.sub_(ours) * target).sum(-1)
            score = ours.exp_().sub_(target)  # gradient of QKᵀ·scaling
            if mask is not None:
                divergence, score = divergence * mask[:, None, here], score * mask[:, None, here, None]
            total += divergence.sum((1, 2))
            if differentiates:
                score = score.to(query.dtype)
                gradients[0][:, :, here] = score @ key
                gradients[1] += score.mT @ query[:, :, here]
        count = heads * (length if mask is None else mask.sum(1).clamp(min=1))
        ctx.save_for_backward(*gradients)
        ctx.factor, ctx.dtype = scaling / count, query.dtype
        return total / count

    @staticmethod
    def backward(ctx, grad):
        factor = (grad * ctx.factor)[:, None, None, None]
        return *((gradient * factor).to(ctx.dtype) for gradient in ctx.saved_tensors), *[None] * 6


def score_matrix_kl(student_scores: Tensor, teacher_scores: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The same loss from the scores themselves, (B, H, S, S), quadratic in S: for DeBERTa and MPNet."""
    check_equal_heads("attention_kl", student_scores.shape[1], teacher_scores.shape[1])
    scores = [x.float().clamp(min=NEVER) for x in (student_scores, teacher_scores)]  # −inf is a mask
    if attention_mask is not None:
        scores = [x.masked_fill(~attention_mask.bool()[:, None, None, :], NEVER) for x in scores]
    ours, theirs = (x.log_softmax(-1) for x in scores)
    return token_mean((theirs.exp() * (theirs - ours)).sum(-1).mean(1), attention_mask)


class AttentionKLLoss(DistillationLoss):
    """L = Σ_m (1/H)·Σ_h KL(A^T_g(m),h ‖ A_m,h) of attention probabilities, over the mapped layers."""

    name = "attention_kl"
    reads = frozenset({"attentions"})
    needs_equal_heads = True

    def __init__(self, weight: float = 1.0, block: int = 128):
        super().__init__(weight)
        self.block = block

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """Sum over the mapped layers, (B,)."""
        return sum(
            self._layer_loss(student.attentions[m - 1], teacher.attentions[g - 1], student.attention_mask)
            for m, g in self.attention_layers(layer_mapping)
        )

    def _layer_loss(self, student: QueryKey | Tensor, teacher: QueryKey | Tensor, mask: Tensor | None) -> Tensor:
        if isinstance(student, QueryKey) and isinstance(teacher, QueryKey):
            return attention_kl(student, teacher, mask, self.block)
        return score_matrix_kl(*(x.scores() if isinstance(x, QueryKey) else x for x in (student, teacher)), mask)
