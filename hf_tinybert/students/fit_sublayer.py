"""A sublayer of a student between its states and those of the teacher, after a norm (pre-norm) or before it.

Only the two functions here know where the LayerNorm is: how the linear maps read the student's states, and how the
output projection and the LayerNorm after it write them.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..least_squares import (
    Moments,
    fit_added_projection,
    fit_output_projection,
    validated_ridge,
)
from ..models.architectures import Sublayer

# Rounds of the alternation between an output projection and the LayerNorm after it.
ROUNDS = 1


class InputFit:
    """Refits linear maps of what sublayers of the teacher receive, z, to what the student's receives, z'.

    Ridge regression is linear in its targets, so that z is regressed on z' in place of each map of z.

    The prior of the regression is z ≈ Pz'. In a pre-norm sublayer, where z is LN(h) with the weights γ and β, the
    student's LayerNorm gets no weights, and the prior is z ≈ s·γ⊙Pz' + β with the best number s.

    Args:
        student: The student's sublayer; the LayerNorm of a pre-norm sublayer is changed.
        teachers: The teacher's sublayers.
        basis: P, (D, D').
    """

    def __init__(self, student: Sublayer, teachers: Sequence[Sublayer], basis: Tensor):
        self.basis = basis
        self.teachers = teachers
        self.fit, self.held_out = Moments(), Moments()
        if student.norm_first:
            _reset(student.norm)

    def add(self, student_inputs: Tensor, teacher_inputs: Sequence[Tensor], is_held_out: Tensor) -> None:
        """Add real tokens.

        Args:
            student_inputs: z', (tokens, D').
            teacher_inputs: z of each of the teacher's sublayers, (tokens, D).
            is_held_out: (tokens,), true at held-out tokens.
        """
        targets = torch.cat(tuple(teacher_inputs), -1)
        for moments, rows in ((self.fit, ~is_held_out), (self.held_out, is_held_out)):
            moments.add(student_inputs[rows], targets[rows])

    def mean_moment(self) -> Tensor:
        """E z'z'ᵀ with a constant 1 appended to z', (D' + 1, D' + 1)."""
        total = self.fit.inputs + self.held_out.inputs
        return total / total[-1, -1]

    def refitted(self, index: int, weight: Tensor, has_bias: bool) -> Tensor:
        """A linear map of z as a map of z'.

        Args:
            index: The number of the teacher's sublayer that receives z, from 0.
            weight: The map of z, (D + 1, outputs).
            has_bias: Whether the map has a bias.

        Returns:
            The map of z', (D' + 1, outputs).
        """
        width = len(self.basis)
        columns = slice(index * width, (index + 1) * width)
        fit, held_out = (Moments(part.inputs, part.cross[:, columns]) for part in (self.fit, self.held_out))
        prior = self._prior(self.teachers[index], fit + held_out)
        # Errors of z count as those of the map.
        refitted = validated_ridge(fit, held_out, prior, has_bias, readout=weight[:-1]) @ weight[:-1]
        refitted[-1] += weight[-1]
        return refitted

    def _prior(self, teacher: Sublayer, total: Moments) -> Tensor:
        """The map from z' to the z of a sublayer of the teacher, (D' + 1, D)."""
        offset = torch.zeros_like(self.basis[:, 0])
        if not teacher.norm_first:
            return torch.cat([self.basis.T, offset[None]])
        if teacher.norm.bias is not None:
            offset = teacher.norm.bias.double()
        directions = self.basis.T * teacher.norm.weight.double()
        cross = total.cross[:-1] - total.inputs[:-1, -1:] * offset
        scale = (directions * cross).sum() / (directions * (total.inputs[:-1, :-1] @ directions)).sum()
        return torch.cat([scale * directions, offset[None]])


def fit_output(sublayer: Sublayer, batches: Callable[[], Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]]) -> None:
    """Fit the output projection of a student's sublayer, and the LayerNorm after it, to the next states.

    Args:
        sublayer: The sublayer, which is changed; its output projection is the prior.
        batches: Returns batches of real tokens as (inputs of the output projection, hidden states, target,
            held_out): (tokens, inputs), (tokens, D'), (tokens, D'), and (tokens,), true at held-out tokens.
    """
    if sublayer.norm_first:
        fit_added_projection(sublayer.output, batches())
    else:
        fit_output_projection(sublayer.output, sublayer.norm, batches, ROUNDS)


def _reset(norm: nn.LayerNorm) -> None:
    nn.init.ones_(norm.weight)
    if norm.bias is not None:
        nn.init.zeros_(norm.bias)
