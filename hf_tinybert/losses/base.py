"""What every distillation loss is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..activations import Activations
from ..layer_mapping import LayerMapping


class DistillationLoss(nn.Module):
    """A weighted term of the distillation objective, λ·L. Subclass it to pass your own in `losses=[...]`.

    `forward(student, teacher, layer_mapping)` returns one value for each example, (B,); the trainer takes the mean over
    the accumulated and global batch. A scalar is taken as already normalised in that way. Parameters of the loss
    (`nn.Parameter`) train with the student, are in its checkpoints and never in the saved student.

    Args:
        weight: λ, default 1.

    Attributes:
        name: The log shows the value before λ as `{name}_loss`. Unique in a trainer.
        reads: What must be captured: "attentions" (with "values"), "hidden_states", "logits", "loss".
        projects: Whether the student's hidden states come through a learned projection to the teacher's width.
        projects_equal_widths: Whether they do so even if the widths are equal.
        needs_equal_heads: Whether student and teacher must have as many attention heads as each other.
        citation: Where the method comes from; the model card cites it.

    Raises:
        ValueError: If the weight is not a finite number.
    """

    name: str
    reads: frozenset[str] = frozenset()
    projects: bool = False
    projects_equal_widths: bool = True
    needs_equal_heads: bool = False
    citation: ClassVar[str | None] = None

    def __init__(self, weight: float = 1.0):
        super().__init__()
        if not math.isfinite(weight):
            raise ValueError(f"The weight of {type(self).__name__} must be a finite number, not {weight}.")
        self.weight = float(weight)

    @property
    def settings(self) -> dict[str, Any]:
        """What its value depends on beside the weight, for the student's lineage; values that JSON can hold."""
        return {}

    @property
    def reads_layers(self) -> bool:
        """Whether it reads attention or hidden states, so that each of several teachers teaches it."""
        return bool(self.reads & {"attentions", "hidden_states"})

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """Pairs (student, teacher) of the hidden states that this loss reads; 0 is the embedding output."""
        return layer_mapping if "hidden_states" in self.reads else []

    def attention_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """Pairs (student, teacher) of the layers whose attention this loss reads, counted from 1."""
        return layer_mapping if "attentions" in self.reads else []

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Check that this loss can compare models with these numbers of attention heads.

        Args:
            student: The student's number of attention heads.
            teacher: The teacher's number of attention heads.
            widths: D of the student and of the teacher, if they are known.

        Raises:
            ValueError: If it cannot.
        """
        if self.needs_equal_heads:
            check_equal_heads(self.name, student, teacher)

    def student_states(self, student: Activations) -> Mapping[int, Tensor] | Sequence[Tensor | None]:
        """The student's hidden states by layer, through this loss's projection if it has one."""
        return student.projected_states.get(self.name, student.hidden_states)

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """One value for each example, (B,)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def check_equal_heads(loss: str, student: int, teacher: int) -> None:
    """Check that two models have as many attention heads as each other.

    Args:
        loss: The name of the loss that needs it.
        student: The student's number of attention heads.
        teacher: The teacher's number of attention heads.

    Raises:
        ValueError: If they do not; the message says what to do.
    """
    if student != teacher:
        raise ValueError(
            f"The student has {student} attention heads and the teacher {teacher}, and the {loss} loss compares them "
            f"head by head: build the student with num_attention_heads={teacher} (head sizes may differ). Or drop "
            f"'{loss}' from loss_type and keep 'hidden', or take the 'relation' loss, which takes any numbers; the "
            "'attention' loss with attention_heads='mean', averages of groups, scored lower than either (CoLA)."
        )
