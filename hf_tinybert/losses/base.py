"""What every distillation loss is, and the mean over real tokens that they share."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..activations import Activations
from ..layer_mapping import LayerMapping


class DistillationLoss(nn.Module):
    """A weighted term of the distillation objective, λ·L; subclass it to pass your own in `losses=[...]`.

    `forward(student, teacher, layer_mapping)` returns one value an example, (B,): the trainer takes the mean over the
    whole accumulated and global batch. A scalar is taken as already normalised in that way.

    - `name`: the log shows the unweighted value as `{name}_loss`; unique in a trainer.
    - `reads`: what must be captured, of "attentions" (with "values"), "hidden_states", "logits" and "loss".
    - `projects`: whether student states come through a learned projection to the teacher's width, and
      `projects_equal_widths`, default True, whether they do where the widths are equal.
    - `needs_equal_heads`: whether student and teacher must have as many attention heads as each other.
    - `weight`: λ, default 1. Raises ValueError if it is not a finite number.
    """

    name: str
    reads: frozenset[str] = frozenset()
    projects: bool = False
    projects_equal_widths: bool = True
    needs_equal_heads: bool = False

    def __init__(self, weight: float = 1.0):
        super().__init__()
        if not math.isfinite(weight):
            raise ValueError(f"The weight of {type(self).__name__} must be a finite number, not {weight}.")
        self.weight = float(weight)

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """Pairs (student, teacher) of the hidden states that this loss reads; 0 is the embedding output."""
        return layer_mapping if "hidden_states" in self.reads else []

    def attention_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """Pairs (student, teacher) of the layers whose attention scores this loss reads, counted from 1."""
        return layer_mapping if "attentions" in self.reads else []

    def check_heads(self, student: int, teacher: int, *widths: int) -> None:
        """Raise ValueError where this loss cannot compare a model of `student` heads with one of `teacher` heads.

        `widths` are D of the student and of the teacher, where they are known.
        """
        if self.needs_equal_heads:
            check_equal_heads(self.name, student, teacher)

    def student_states(self, student: Activations) -> Mapping[int, Tensor] | Sequence[Tensor | None]:
        """Hidden states by layer: through this loss's projection where it has one, else as they are."""
        return student.projected_states.get(self.name, student.hidden_states)

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """One value an example, (B,)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def check_equal_heads(loss: str, student: int, teacher: int) -> None:
    """Raise ValueError, naming what to do instead, where two models have another number of attention heads."""
    if student != teacher:
        raise ValueError(
            f"The student has {student} attention heads and the teacher {teacher}, and the {loss} loss compares them "
            f"head by head: build the student with num_attention_heads={teacher} (head sizes may differ). Or drop "
            f"'{loss}' from loss_type and keep 'hidden', or take the 'relation' loss, which takes any numbers; the "
            "'attention' loss with attention_heads='mean', averages of groups, scored lower than either (CoLA)."
        )


def token_mean(values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean of (B, S) `values` over the real tokens of each sequence, (B,); padding is ignored even where it is NaN."""
    if attention_mask is None:
        return values.mean(-1)
    real = attention_mask.bool()
    return values.masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1).to(torch.float32)
