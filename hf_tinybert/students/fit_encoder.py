"""The layers of a student, fitted to the teacher's by principal components and least squares on calibration data.

The student's hidden state stands for Pᵀh of the teacher's h, with P (D, D') the principal components of all hidden
states. The layers are fitted from the first to the last, and the student runs on the calibration data as it grows:
every linear map is refitted by ridge regression from the student's own activations to the teacher's, towards the
teacher's projected weights. Each layer thus also absorbs the teacher layers that it skips and the errors of the layers
below it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..least_squares import (
    Moments,
    fit_output_projection,
    linear_moments,
    linear_weight,
    project_inputs,
    score_maps,
    set_linear,
    validated_ridge,
    value_maps,
)
from ..models.architectures import Block
from .calibration import CalibrationBatch

# Rounds of the alternation between an output projection and the LayerNorm after it.
ROUNDS = 1


@dataclass
class HiddenStates:
    """The hidden states of a batch of calibration rows between two layers of both models.

    Attributes:
        batch: The calibration rows.
        teacher: (B, S, D), the teacher's hidden states.
        student: (B, S, D'), the student's hidden states.
    """

    batch: CalibrationBatch
    teacher: Tensor
    student: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, S), true at real tokens."""
        return self.batch.mask

    @property
    def held_out_tokens(self) -> Tensor:
        """(number of real tokens,), true at the tokens of held-out rows."""
        return self.batch.held_out_tokens

    @property
    def teacher_tokens(self) -> Tensor:
        """(number of real tokens, D)."""
        return self.teacher[self.mask]

    @property
    def student_tokens(self) -> Tensor:
        """(number of real tokens, D')."""
        return self.student[self.mask]


@dataclass(frozen=True)
class AttentionHeads:
    """The attention heads of a teacher layer over the student's hidden states, in float64.

    Attributes:
        query: (H, d, D' + 1), weights with the bias in the last column, d being the size of an attention head.
        key: (H, d, D' + 1).
        value: (H, d, D' + 1).
        output: (D', H, d), the output projection, without its bias.
        input_moment: (D' + 1, D' + 1), E xxᵀ of the student's hidden states x with a constant 1 appended.
        context_moment: (H, d, d), Σ ccᵀ of the teacher's context vectors c.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    input_moment: Tensor
    context_moment: Tensor

    def largest(self, count: int) -> list[int]:
        """The attention heads with the largest output E‖Wc‖², in their order."""
        energy = torch.einsum("ohi,hij,ohj->h", self.output, self.context_moment, self.output)
        return energy.topk(count).indices.sort().values.tolist()

    def reduced(self, head: int, size: int, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """An attention head at a smaller size.

        Args:
            head: The attention head.
            size: Its size.
            scale: A factor of its queries and keys.

        Returns:
            Query, key and value (size, D' + 1), and output (D', size).
        """
        # Softmax ignores what all keys share, so only the spread of the keys counts.
        centred_moment = self.input_moment - self.input_moment[:, -1:] * self.input_moment[-1:]
        query, key, value, output = self.query[head], self.key[head], self.value[head], self.output[:, head]
        query_map, key_map = score_maps(query @ self.input_moment @ query.T, key @ centred_moment @ key.T, size)
        value_map, reduced_output = value_maps(output, self.context_moment[head], size)
        return scale * query_map @ query, scale * key_map @ key, value_map @ value, reduced_output


def fit_encoder(
    student: list[Block], teacher: list[Block], layers: list[int], basis: Tensor, states: list[HiddenStates]
) -> None:
    """Fit every layer of the student.

    Args:
        student: The student's layers, which are changed.
        teacher: The teacher's layers.
        layers: The teacher layer of each student layer, counted from 1 and increasing.
        basis: P, (D, D').
        states: What enters the first layer; afterwards what left the student's last layer and its teacher layer.
    """
    layers_run = 0
    for block, layer in zip(student, tqdm(layers, desc="Fitting layers"), strict=True):
        teacher_block = teacher[layer - 1]
        for hidden in states:
            for skipped in teacher[layers_run : layer - 1]:
                hidden.teacher = skipped.feed_forward(skipped.attend(hidden.teacher, hidden.mask))
        layers_run = layer
        _fit_attention(block, teacher_block, basis, states)
        for hidden in states:
            hidden.student = block.attend(hidden.student, hidden.mask)
            hidden.teacher = teacher_block.attend(hidden.teacher, hidden.mask)
        _fit_feed_forward(block, teacher_block, basis, states)
        for hidden in states:
            hidden.student = block.feed_forward(hidden.student)
            hidden.teacher = teacher_block.feed_forward(hidden.teacher)


def _fit_attention(student: Block, teacher: Block, basis: Tensor, states: list[HiddenStates]) -> None:
    """Fit the attention sublayer: queries, keys and values at the student's size, then the output projection."""
    _set_attention_heads(student, teacher, _refitted_heads(teacher, basis, states))
    student.attention_output.bias.copy_(basis.T @ teacher.attention_output.bias.double())
    tokens = []
    for hidden in states:
        target = teacher.attend(hidden.teacher, hidden.mask)[hidden.mask].double() @ basis
        context = student.context(hidden.student, hidden.mask)[hidden.mask]
        tokens.append((context, hidden.student_tokens, target.float(), hidden.held_out_tokens))
    fit_output_projection(student.attention_output, student.attention_norm, lambda: tokens, ROUNDS)


def _refitted_heads(teacher: Block, basis: Tensor, states: list[HiddenStates]) -> AttentionHeads:
    """The teacher's attention heads, with queries, keys and values computed from the student's hidden states."""
    linears = (teacher.query, teacher.key, teacher.value)
    fit, held_out = linear_moments(
        (
            hidden.student_tokens,
            torch.cat([linear(hidden.teacher_tokens) for linear in linears], -1),
            hidden.held_out_tokens,
        )
        for hidden in states
    )
    prior = torch.cat([project_inputs(linear_weight(linear), basis) for linear in linears], -1)
    solution = validated_ridge(fit, held_out, prior)
    query, key, value = (weight.T.unflatten(0, (teacher.num_heads, -1)) for weight in solution.chunk(3, -1))
    context_moment = 0.0
    for hidden in states:
        context = teacher.context(hidden.teacher, hidden.mask)[hidden.mask].double()
        context = context.unflatten(-1, (teacher.num_heads, -1))
        context_moment = context_moment + torch.einsum("nhi,nhj->hij", context, context)
    output = (basis.T @ teacher.attention_output.weight.double()).unflatten(-1, (teacher.num_heads, -1))
    return AttentionHeads(query, key, value, output, _mean_moment(fit + held_out), context_moment)


def _mean_moment(moments: Moments) -> Tensor:
    """E xxᵀ; the last entry of Σ xxᵀ is the number of tokens."""
    return moments.inputs / moments.inputs[-1, -1]


def _set_attention_heads(student: Block, teacher: Block, heads: AttentionHeads) -> None:
    """Give the student the largest attention heads, each reduced to the student's size if that is smaller."""
    size = student.query.out_features // student.num_heads
    teacher_size = teacher.query.out_features // teacher.num_heads
    rank = min(teacher_size, size)
    # The scaling depends on the size of an attention head; this factor leaves the scaled scores as they are.
    scale = (size / teacher_size) ** 0.25
    # What an attention head has beyond the teacher's size contributes neither to the scores nor to the output.
    student.query.weight.zero_()
    student.query.bias.zero_()
    student.attention_output.weight.zero_()
    for index, head in enumerate(heads.largest(student.num_heads)):
        if rank < teacher_size:
            query, key, value, output = heads.reduced(head, rank, scale)
        else:
            query, key = scale * heads.query[head], scale * heads.key[head]
            value, output = heads.value[head], heads.output[:, head]
        rows = slice(index * size, index * size + rank)
        for linear, weight in ((student.query, query), (student.key, key), (student.value, value)):
            linear.weight[rows], linear.bias[rows] = weight[:, :-1].float(), weight[:, -1].float()
        student.attention_output.weight[:, rows] = output.float()


def _fit_feed_forward(student: Block, teacher: Block, basis: Tensor, states: list[HiddenStates]) -> None:
    """Fit the feed-forward sublayer over the units u with the largest E[a_u²]·‖W_out,u‖², a_u their activations."""
    units = _largest_units(teacher, basis, states, student.intermediate.out_features)
    fit, held_out = linear_moments(
        (hidden.student_tokens, teacher.intermediate(hidden.teacher_tokens)[:, units], hidden.held_out_tokens)
        for hidden in states
    )
    prior = project_inputs(linear_weight(teacher.intermediate)[:, units], basis)
    set_linear(student.intermediate, validated_ridge(fit, held_out, prior))
    student.output.weight.copy_(basis.T @ teacher.output.weight.double()[:, units])
    student.output.bias.copy_(basis.T @ teacher.output.bias.double())
    targets = [(teacher.feed_forward(hidden.teacher_tokens).double() @ basis).float() for hidden in states]

    def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        # The targets have the student's width and are stored. The units are many times wider and are computed again.
        for hidden, target in zip(states, targets, strict=True):
            inputs = hidden.student_tokens
            yield student.activation(student.intermediate(inputs)), inputs, target, hidden.held_out_tokens

    fit_output_projection(student.output, student.output_norm, tokens, ROUNDS)


def _largest_units(teacher: Block, basis: Tensor, states: list[HiddenStates], count: int) -> Tensor:
    energy = 0.0
    for hidden in states:
        activations = teacher.activation(teacher.intermediate(hidden.teacher_tokens))
        energy = energy + activations.double().square().sum(0)
    output_energy = energy * (basis.T @ teacher.output.weight.double()).square().sum(0)
    return output_energy.topk(count).indices.sort().values
