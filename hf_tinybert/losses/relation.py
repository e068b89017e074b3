"""MiniLMv2's self-attention relations (Wang et al., 2021, arXiv 2012.15828, section 3), in blocks of queries."""

from math import gcd

from torch import Tensor

from ..activations import Activations, QueryKey
from ..layer_mapping import LayerMapping
from .attention_kl import attention_kl
from .base import DistillationLoss


def relation_kl(student: Tensor, teacher: Tensor, attention_mask: Tensor | None = None, block: int = 128) -> Tensor:
    """KL(R^T ‖ R) of relations R = softmax(A·Aᵀ/√d_r), mean over relation heads and real rows, (B,) in float32.

    `student` and `teacher` are the A of one kind (queries, keys or values), (B, A_r, S, d_r): as many heads, head
    sizes may differ. `attention_mask` is (B, S). `attention_kl` with A for query and key: linear in S.
    """
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"The student has {student.shape[1]} relation heads and the teacher {teacher.shape[1]}.")
    return attention_kl(*(QueryKey(a, a, a.shape[-1] ** -0.5) for a in (student, teacher)), attention_mask, block)


class LastLayerLoss(DistillationLoss):
    """What MiniLM and MiniLMv2 share: they read queries, keys and values of the last mapped layers only.

    `block` is the number of queries whose scores are held at a time.
    """

    reads = frozenset({"attentions", "values"})

    def __init__(self, weight: float = 1.0, block: int = 128):
        super().__init__(weight)
        self.block = block

    def attention_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def _last_layers(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> list[QueryKey]:
        ((m, g),) = self.attention_layers(layer_mapping)
        pair = [student.attentions[m - 1], teacher.attentions[g - 1]]
        if not all(isinstance(attention, QueryKey) for attention in pair):
            raise ValueError(
                f"The {self.name} loss needs queries, keys and values, which this architecture does not hand out: "
                f"drop '{self.name}' from loss_type."
            )
        return pair


class RelationLoss(LastLayerLoss):
    """L = mean over queries, keys and values of `relation_kl`, of the last mapped layers only (equations 3 to 5).

    `relation_heads` is A_r, into which all heads together are cut anew, so that student and teacher may have different
    numbers of attention heads; it must divide the widths of both. Default: the teacher's heads. The paper uses 48 of
    16 for BERT-base's size, and a layer below the last for large teachers (`layer_mapping`).
    """

    name = "relation"

    def __init__(self, weight: float = 1.0, relation_heads: int | None = None, block: int = 128):
        super().__init__(weight, block)
        self.relation_heads = relation_heads

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Raise ValueError, naming the numbers that do, where the relation heads do not divide both widths."""
        heads, common = self.relation_heads or teacher, gcd(*widths)
        divisors = [number for number in range(1, common + 1) if common % number == 0]
        if widths and heads not in divisors:
            default = "" if self.relation_heads else " (the teacher's heads, as none are given)"
            raise ValueError(
                f"relation_heads={heads}{default} does not divide both widths, {widths[0]} of the student and "
                f"{widths[1]} of the teacher: give one of {', '.join(map(str, divisors))}."
            )

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """(B,). Raises ValueError where the relation heads do not divide both widths."""
        ours, theirs = self._last_layers(student, teacher, layer_mapping)
        heads = self.relation_heads or theirs.query.shape[1]
        kinds = zip(ours.vectors, theirs.vectors, strict=True)
        return sum(
            relation_kl(cut_heads(a, heads), cut_heads(b, heads), student.attention_mask, self.block) for a, b in kinds
        ) / len(ours.vectors)


def cut_heads(vectors: Tensor, heads: int) -> Tensor:
    """All heads side by side, cut anew: (B, H, S, d) → (B, `heads`, S, H·d/heads)."""
    width = vectors.shape[1] * vectors.shape[-1]
    if width % heads:
        raise ValueError(f"relation_heads={heads} does not divide the width {width}: choose a divisor of both widths.")
    return vectors.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)
