"""Attention distillation: mean squared error of the scores before softmax (TinyBERT paper, equation 7)."""

import contextlib

import torch
from torch import Tensor

from ..activations import Activations, QueryKey
from ..layer_mapping import LayerMapping
from .base import DistillationLoss, check_equal_heads
from .relation import cut_heads

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
    """(1/H)·Σ_h ‖C_s·Q_sK_sᵀ − C_t·Q_tK_tᵀ‖² / n² of each sequence over its n real tokens, (B,), never holding S×S.

    Queries and keys are (B, H, S, d); d may differ between student and teacher, H may not. `attention_mask` is (B, S);
    a scaling is d^−½ unless given. With Q = [C_sQ_s, −C_tQ_t] and K = [K_s, K_t] the difference is QKᵀ, and
    ‖QKᵀ‖² = ⟨QᵀQ, KᵀK⟩: linear in S, exact, gradients to the student only. Up to S = 2·(d_s + d_t) QKᵀ itself costs
    less and is used. The Gram form cancels: with r = ‖scores‖ / ‖their difference‖ the relative error in float32 is
    about 1e-6·r for the gradient and, except on a CPU (float64 Grams), 1e-7·r² for the value. Where that is too much
    pass `dtype=torch.float64`. Raises ValueError for differing head counts. Unlike the original, skips padded queries.
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
            ctx.direct = query.shape[-2] <= 2 * query.shape[-1]  # where it is faster, by count and by the clock
            if ctx.direct:
                difference = query @ key.mT
                squared = torch.linalg.vector_norm(difference, dim=(-1, -2)).square_()  # in one pass
                ctx.save_for_backward(query, key, difference)
            else:
                # the value cancels more than the gradient does; accelerators may be 32 times slower in double
                gram_dtype = torch.float64 if query.device.type == "cpu" else dtype
                query_gram, key_gram = (x.mT @ x for x in (query.to(gram_dtype), key.to(gram_dtype)))
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
    # torch.cat of such views takes three times as long on a CPU
    torch.mul(student.to(dtype), student_factor, out=joined[..., :d])
    torch.mul(teacher.to(dtype), teacher_factor, out=joined[..., d:])
    return joined


def score_matrix_mse(student_scores: Tensor, teacher_scores: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The same loss from the scores themselves, (B, H, S, S): the readable reference, quadratic in S.

    For architectures whose scores are more than a product of query and key (DeBERTa, MPNet), and for checking.
    """
    difference = student_scores.float() - teacher_scores.float()
    if attention_mask is not None:
        real = attention_mask.bool()
        difference = difference.masked_fill(~(real[:, None, :, None] & real[:, None, None, :]), 0)
    return difference.square().sum((-1, -2)).mean(1) / _squared_length(attention_mask, difference.shape[-1])


def average_heads(attention: QueryKey | Tensor, heads: int) -> QueryKey | Tensor:
    """Scores averaged over groups of H/`heads` neighbouring heads; `heads` must divide H.

    The mean of n products Q_iK_iᵀ is [Q_1 … Q_n]·[K_1 … K_n]ᵀ/n, one wider head: factors stay factors.
    """
    if isinstance(attention, Tensor):
        return attention.float().unflatten(1, (heads, -1)).mean(2)
    query, key = cut_heads(attention.query, heads), cut_heads(attention.key, heads)
    return QueryKey(query, key, attention.scaling * heads / attention.query.shape[1])


class AttentionLoss(DistillationLoss):
    """L = Σ_m (1/H)·Σ_h MSE(A_m,h, A^T_g(m),h) of attention scores before softmax (equation 7).

    `dtype` is that of the Gram matrices: see `attention_score_mse`. `heads="mean"`, default "equal", compares the mean
    scores of each n neighbouring heads where one model has n times the other's heads (`average_heads`).
    Raises ValueError for other `heads`.
    """

    name = "attention"
    reads = frozenset({"attentions"})

    def __init__(self, weight: float = 1.0, dtype: torch.dtype = torch.float32, heads: str = "equal"):
        super().__init__(weight)
        if heads not in ATTENTION_HEADS:
            raise ValueError(f"heads={heads!r} of the attention loss: give one of {', '.join(ATTENTION_HEADS)}.")
        self.dtype = dtype
        self.needs_equal_heads = heads == "equal"

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Raise ValueError for differing counts, or with `heads="mean"` where neither is a multiple of the other."""
        super().check_heads(student, teacher)
        if max(student, teacher) % min(student, teacher):
            raise ValueError(
                f"The student has {student} attention heads and the teacher {teacher}: attention_heads='mean' "
                f"averages whole groups. Build the student with a divisor of {teacher} as num_attention_heads, or "
                "take the 'relation' loss, which takes any numbers."
            )

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """Sum over the mapped layers, (B,)."""
        pairs = [
            (student.attentions[m - 1], teacher.attentions[g - 1]) for m, g in self.attention_layers(layer_mapping)
        ]
        return sum(self._layer_loss(*pair, student.attention_mask) for pair in pairs)

    def _layer_loss(self, student: QueryKey | Tensor, teacher: QueryKey | Tensor, mask: Tensor | None) -> Tensor:
        counts = [(x.query if isinstance(x, QueryKey) else x).shape[1] for x in (student, teacher)]
        self.check_heads(*counts)
        if counts[0] != counts[1]:
            student, teacher = (average_heads(x, min(counts)) for x in (student, teacher))
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
        student, teacher = (x.scores() if isinstance(x, QueryKey) else x for x in (student, teacher))
        return score_matrix_mse(student, teacher, mask)


def _squared_length(attention_mask: Tensor | None, length: int) -> Tensor | int:
    return length**2 if attention_mask is None else attention_mask.sum(-1).clamp(min=1).float().square()


@contextlib.contextmanager
def _exact_matmul(tensor: Tensor):
    """Neither autocast nor TF32: the Gram form subtracts numbers that agree in their leading digits."""
    matmul = torch.backends.cuda.matmul
    tf32 = tensor.is_cuda and matmul.fp32_precision == "tf32"
    if tf32:
        matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    finally:
        if tf32:
            matmul.fp32_precision = "tf32"
