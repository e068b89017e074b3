"""The student's own label loss as one term among the others."""

from torch import Tensor

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import DistillationLoss


class TaskLoss(DistillationLoss):
    """The loss that plain `Trainer` would compute from the labels. The paper trains without it.

    It includes label smoothing, `compute_loss_func` and Trainer's normalisation by `num_items_in_batch`.

    Args:
        weight: λ, default 1.
    """

    name = "task"
    reads = frozenset({"loss"})

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The scalar that Trainer computed."""
        return student.loss
