"""DistilBERT's cosine loss (Sanh et al., 2019, section 2)."""

from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations, token_mean
from ..layer_mapping import LayerMapping
from .base import DistillationLoss


def cosine_distance(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """1 − cos(h_s, h_t), the mean over the real tokens of each sequence.

    Args:
        student_hidden: h_s, (B, S, D) in the teacher's width.
        teacher_hidden: h_t, (B, S, D).
        attention_mask: (B, S), true at real tokens; None if every token is real.

    Returns:
        (B,) in float32.
    """
    similarity = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    return token_mean(1 - similarity, attention_mask)


class CosineLoss(DistillationLoss):
    """L = `cosine_distance` of the hidden states of the last mapped layers.

    If the widths differ, the student's states are projected first. DistilBERT has the width of its teacher.

    Args:
        weight: λ, default 1.
    """

    name = "cosine"
    reads = frozenset({"hidden_states"})
    projects = True
    projects_equal_widths = False
    citation = (
        "Sanh et al. (2019). DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter. "
        "arXiv:1910.01108."
    )

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The distance at the last mapped layers, (B,)."""
        ((m, g),) = self.hidden_layers(layer_mapping)
        return cosine_distance(self.student_states(student)[m], teacher.hidden_states[g], student.attention_mask)
