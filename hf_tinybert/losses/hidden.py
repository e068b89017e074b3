"""Hidden-state and embedding distillation (TinyBERT, Jiao et al., 2020, equations 8 and 9)."""

from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations, token_mean
from ..layer_mapping import LayerMapping
from .base import TINYBERT, DistillationLoss


def hidden_state_mse(student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """‖H_s − H_t‖² / (n·D) of each sequence, over its n real tokens.

    The original code averages over padding too; this function does not.

    Args:
        student_hidden: H_s, (B, S, D), projected to the teacher's width.
        teacher_hidden: H_t, (B, S, D).
        attention_mask: (B, S), true at real tokens; None if every token is real.

    Returns:
        (B,) in float32.
    """
    squared = F.mse_loss(student_hidden.float(), teacher_hidden.float(), reduction="none")  # one pass each way
    return token_mean(squared.sum(-1), attention_mask) / student_hidden.shape[-1]


class HiddenLoss(DistillationLoss):
    """L = Σ_m MSE(H_m·W_h + b, H^T_g(m)) over the mapped layers, which share the projection (equation 8).

    The bias b is the original code's; the equation has none.

    Args:
        weight: λ, default 1.
    """

    name = "hidden"
    reads = frozenset({"hidden_states"})
    projects = True
    citation = TINYBERT

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The sum of `hidden_state_mse` over the mapped layers, (B,)."""
        projected = student.projected_states[self.name]
        return sum(
            hidden_state_mse(projected[m], teacher.hidden_states[g], student.attention_mask)
            for m, g in self.hidden_layers(layer_mapping)
        )


class EmbeddingLoss(HiddenLoss):
    """L = MSE(E·W_e + b, E^T) of the embedding outputs, with a projection of its own (equation 9).

    Args:
        weight: λ, default 1.
    """

    name = "embedding"

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The embedding outputs, whatever the mapping is."""
        return [(0, 0)]
