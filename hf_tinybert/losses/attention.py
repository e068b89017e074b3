"""Attention distillation: squared error of the scores before softmax (TinyBERT, Jiao et al., 2020, equation 7)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..activations import Activations, QueryKey
from ..layer_mapping import LayerMapping
from .attention_kl import score_matrix
from .base import TINYBERT, DistillationLoss, check_equal_heads
from .relation import regroup_heads

ATTENTION_HEADS = ("equal", "mean")


def attention_score_mse(
    student_query: Tensor,
    student_key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    attention_mask: Tensor | None = None,
    student_scaling: float | None = None,
    teacher_scaling: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(1/H)·Σ_h ‖C_s·Q_sK_sᵀ − C_t·Q_tK_tᵀ‖² / n² of each sequence, over its n real tokens, without S×S in memory.

    With Q = [C_s·Q_s, −C_t·Q_t] and K = [K_s, K_t] the difference of the scores is QKᵀ, and
    ‖QKᵀ‖² = ⟨QᵀQ, KᵀK⟩. This is exact and linear in S. Up to S = 2·(d_s + d_t) the product QKᵀ itself costs less and
    is computed instead. Gradients flow to the student only.

    The Gram matrices QᵀQ and KᵀK cancel. With r = ‖scores‖ / ‖difference of the scores‖ the relative error in float32
    is about 1e-6·r for the gradient and 1e-7·r² for the value; on a CPU, which computes the value's Gram matrices in
    float64, about 1e-6·r for both. If that is too much, pass `dtype=torch.float64`.

    The original code includes the queries at padding; this function does not.

    Args:
        student_query: Q_s, (B, H, S, d_s).
        student_key: K_s, (B, H, S, d_s).
        teacher_query: Q_t, (B, H, S, d_t); d_t may differ from d_s.
        teacher_key: K_t, (B, H, S, d_t).
        attention_mask: (B, S), true at real tokens; None if every token is real.
        student_scaling: C_s, default d_s^−½.
        teacher_scaling: C_t, default d_t^−½.
        dtype: The precision of the matrix products and of the result, default float32.

    Returns:
        (B,).

    Raises:
        ValueError: If the numbers of heads differ.
    """
    check_equal_heads("attention", student_query.shape[1], teacher_query.shape[1])
    squared = _SquaredScoreDifference.apply(
        student_query,
        student_key,
        teacher_query,
        teacher_key,
        attention_mask,
        student_query.shape[-1] ** -0.5 if student_scaling is None else student_scaling,
        teacher_query.shape[-1] ** -0.5 if teacher_scaling is None else teacher_scaling,
        dtype,
    )
    return squared.mean(1) / _squared_length(attention_mask, student_query.shape[-2])


class _SquaredScoreDifference(torch.autograd.Function):
    """‖C_s·Q_sK_sᵀ − C_t·Q_tK_tᵀ‖² of each head, (B, H); saves (B, H, S, d) and (B, H, d, d) for backward.

    A Function of its own because the backward pass needs half of what autograd would compute (nothing for the
    teacher's part of Q and K), and has to keep out of autocast and TF32 as the forward pass does.
    """

    @staticmethod
    def forward(
        ctx, student_query, student_key, teacher_query, teacher_key, mask, student_scaling, teacher_scaling, dtype
    ):
        with _exact_matmul(student_query):
            query = _joined(student_query, teacher_query, student_scaling, -teacher_scaling, dtype)
            key = _joined(student_key, teacher_key, 1.0, 1.0, dtype)
            if mask is not None:
                padding = ~mask.bool()[:, None, :, None]
                query, key = query.masked_fill_(padding, 0), key.masked_fill_(padding, 0)
            ctx.direct = query.shape[-2] <= 2 * query.shape[-1]  # faster then, by operations and by the clock
            if ctx.direct:
                difference = query @ key.mT
                squared = torch.linalg.vector_norm(difference, dim=(-1, -2)).square_()  # in one pass
                ctx.save_for_backward(query, key, difference)
            else:
                # The value cancels more than the gradient does. Accelerators may be 32 times slower in double.
                gram_dtype = torch.float64 if query.device.type == "cpu" else dtype
                query_gram, key_gram = _gram_matrix(query.to(gram_dtype)), _gram_matrix(key.to(gram_dtype))
                squared = (query_gram.double() * key_gram).sum((-1, -2)).to(dtype)
                ctx.save_for_backward(query, key, query_gram.to(dtype), key_gram.to(dtype))
        ctx.student = student_query.shape[-1], student_query.dtype, student_scaling
        return squared

    @staticmethod
    def backward(ctx, grad):
        d, dtype, scaling = ctx.student
        query, key, *saved = ctx.saved_tensors
        grad = 2 * grad[:, :, None, None].to(query.dtype)
        with _exact_matmul(query):
            if ctx.direct:  # D·K_s and Dᵀ·Q_s with D = QKᵀ
                (difference,) = saved
                query_grad, key_grad = difference @ key[..., :d], difference.mT @ query[..., :d]
            else:  # the same products in the other order: Q·(KᵀK_s) and K·(QᵀQ_s)
                query_gram, key_gram = saved
                query_grad, key_grad = query @ key_gram[..., :d], key @ query_gram[..., :d]
        return (query_grad * (grad * scaling)).to(dtype), (key_grad * grad).to(dtype), *[None] * 6


def _joined(student: Tensor, teacher: Tensor, student_factor: float, teacher_factor: float, dtype: torch.dtype):
    d = student.shape[-1]
    joined = student.new_empty((*student.shape[:-1], d + teacher.shape[-1]), dtype=dtype)
    # torch.cat of such views takes three times as long on a CPU.
    torch.mul(student.to(dtype), student_factor, out=joined[..., :d])
    torch.mul(teacher.to(dtype), teacher_factor, out=joined[..., d:])
    return joined


