"""DistilBERT's cosine loss (Sanh et al., 2019, arXiv 1910.01108, section 2)."""

from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations, token_mean
from ..layer_mapping import LayerMapping
from .base import DistillationLoss


def cosine_distance(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """1 − cos(h_s, h_t), mean over the real tokens of each sequence, (B,) in float32.

    States are (B, S, D), the student's in the teacher's width; `attention_mask` is (B, S).
    """
    similarity = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return token_mean(1 - similarity, attention_mask)


class CosineLoss(DistillationLoss):
    """L = `cosine_distance` of the hidden states of the last mapped layers.

    Where the widths differ the student's state is projected first; DistilBERT keeps the width of its teacher.
    """

    name = "cosine"
    reads = frozenset({"hidden_states"})
    projects = True
    projects_equal_widths = False

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """(B,)."""
        ((m, g),) = self.hidden_layers(layer_mapping)
        return cosine_distance(self.student_states(student)[m], teacher.hidden_states[g], student.attention_mask)
