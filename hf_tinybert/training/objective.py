"""The objective Σ_i λ_i·L_i of one training: every loss over every teacher, λ at each step, and means for the log."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..activations import Activations
from ..layer_mapping import LayerMapping
from ..losses import DistillationLoss
from ..losses.schedules import balance_factors, gradient_norm, scheduled_weight


@dataclass
class Pair:
    """One teacher beside the student as that teacher sees it: in projections to the teacher's width.

    Args:
        student: The student's activations.
        teacher: The teacher's, with the logits of all teachers.
        layer_mapping: The pairs (student layer, teacher layer).
        weight: The teacher's share among several.
    """

    student: Activations
    teacher: Activations
    layer_mapping: LayerMapping
    weight: float = 1.0


@dataclass
class Lesson:
    """What one batch gives the losses to compare.

    Args:
        pairs: One for each teacher, for losses that read layers.
        combined: The student beside the teachers' combined logits, for losses that read none.
        call: Calls a loss with (student, teacher, layer_mapping).
    """

    pairs: list[Pair]
    combined: Pair
    call: Callable[..., Tensor]


@dataclass
class LayersRead:
    """Pairs (student layer, teacher layer) of which the losses read attention and hidden states."""

    attention: LayerMapping
    hidden: LayerMapping

    @classmethod
    def by(cls, losses: Iterable[DistillationLoss], layer_mapping: LayerMapping) -> "LayersRead":
        """The layers that `losses` read under a layer mapping."""
        losses = list(losses)
        return cls(
            [pair for loss in losses for pair in loss.attention_layers(layer_mapping)],
            [pair for loss in losses for pair in loss.hidden_layers(layer_mapping)],
        )


class Objective:
    """Σ_i λ_i(t)·L_i with L_i = Σ_k w_k·L_i(student, teacher k).

    Args:
        losses: The losses L_i.
        schedules: One name for each loss (`scheduled_weight`); None keeps every λ.

    Raises:
        ValueError: For another number of schedules than of losses.
    """

    def __init__(self, losses: Sequence[DistillationLoss], schedules: Sequence[str] | None):
        names = [loss.name for loss in losses]
        schedules = ["constant"] * len(names) if schedules is None else schedules
        if len(schedules) != len(names):
            raise ValueError(f"loss_schedules has {len(schedules)} names for {len(names)} losses {names}.")
        self.losses = losses
        self.schedules = dict(zip(names, schedules, strict=True))
        self.factors: dict[str, float] = {}
        self.restart()

    def values(self, lesson: Lesson, mean: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """`{name}_loss` of each loss before λ and, if it is a sum over teachers, `{name}_loss_teacher{k}` of each.

        Args:
            lesson: What the losses compare.
            mean: The trainer's mean over examples.
        """
        values = {}
        for loss in self.losses:
            pairs = lesson.pairs if loss.reads_layers else [lesson.combined]
            parts = [mean(lesson.call(loss, pair.student, pair.teacher, pair.layer_mapping)) for pair in pairs]
            if len(parts) == 1:
                values[f"{loss.name}_loss"] = parts[0]
                continue
            values[f"{loss.name}_loss"] = sum(pair.weight * part for pair, part in zip(pairs, parts, strict=True))
            values |= {f"{loss.name}_loss_teacher{k}": part.detach() for k, part in enumerate(parts, start=1)}
        return values

    def total(self, values: Mapping[str, Tensor], step: int, max_steps: int) -> Tensor:
        """Σ_i λ_i·L_i; the values join the next log.

        Args:
            values: What `values` returned.
            step: The number of optimizer steps that are done.
            max_steps: The number of optimizer steps in all.
        """
        if self._since is None:
            self._since = step
        for name, value in values.items():
            self._sums[name] += value.detach()
        self._weights = {
            loss.name: scheduled_weight(loss.weight, self.schedules[loss.name], step / max_steps)
            * self.factors.get(loss.name, 1.0)
            for loss in self.losses
        }
        return sum(weight * values[f"{name}_loss"] for name, weight in self._weights.items())

    def balance(
        self, values: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], mean: Callable[[Tensor], Tensor]
    ) -> None:
        """Set `factors` so that all losses have equal gradient norms (`balance_factors`); schedules do not count.

        Args:
            values: What `values` returned.
            parameters: The student's parameters.
            mean: Takes a norm to its mean over processes.
        """
        norms = {
            loss.name: mean(gradient_norm(values[f"{loss.name}_loss"], parameters)).item() for loss in self.losses
        }
        self.factors = balance_factors({loss.name: loss.weight for loss in self.losses}, norms)

    def restart(self) -> None:
        """Forget what has been summed up for the log."""
        self._sums, self._since = defaultdict(float), None

    def means(self, step: int, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means of all values since the last call, and each λ that is scheduled or balanced as `{name}_weight`.

        Args:
            step: The number of optimizer steps that are done.
            mean: Takes sums to their means over processes.
        """
        if not self._sums:
            return {}
        steps = max(step - self._since, 1)
        sums = mean(torch.stack(list(self._sums.values()))).tolist()
        logs = {name: value / steps for name, value in zip(self._sums, sums, strict=True)}
        self._sums.clear()
        self._since = step
        changing = [name for name in self._weights if self.factors or self.schedules[name] != "constant"]
        return logs | {f"{name}_weight": self._weights[name] for name in changing}
