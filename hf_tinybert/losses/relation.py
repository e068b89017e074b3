"""MiniLMv2's self-attention relations (Wang et al., 2021, arXiv 2012.15828, section 3), in blocks of queries."""

import torch
from torch import Tensor

from ..activations import Activations, QueryKey
from ..layer_mapping import LayerMapping
from .base import DistillationLoss

NEVER = -1e30  # a score that softmax turns into 0, and that still can be subtracted from itself


def relation_kl(student: Tensor, teacher: Tensor, attention_mask: Tensor | None = None, block: int = 128) -> Tensor:
    """KL(R^T ‖ R) of relations R = softmax(A·Aᵀ/√d_r), mean over relation heads and real rows, (B,) in float32.

    `student` and `teacher` are the A of one kind (queries, keys or values), (B, A_r, S, d_r): as many heads, head
    sizes may differ. `attention_mask` is (B, S). `block` rows at a time: the memory is linear in S, and the gradient,
    to the student only, is made in the same pass.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"The student has {student.shape[1]} relation heads and the teacher {teacher.shape[1]}.")
    return _RelationKL.apply(student, teacher, attention_mask, block)


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, mask, block):
        batch, heads, length, d = student.shape
        total = torch.zeros(batch, device=student.device)
        gradient = torch.zeros_like(student, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for start in range(0, length, block):
            here = slice(start, start + block)
            ours, theirs = ((x[:, :, here] @ x.mT * x.shape[-1] ** -0.5).float() for x in (student, teacher))
            if mask is not None:
                padding = ~mask.bool()[:, None, None, :]
                ours, theirs = ours.masked_fill_(padding, NEVER), theirs.masked_fill_(padding, NEVER)
            ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
            target = theirs.exp()
            divergence = (theirs.sub_(ours) * target).sum(-1)
            score = ours.exp_().sub_(target)  # gradient of A·Aᵀ
            if mask is not None:
                divergence, score = divergence * mask[:, None, here], score * mask[:, None, here, None]
            total += divergence.sum((1, 2))
            if gradient is not None:  # to the rows here, and as keys to all
                score = score.to(student.dtype)
                gradient[:, :, here] += score @ student
                gradient += score.mT @ student[:, :, here]
        count = heads * (length if mask is None else mask.sum(1).clamp(min=1))
        ctx.save_for_backward(gradient)
        ctx.factor, ctx.dtype = d**-0.5 / count, student.dtype
        return total / count

    @staticmethod
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return (gradient * (grad * ctx.factor)[:, None, None, None]).to(ctx.dtype), None, None, None


class RelationLoss(DistillationLoss):
    """L = mean over queries, keys and values of `relation_kl`, of the last mapped layers only (equations 3 to 5).

    `relation_heads` is A_r, into which all heads together are cut anew, so that student and teacher may have different
    numbers of attention heads; it must divide the widths of both. Default: the teacher's heads. The paper uses 48 of
    16 for BERT-base's size, and a layer below the last for large teachers (`layer_mapping`).
    """

    name = "relation"
    reads = frozenset({"attentions", "values"})

    def __init__(self, weight: float = 1.0, relation_heads: int | None = None, block: int = 128):
        super().__init__(weight)
        self.relation_heads = relation_heads
        self.block = block

    def attention_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """(B,). Raises ValueError where the relation heads do not divide both widths."""
        ((m, g),) = self.attention_layers(layer_mapping)
        ours, theirs = student.attentions[m - 1], teacher.attentions[g - 1]
        if not (isinstance(ours, QueryKey) and isinstance(theirs, QueryKey)):
            raise ValueError(
                "The relation loss needs queries, keys and values, which this architecture does not hand out: "
                "drop 'relation' from loss_type."
            )
        heads = self.relation_heads or theirs.query.shape[1]
        kinds = zip(ours.vectors, theirs.vectors, strict=True)
        return sum(
            relation_kl(_cut(a, heads), _cut(b, heads), student.attention_mask, self.block) for a, b in kinds
        ) / len(ours.vectors)


def _cut(vectors: Tensor, heads: int) -> Tensor:
    """(B, H, S, d) → (B, `heads`, S, H·d/heads)."""
    width = vectors.shape[1] * vectors.shape[-1]
    if width % heads:
        raise ValueError(f"relation_heads={heads} does not divide the width {width}: choose a divisor of both widths.")
    return vectors.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)
