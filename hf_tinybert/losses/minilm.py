"""MiniLM's deep self-attention distillation (Wang et al., 2020, arXiv 2002.10957, section 3)."""

from torch import Tensor

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .attention_kl import attention_kl
from .relation import LastLayerLoss, relation_kl


class MiniLMLoss(LastLayerLoss):
    """L = KL(A^T ‖ A) + KL(R^T ‖ R), of the last mapped layers only.

    A are attention probabilities (`attention_kl`), R = softmax(V·Vᵀ/√d) value relations (`relation_kl`), each head
    against the teacher's of the same number; widths may differ.
    """

    name = "minilm"
    needs_equal_heads = True

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """Sum of the two, (B,)."""
        ours, theirs = self._last_layers(student, teacher, layer_mapping)
        rest = student.attention_mask, self.block
        return attention_kl(ours, theirs, *rest) + relation_kl(ours.value, theirs.value, *rest)
