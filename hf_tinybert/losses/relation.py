"""MiniLMv2's self-attention relations (Wang et al., 2021, section 3), computed in blocks of queries."""

from math import gcd
from typing import Any

from torch import Tensor

from ..activations import Activations, QueryKey
from ..layer_mapping import LayerMapping
from .attention_kl import attention_kl
from .base import DistillationLoss


def relation_kl(student: Tensor, teacher: Tensor, attention_mask: Tensor | None = None, block: int = 128) -> Tensor:
    """KL(R^T ‖ R) of the relations R = softmax(A·Aᵀ/√d), the mean over relation heads and real tokens.

    This is `attention_kl` with A for both query and key; its memory is linear in S.

    Args:
        student: A, the student's vectors of one kind (queries, keys or values), (B, relation heads, S, d).
        teacher: A^T, the teacher's, with as many relation heads; d may differ.
        attention_mask: (B, S), true at real tokens; None if every token is real.
        block: The number of rows of R that are computed at a time, default 128.

    Returns:
        (B,) in float32.

    Raises:
        ValueError: If the numbers of relation heads differ.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"The student has {student.shape[1]} relation heads and the teacher {teacher.shape[1]}.")
    student_relation = QueryKey(student, student, student.shape[-1] ** -0.5)
    teacher_relation = QueryKey(teacher, teacher, teacher.shape[-1] ** -0.5)
    return attention_kl(student_relation, teacher_relation, attention_mask, block)


class LastLayerLoss(DistillationLoss):
    """What MiniLM and MiniLMv2 share: they read queries, keys and values of the last mapped layers only.

    Args:
        weight: λ, default 1.
        block: The number of queries whose scores are computed at a time, default 128.
    """

    reads = frozenset({"attentions", "values"})

    def __init__(self, weight: float = 1.0, block: int = 128):
        super().__init__(weight)
        self.block = block

    def attention_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def _last_layers(
        self, student: Activations, teacher: Activations, layer_mapping: LayerMapping
    ) -> tuple[QueryKey, QueryKey]:
        ((m, g),) = self.attention_layers(layer_mapping)
        student_attention, teacher_attention = student.attentions[m - 1], teacher.attentions[g - 1]
        if not (isinstance(student_attention, QueryKey) and isinstance(teacher_attention, QueryKey)):
            raise ValueError(
                f"The {self.name} loss needs queries, keys and values, which this architecture does not hand out: "
                f"drop '{self.name}' from loss_type."
            )
        return student_attention, teacher_attention


class RelationLoss(LastLayerLoss):
    """L = the mean of `relation_kl` over queries, keys and values, of the last mapped layers only (equations 3 to 5).

    The vectors of all attention heads together are split anew into relation heads, so that student and teacher may
    have different numbers of attention heads. The paper uses 48 relation heads for teachers of BERT-base's size, and
    a layer below the last for large teachers (`layer_mapping`).

    Args:
        weight: λ, default 1.
        relation_heads: The number of relation heads, a divisor of the widths of student and teacher; default None,
            the number of the teacher's attention heads.
        block: The number of queries whose scores are computed at a time, default 128.
    """

    name = "relation"
    citation = (
        "Wang et al. (2021). MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained "
        "Transformers. arXiv:2012.15828."
    )

    def __init__(self, weight: float = 1.0, relation_heads: int | None = None, block: int = 128):
        super().__init__(weight, block)
        self.relation_heads = relation_heads

    @property
    def settings(self) -> dict[str, Any]:
        return {"relation_heads": self.relation_heads}

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Check that the relation heads divide both widths.

        Args:
            student: The student's number of attention heads.
            teacher: The teacher's number of attention heads.
            widths: D of the student and of the teacher, if they are known.

        Raises:
            ValueError: If they do not; the message names the numbers that do.
        """
        heads, common = self.relation_heads or teacher, gcd(*widths)
        divisors = [number for number in range(1, common + 1) if common % number == 0]
        if widths and heads not in divisors:
            default = "" if self.relation_heads else " (the teacher's heads, as none are given)"
            raise ValueError(
                f"relation_heads={heads}{default} does not divide both widths, {widths[0]} of the student and "
                f"{widths[1]} of the teacher: give one of {', '.join(map(str, divisors))}."
            )

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The mean over queries, keys and values, (B,).

        Raises:
            ValueError: If the relation heads do not divide both widths, or if a model does not return its queries,
                keys and values.
        """
        student_attention, teacher_attention = self._last_layers(student, teacher, layer_mapping)
        heads = self.relation_heads or teacher_attention.query.shape[1]
        divergences = [
            relation_kl(
                regroup_heads(student_vectors, heads),
                regroup_heads(teacher_vectors, heads),
                student.attention_mask,
                self.block,
            )
            for student_vectors, teacher_vectors in zip(
                student_attention.vectors, teacher_attention.vectors, strict=True
            )
        ]
        return sum(divergences) / len(divergences)


def regroup_heads(vectors: Tensor, heads: int) -> Tensor:
    """The vectors of all heads side by side, split into another number of heads.

    Args:
        vectors: (B, H, S, d).
        heads: The new number of heads, a divisor of H·d.

    Returns:
        (B, `heads`, S, H·d/`heads`).

    Raises:
        ValueError: If `heads` does not divide H·d.
    """
    width = vectors.shape[1] * vectors.shape[-1]
    if width % heads:
        raise ValueError(f"relation_heads={heads} does not divide the width {width}: choose a divisor of both widths.")
    return vectors.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)
