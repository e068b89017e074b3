"""Patient knowledge distillation, BERT-PKD (Sun et al., 2019, equation 7)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import DistillationLoss


def first_token_distance(
    student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """‖h_s/‖h_s‖ − h_t/‖h_t‖‖² of the first real token of each sequence, [CLS].

    The original code also divides by D and by the number of layers; the equation and this function do not.

    Args:
        student_hidden: (B, S, D) in the teacher's width.
        teacher_hidden: (B, S, D).
        attention_mask: (B, S), true at real tokens; None if every token is real.

    Returns:
        (B,) in float32, between 0 and 4.
    """
    batch = torch.arange(len(student_hidden), device=student_hidden.device)
    first = torch.zeros_like(batch) if attention_mask is None else attention_mask.int().argmax(-1)
    student_token = F.normalize(student_hidden[batch, first].float(), dim=-1)
    teacher_token = F.normalize(teacher_hidden[batch, first].float(), dim=-1)
    return (student_token - teacher_token).square().sum(-1)


class PatienceLoss(DistillationLoss):
    """L = Σ_m `first_token_distance` over the mapped layers but the last, which the prediction loss teaches.

    `layer_mapping="uniform"` is PKD-Skip and `"top"` is PKD-Last. If the widths differ, the student's states share a
    projection; in the paper they are equal.

    Args:
        weight: λ, default 1.
    """

    name = "patience"
    reads = frozenset({"hidden_states"})
    projects = True
    projects_equal_widths = False
    citation = "Sun et al. (2019). Patient Knowledge Distillation for BERT Model Compression. arXiv:1908.09355."

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """All pairs but the last.

        Raises:
            ValueError: If only one layer is mapped.
        """
        if len(layer_mapping) == 1:
            raise ValueError(
                "The patience loss teaches all mapped layers but the last, and only one is mapped: give the student "
                "more layers or drop 'patience' from loss_type."
            )
        return layer_mapping[:-1]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The sum over these layers, (B,)."""
        states = self.student_states(student)
        return sum(
            first_token_distance(states[m], teacher.hidden_states[g], student.attention_mask)
            for m, g in self.hidden_layers(layer_mapping)
        )
