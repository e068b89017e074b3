"""The objective Σ_i λ_i·L_i of one training: every loss over every teacher, λ at each step, and means for the log."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .activations import Activations
from .layer_mapping import LayerMapping
from .loss_weights import balance_factors, gradient_norm, scheduled_weight
from .losses import DistillationLoss
from .projections import PROJECTIONS

LAYERS = {"attentions", "hidden_states"}


def layers_read(losses: Iterable[DistillationLoss], layer_mapping: LayerMapping) -> tuple[LayerMapping, LayerMapping]:
    """Pairs (student, teacher) of the layers of which `losses` read attention, and of which hidden states."""
    losses = list(losses)
    return (
        [pair for loss in losses for pair in loss.attention_layers(layer_mapping)],
        [pair for loss in losses for pair in loss.hidden_layers(layer_mapping)],
    )


class Objective:
    """Σ_i λ_i(t)·L_i with L_i = Σ_k w_k·L_i(student, teacher k), each teacher by a layer mapping of its own.

    A loss that reads no layers is taken once: the logits are the combined ones whichever teacher it is asked with.
    `schedules` has one name a loss (`scheduled_weight`), None keeps every λ; ValueError for another number of them.
    """

    def __init__(
        self,
        losses: Sequence[DistillationLoss],
        schedules: Sequence[str] | None,
        teacher_weights: Sequence[float],
        layer_mappings: Sequence[LayerMapping],
    ):
        names = [loss.name for loss in losses]
        schedules = ["constant"] * len(names) if schedules is None else schedules
        if len(schedules) != len(names):
            raise ValueError(f"loss_schedules has {len(schedules)} names for {len(names)} losses {names}.")
        self.losses = losses
        self.schedules = dict(zip(names, schedules, strict=True))
        self.teacher_weights, self.layer_mappings = teacher_weights, layer_mappings
        self.factors: dict[str, float] = {}
        self.restart()

    def values(
        self,
        students: Sequence[Activations],
        teachers: Sequence[Activations],
        mean: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """`{name}_loss` of each loss, before λ, and where it is a sum over teachers `{name}_loss_teacher{k}` of each.

        `students` are the one student as each teacher sees it, `mean` is the trainer's mean over examples.
        """
        values = {}
        for loss in self.losses:
            count = len(teachers) if loss.reads & LAYERS else 1
            read = zip(students[:count], teachers[:count], self.layer_mappings[:count], strict=True)
            parts = [mean(loss(*each)) for each in read]
            if count == 1:
                values[f"{loss.name}_loss"] = parts[0]
                continue
            values[f"{loss.name}_loss"] = sum(w * part for w, part in zip(self.teacher_weights, parts, strict=True))
            values |= {f"{loss.name}_loss_teacher{k}": part.detach() for k, part in enumerate(parts, start=1)}
        return values

    def total(self, values: Mapping[str, Tensor], progress: float) -> Tensor:
        """Σ_i λ_i·L_i at `progress`, the share of all steps that is done; `values` join the next log."""
        for name, value in values.items():
            self._sums[name] += value.detach()
        self._weights = {
            loss.name: scheduled_weight(loss.weight, self.schedules[loss.name], progress)
            * self.factors.get(loss.name, 1.0)
            for loss in self.losses
        }
        return sum(weight * values[f"{name}_loss"] for name, weight in self._weights.items())

    def balance(self, values: Mapping[str, Tensor], student: nn.Module, mean: Callable[[Tensor], Tensor]) -> None:
        """Set `factors` so that all losses pull equally hard at the student, projections left out (`balance_factors`).

        Schedules do not count; `mean` takes a norm to its mean over ranks.
        """
        named = student.named_parameters()
        ours = [p for name, p in named if p.requires_grad and not name.startswith(f"{PROJECTIONS}.")]
        norms = {loss.name: mean(gradient_norm(values[f"{loss.name}_loss"], ours)).item() for loss in self.losses}
        self.factors = balance_factors({loss.name: loss.weight for loss in self.losses}, norms)

    def restart(self) -> None:
        """Forget what has been summed up for the log."""
        self._sums, self._since = defaultdict(float), None

    def means(self, step: int, first_step: int, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of all values since the last call, or since `first_step`, and the λ of the last step.

        Only a λ that is scheduled or balanced is shown, as `{name}_weight`.
        """
        if not self._sums:
            return {}
        steps = max(step - (self._since or first_step), 1)
        sums = mean(torch.stack(list(self._sums.values()))).tolist()
        logs = {name: value / steps for name, value in zip(self._sums, sums, strict=True)}
        self._sums.clear()
        self._since = step
        changing = [name for name in self._weights if self.factors or self.schedules[name] != "constant"]
        return logs | {f"{name}_weight": self._weights[name] for name in changing}
