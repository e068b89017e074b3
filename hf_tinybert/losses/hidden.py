"""Hidden-state and embedding distillation (TinyBERT paper, equations 8 and 9)."""

from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations, token_mean
from ..layer_mapping import LayerMapping
from .base import DistillationLoss


def hidden_state_mse(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """MSE(H_s, H_t) of each sequence over its n real tokens: ‖H_s − H_t‖² / (n·D), (B,) in float32.

    `student_hidden` and `teacher_hidden` are (B, S, D), the student's already projected to the teacher's width;
    `attention_mask` is (B, S). The original code averages over padding too; this does not.
    """
    squared = F.mse_loss(student_hidden.float(), teacher_hidden.float(), reduction="none")  # one pass each way
    return token_mean(squared.sum(-1), attention_mask) / student_hidden.shape[-1]


class HiddenLoss(DistillationLoss):
    """L = Σ_m MSE(H_m·W_h + b, H^T_g(m)) over the mapped layers, which share the projection (equation 8).

    The bias b is the original code's; the equation has none.
    """

    name = "hidden"
    reads = frozenset({"hidden_states"})
    projects = True

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """Sum over the mapped layers of `hidden_state_mse`, (B,)."""
        projected = student.projected_states[self.name]
        return sum(
            hidden_state_mse(projected[m], teacher.hidden_states[g], student.attention_mask)
            for m, g in self.hidden_layers(layer_mapping)
        )


class EmbeddingLoss(HiddenLoss):
    """L = MSE(E·W_e, E^T) of the embedding outputs, with a projection of its own (equation 9)."""

    name = "embedding"

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The embedding outputs, whatever the mapping."""
        return [(0, 0)]
