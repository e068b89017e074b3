"""MiniLM's deep self-attention distillation (Wang et al., 2020, section 3)."""

from torch import Tensor

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .attention_kl import attention_kl
from .relation import LastLayerLoss, relation_kl


class MiniLMLoss(LastLayerLoss):
    """L = KL(A^T ‖ A) + KL(R^T ‖ R), of the last mapped layers only.

    A are the attention probabilities (`attention_kl`) and R = softmax(V·Vᵀ/√d) the relations of the values
    (`relation_kl`). Each attention head is compared with the teacher's of the same number; widths may differ.

    Args:
        weight: λ, default 1.
        block: The number of queries whose scores are computed at a time, default 128.
    """

    name = "minilm"
    needs_equal_heads = True
    citation = (
        "Wang et al. (2020). MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained "
        "Transformers. arXiv:2002.10957."
    )

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The sum of the two divergences, (B,).

        Raises:
            ValueError: If the numbers of attention heads differ, or if a model does not return queries and keys.
        """
        student_attention, teacher_attention = self._last_layers(student, teacher, layer_mapping)
        mask = student.attention_mask
        attention = attention_kl(student_attention, teacher_attention, mask, self.block)
        return attention + relation_kl(student_attention.value, teacher_attention.value, mask, self.block)