def _gram_matrix(vectors: Tensor) -> Tensor:
    return vectors.mT @ vectors


def score_matrix_mse(student_scores: Tensor, teacher_scores: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The loss of `attention_score_mse` from the scores themselves: the readable reference, quadratic in S.

    It serves architectures whose scores are more than a product of query and key (DeBERTa).

    Args:
        student_scores: (B, H, S, S), before softmax.
        teacher_scores: (B, H, S, S), before softmax.
        attention_mask: (B, S), true at real tokens; None if every token is real.

    Returns:
        (B,) in float32.
    """
    difference = student_scores.float() - teacher_scores.float()
    if attention_mask is not None:
        real = attention_mask.bool()
        difference = difference.masked_fill(~(real[:, None, :, None] & real[:, None, None, :]), 0)
    return difference.square().sum((-1, -2)).mean(1) / _squared_length(attention_mask, difference.shape[-1])


def average_heads(attention: QueryKey | Tensor, heads: int) -> QueryKey | Tensor:
    """The scores of a layer, averaged over groups of neighbouring heads.

    The mean of n products Q_iK_iᵀ is [Q_1 … Q_n]·[K_1 … K_n]ᵀ/n, the product of one wider head.

    Args:
        attention: Queries and keys of H heads, or scores (B, H, S, S).
        heads: The number of groups, a divisor of H.

    Returns:
        Queries and keys of `heads` heads, or scores (B, `heads`, S, S).
    """
    if isinstance(attention, Tensor):
        return attention.float().unflatten(1, (heads, -1)).mean(2)
    query, key = regroup_heads(attention.query, heads), regroup_heads(attention.key, heads)
    return QueryKey(query, key, attention.scaling * heads / attention.query.shape[1])


class AttentionLoss(DistillationLoss):
    """L = Σ_m (1/H)·Σ_h MSE(A_m,h, A^T_g(m),h) of attention scores before softmax (equation 7).

    Args:
        weight: λ, default 1.
        dtype: The precision of the matrix products of `attention_score_mse`, default float32, or its name.
        heads: `"equal"` (default) compares the models head by head. `"mean"` is for a model that has n times the
            other's heads: the mean scores of each n neighbouring heads are compared (`average_heads`).

    Raises:
        ValueError: If `heads` is neither, or if `dtype` names no dtype.
    """

    name = "attention"
    reads = frozenset({"attentions"})
    citation = TINYBERT

    def __init__(self, weight: float = 1.0, dtype: torch.dtype | str = torch.float32, heads: str = "equal"):
        super().__init__(weight)
        if heads not in ATTENTION_HEADS:
            raise ValueError(f"heads={heads!r} of the attention loss: give one of {', '.join(ATTENTION_HEADS)}.")
        self.dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(self.dtype, torch.dtype):
            raise ValueError(f"dtype={dtype!r} of the attention loss: give torch.float32 or torch.float64.")
        self.heads = heads
        self.needs_equal_heads = heads == "equal"

    @property
    def settings(self) -> dict[str, Any]:
        return {"dtype": str(self.dtype).removeprefix("torch."), "heads": self.heads}

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Check that the numbers of heads are equal or, with `heads="mean"`, that one is a multiple of the other.

        Args:
            student: The student's number of attention heads.
            teacher: The teacher's number of attention heads.
            widths: D of the student and of the teacher; not needed.

        Raises:
            ValueError: If they are not; the message says what to do.
        """
        super().check_heads(student, teacher)
        if max(student, teacher) % min(student, teacher):
            raise ValueError(
                f"The student has {student} attention heads and the teacher {teacher}: attention_heads='mean' "
                f"averages whole groups. Build the student with a divisor of {teacher} as num_attention_heads, or "
                "take the 'relation' loss, which takes any numbers."
            )

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The sum over the mapped layers, (B,).

        Raises:
            ValueError: If `check_heads` refuses the numbers of heads.
        """
        return sum(
            self._layer_loss(student.attentions[m - 1], teacher.attentions[g - 1], student.attention_mask)
            for m, g in self.attention_layers(layer_mapping)
        )

    def _layer_loss(self, student: QueryKey | Tensor, teacher: QueryKey | Tensor, mask: Tensor | None) -> Tensor:
        student_heads, teacher_heads = _head_count(student), _head_count(teacher)
        self.check_heads(student_heads, teacher_heads)
        if student_heads != teacher_heads:
            common = min(student_heads, teacher_heads)
            student, teacher = average_heads(student, common), average_heads(teacher, common)
        if isinstance(student, QueryKey) and isinstance(teacher, QueryKey):
            return attention_score_mse(
                student.query,
                student.key,
                teacher.query,
                teacher.key,
                mask,
                student.scaling,
                teacher.scaling,
                self.dtype,
            )
        return score_matrix_mse(score_matrix(student), score_matrix(teacher), mask)


def _head_count(attention: QueryKey | Tensor) -> int:
    return (attention.query if isinstance(attention, QueryKey) else attention).shape[1]


def _squared_length(attention_mask: Tensor | None, length: int) -> Tensor | int:
    return length**2 if attention_mask is None else attention_mask.sum(-1).clamp(min=1).float().square()


@contextlib.contextmanager
def _exact_matmul(tensor: Tensor) -> Iterator[None]:
    """Neither autocast nor TF32: the Gram form subtracts numbers that agree in their leading digits."""
    matmul = torch.backends.cuda.matmul
    tf32, inherited = matmul.fp32_precision == "tf32", torch.backends.fp32_precision == "tf32"
    if tf32:
        matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    finally:
        if tf32:
            matmul.fp32_precision = "none" if inherited else "tf32"  # "none" follows torch.backends.fp32_precision
