"""Learned projections of student states to the teachers' widths."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..activations import Activations
from ..layer_mapping import LayerMapping
from ..least_squares import Moments, ridge, set_linear
from ..losses import DistillationLoss
from ..teachers import Teacher


class Projections(nn.Module):
    """One linear map from the student's D to a teacher's D for each loss that projects; its layers share it.

    The maps to the first teacher are named by the loss, those to the second `{loss}_teacher2`.

    Args:
        layers: {loss name: pairs (student layer, teacher layer)} for each teacher; 0 is the embedding output.
        student_width: The student's D.
        teacher_widths: D of each teacher.
    """

    def __init__(self, layers: Sequence[dict[str, LayerMapping]], student_width: int, teacher_widths: Sequence[int]):
        super().__init__()
        self.layers = layers
        self.count = sum(len(pairs) for of_teacher in layers for pairs in of_teacher.values())
        for teacher, width in enumerate(teacher_widths):
            for loss in layers[teacher]:
                self.add_module(_name(loss, teacher), nn.Linear(student_width, width))

    def forward(self, hidden_states: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        """Every projected state: teacher by teacher, loss by loss, in the order of `layers`."""
        return tuple(
            getattr(self, _name(loss, teacher))(hidden_states[m])
            for teacher, of_teacher in enumerate(self.layers)
            for loss, pairs in of_teacher.items()
            for m, _ in pairs
        )

    def split(self, hidden_states: tuple[Tensor, ...]) -> list[dict[str, dict[int, Tensor]]]:
        """The projected states at the end of `hidden_states`, for each teacher: {loss name: {layer: (B, S, D)}}."""
        states = iter(hidden_states[-self.count :])
        return [{loss: {m: next(states) for m, _ in pairs} for loss, pairs in of.items()} for of in self.layers]

    @torch.no_grad()
    def fit(self, states: Iterable[tuple[Sequence[Tensor], Sequence[Activations], Tensor | slice]]) -> None:
        """Start at the least-squares maps.

        Args:
            states: Batches of the student's hidden states, the teachers' activations, and where tokens are real.
        """
        moments = defaultdict(Moments)
        for student_states, teachers, real in states:
            for k, (teacher, of_teacher) in enumerate(zip(teachers, self.layers, strict=True)):
                for loss, pairs in of_teacher.items():
                    for m, g in pairs:
                        x = student_states[m][real]
                        y = teacher.hidden_states[g].to(student_states[m].device)[real]
                        moments[_name(loss, k)].add(x.flatten(0, -2), y.flatten(0, -2))
        for name, sums in moments.items():
            set_linear(getattr(self, name), ridge(sums, 1e-4))


def _name(loss: str, teacher: int) -> str:
    return loss if teacher == 0 else f"{loss}_teacher{teacher + 1}"


def build_projections(
    losses: Sequence[DistillationLoss], student: PreTrainedModel, teachers: Sequence[Teacher]
) -> Projections | None:
    """What `losses` project of `student` for each of `teachers`; None if they project nothing."""
    width, layers = student.config.hidden_size, []
    widths = [teacher.model.config.hidden_size for teacher in teachers]
    for teacher, teacher_width in zip(teachers, widths, strict=True):
        projecting = [
            loss for loss in losses if loss.projects and (loss.projects_equal_widths or width != teacher_width)
        ]
        layers.append({loss.name: loss.hidden_layers(teacher.layer_mapping) for loss in projecting})
    if not any(layers):
        return None
    return Projections(layers, width, widths).to(student.device, student.dtype)
