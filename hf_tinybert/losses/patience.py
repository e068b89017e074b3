"""Patient knowledge distillation, BERT-PKD (Sun et al., 2019, arXiv 1908.09355, equation 7)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import DistillationLoss


def first_token_distance(
    student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """‖h_s/‖h_s‖ − h_t/‖h_t‖‖² of the first real token, [CLS], of each sequence, (B,) in float32, between 0 and 4.

    States are (B, S, D), the student's in the teacher's width; `attention_mask` is (B, S). The original code divides
    by D and the number of layers too; the equation and this do not.
    """
    batch = torch.arange(len(student_hidden), device=student_hidden.device)
    first = torch.zeros_like(batch) if attention_mask is None else attention_mask.int().argmax(-1)
    ours, theirs = (F.normalize(hidden[batch, first].float(), dim=-1) for hidden in (student_hidden, teacher_hidden))
    return (ours - theirs).square().sum(-1)


class PatienceLoss(DistillationLoss):
    """L = Σ_m `first_token_distance` over the mapped layers but the last, which the prediction loss teaches.

    `layer_mapping="uniform"` is PKD-Skip, `"top"` PKD-Last. Where the widths differ the student's states share a
    projection; the paper's are equal. Raises ValueError where only one layer is mapped.
    """

    name = "patience"
    reads = frozenset({"hidden_states"})
    projects = True
    projects_equal_widths = False

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """All pairs but the last."""
        if len(layer_mapping) == 1:
            raise ValueError(
                "The patience loss teaches all mapped layers but the last, and only one is mapped: give the student "
                "more layers or drop 'patience' from loss_type."
            )
        return layer_mapping[:-1]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """Sum over these layers, (B,)."""
        states = self.student_states(student)
        return sum(
            first_token_distance(states[m], teacher.hidden_states[g], student.attention_mask)
            for m, g in self.hidden_layers(layer_mapping)
        )
