"""What every distillation loss is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..activations import Activations
from ..layer_mapping import LayerMapping

TINYBERT = "Jiao et al. (2020). TinyBERT: Distilling BERT for Natural Language Understanding. arXiv:1909.10351."


class DistillationLoss(nn.Module):
    """A weighted term of the distillation objective, λ·L. Subclass it to pass your own in `losses=[...]`.

    Parameters of the loss (`nn.Parameter`) train with the student, are saved in its checkpoints and are never part of
    the saved student.

    Args:
        weight: λ, default 1.

    Attributes:
        name: The name of the loss, unique in a trainer. The log shows the value before λ as `{name}_loss`.
        reads: What must be captured: "attentions" (with "values"), "hidden_states", "logits", "loss".
        projects: Whether the student's hidden states come through a learned projection to the teacher's width.
        projects_equal_widths: Whether they do so even if the widths are equal.
        needs_equal_heads: Whether student and teacher must have as many attention heads as each other.
        citation: The paper that the method comes from, which the model card cites; None if there is none.

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
        """The constructor's arguments that the value depends on, beside the weight, for the student's lineage.

        The values are such that JSON can hold them, and `type(loss)(loss.weight, **loss.settings)` is an equal loss.
        Arguments that only trade memory for time (`block`) are left out.
        """
        return {}

    @property
    def reads_layers(self) -> bool:
        """Whether the loss reads attention or hidden states, so that each of several teachers teaches it."""
        return bool(self.reads & {"attentions", "hidden_states"})

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The layers whose hidden states the loss reads.

        Args:
            layer_mapping: The pairs (student layer, teacher layer) of the training.

        Returns:
            Pairs (student layer, teacher layer); 0 is the embedding output.
        """
        return layer_mapping if "hidden_states" in self.reads else []

    def attention_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The layers whose attention the loss reads.

        Args:
            layer_mapping: The pairs (student layer, teacher layer) of the training.

        Returns:
            Pairs (student layer, teacher layer), counted from 1.
        """
        return layer_mapping if "attentions" in self.reads else []

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Check that the loss can compare models with these numbers of attention heads.

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
        """The student's hidden states by layer, each (B, S, D), through the loss's projection if it has one."""
        return student.projected_states.get(self.name, student.hidden_states)

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The loss before λ.

        Args:
            student: The student's activations; those that `reads` does not name may be None.
            teacher: The teacher's activations of the same batch.
            layer_mapping: The pairs (student layer, teacher layer) of the training.

        Returns:
            One value for each example, (B,), of which the trainer takes the mean over the accumulated and global
            batch. A scalar is taken as already normalised in that way.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in {"weight": self.weight, **self.settings}.items())


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
