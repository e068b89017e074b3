"""Learned projections W of student states to the teacher's width, living inside the student while it trains.

They are a submodule of the student and run in its forward, by a hook that appends the projected states to the
`hidden_states` that it returns. So the optimizer, clipping, zero_grad, DDP, FSDP and mixed precision reach them with
no code of ours; saving, best-model loading and the Hub see the student without them.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from .activations import Activations
from .layer_mapping import LayerMapping
from .least_squares import Moments, ridge, write_linear
from .losses import DistillationLoss

PROJECTIONS = "distillation_projections"
PROJECTIONS_FILE = f"{PROJECTIONS}.safetensors"


class Projections(nn.Module):
    """One linear map from the student's D to a teacher's for each loss that projects; its layers share it.

    `layers` is {loss name: pairs (student, teacher)} for each teacher, 0 being the embedding output. The maps to the
    first teacher are named by the loss, those to the second `{loss}_teacher2`.
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

    def split(self, projected: tuple[Tensor, ...]) -> list[dict[str, dict[int, Tensor]]]:
        """The output of `forward` as {loss name: {layer: (B, S, teacher's D)}} for each teacher."""
        states = iter(projected)
        return [{loss: {m: next(states) for m, _ in pairs} for loss, pairs in of.items()} for of in self.layers]

    @torch.no_grad()
    def fit(self, states: Iterable[tuple[Sequence[Tensor], Sequence[Activations], Tensor | slice]]) -> None:
        """Start at the least-squares maps of `states`: the student's, the teachers', and where tokens are real."""
        moments = defaultdict(Moments)
        for ours, teachers, real in states:
            for k, (teacher, of_teacher) in enumerate(zip(teachers, self.layers, strict=True)):
                for loss, pairs in of_teacher.items():
                    for m, g in pairs:
                        x, y = ours[m][real], teacher.hidden_states[g].to(ours[m].device)[real]
                        moments[_name(loss, k)].add(x.flatten(0, -2), y.flatten(0, -2))
        for name, found in moments.items():
            write_linear(getattr(self, name), ridge(found, torch.zeros_like(found.cross), 1e-4))

    @contextlib.contextmanager
    def attached(self, student: PreTrainedModel):
        """Live in `student` and append the projected states to its `hidden_states` while it is in train mode."""
        student.add_module(PROJECTIONS, self)
        hook = student.register_forward_hook(_append_projected_states)
        try:
            yield
        finally:
            hook.remove()
            student._modules.pop(PROJECTIONS, None)

    def save(self, folder: str | Path) -> None:
        """Write `distillation_projections.safetensors` into a checkpoint folder."""
        save_file(self.state_dict(), Path(folder, PROJECTIONS_FILE))

    def load(self, folder: str | Path) -> None:
        """Read them back, so that resuming is exact. Raises ValueError where the file is missing or does not fit."""
        path = Path(folder, PROJECTIONS_FILE)
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {PROJECTIONS_FILE}: it was saved with save_only_model=True or by a trainer without "
                "hidden-state losses. Resume with the losses of that run, or start a new one from its model."
            )
        try:
            self.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path} is corrupt or belongs to other losses or models: {error}") from error


def _name(loss: str, teacher: int) -> str:
    return loss if teacher == 0 else f"{loss}_teacher{teacher + 1}"


def _append_projected_states(student: PreTrainedModel, args, outputs):
    hidden_states = outputs.get("hidden_states") if student.training else None
    if hidden_states:
        outputs["hidden_states"] = tuple(hidden_states) + getattr(student, PROJECTIONS)(hidden_states)
    return outputs


@contextlib.contextmanager
def detached(student: nn.Module):
    """The plain student, for a moment in which it is saved or loaded; its projections return at the end."""
    projections = student._modules.pop(PROJECTIONS, None)
    try:
        yield
    finally:
        if projections is not None:
            student._modules[PROJECTIONS] = projections


def build_projections(
    losses: Sequence[DistillationLoss],
    layer_mappings: Sequence[LayerMapping],
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
) -> Projections | None:
    """What `losses` project of `student` for `teachers`, each with its layer mapping; None where that is nothing."""
    width, layers = student.config.hidden_size, []
    widths = [teacher.config.hidden_size for teacher in teachers]
    for mapping, theirs in zip(layer_mappings, widths, strict=False):
        projecting = [loss for loss in losses if loss.projects and (loss.projects_equal_widths or width != theirs)]
        layers.append({loss.name: loss.hidden_layers(mapping) for loss in projecting})
    if not any(layers):
        return None
    return Projections(layers, width, widths).to(student.device, student.dtype)
