"""The layers of a student, fitted to the teacher's by principal components and least squares on calibration data.

The student's hidden state stands for Pᵀh of the teacher's h, with P (D, D') the principal components of all hidden
states. The layers are fitted from the first to the last. Both models run once on the calibration data, sublayer by
sublayer, as the student grows: every linear map is refitted by ridge regression from the student's own activations to
the teacher's, towards the teacher's projected weights. Each layer thus also absorbs the teacher layers that it skips
and the errors of the layers below it.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..least_squares import linear_weight, set_linear
from ..models.architectures import Attention, Block, FeedForward
from .attention_heads import AttentionHeads, context_moment, set_attention_heads
from .fit_sublayer import InputFit, fit_output
from .states import CalibrationStates, padded


def fit_encoder(
    student: list[Block],
    teacher: list[Block],
    layers: list[int],
    basis: Tensor,
    states: CalibrationStates,
    heads: list[int] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Fit every layer of the student.

    Args:
        student: The student's layers, which are changed.
        teacher: The teacher's layers.
        layers: The teacher layer of each student layer, counted from 1 and increasing.
        basis: P, (D, D').
        states: What enters the first layer; afterwards what left the student's last layer and its teacher layer.
        heads: The teacher's attention heads that every layer of the student has. By default each layer has those with
            the largest output.
        progress: Called when the teacher has run a layer on a batch.
    """
    layers_run = 0
    for block, layer in zip(student, layers, strict=True):
        skipped, teacher_block = teacher[layers_run : layer - 1], teacher[layer - 1]
        _fit_attention(block.attention, teacher_block.attention, skipped, basis, states, heads, progress)
        _fit_feed_forward(block.feed_forward, teacher_block.feed_forward, basis, states, progress)
        layers_run = layer


def _fit_attention(
    student: Attention,
    teacher: Attention,
    skipped: Sequence[Block],
    basis: Tensor,
    states: CalibrationStates,
    heads: list[int] | None,
    progress: Callable[[], object],
) -> None:
    """Fit the attention sublayer: queries, keys and values at the student's size, then the output projection."""
    input_fit, moment, narrow = InputFit(student, teacher, basis), 0.0, basis.float()
    for i, batch in enumerate(states.batches):
        hidden = _skip(skipped, states.teacher[i], batch.mask, progress)
        read = teacher.read(hidden)
        input_fit.add(student.read(states.student[i]), read, batch.held_out_tokens)
        context = teacher.context(padded(read, batch.mask), batch.mask)[batch.mask]
        moment = moment + context_moment(context, teacher.num_heads)
        states.teacher[i] = hidden = teacher.write(hidden, context)
        states.targets[i] = hidden @ narrow
    all_heads = _refitted_heads(teacher, basis, input_fit, moment)
    if student.output.bias is not None:
        student.output.bias.copy_(basis.T @ teacher.output.bias.double())
    set_attention_heads(student, all_heads, heads or all_heads.largest(student.num_heads))
    for i, batch in enumerate(states.batches):
        read = padded(student.read(states.student[i]), batch.mask)
        states.contexts[i] = student.context(read, batch.mask)[batch.mask]

    def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for i, batch in enumerate(states.batches):
            yield states.contexts[i], states.student[i], states.targets[i], batch.held_out_tokens

    fit_output(student, tokens)
    for i, (context, hidden, _, _) in enumerate(tokens()):
        states.student[i] = student.write(hidden, context)


def _skip(skipped: Sequence[Block], hidden: Tensor, mask: Tensor, progress: Callable[[], object]) -> Tensor:
    """The teacher's states (tokens, D) after layers that the student skips."""
    for block in skipped:
        hidden = block.run(padded(hidden, mask), mask)[mask]
        progress()
    return hidden


def _refitted_heads(teacher: Attention, basis: Tensor, input_fit: InputFit, moment: Tensor) -> AttentionHeads:
    """The teacher's attention heads, with queries, keys and values computed from what the student receives."""
    linears = (teacher.query, teacher.key, teacher.value)
    weight = torch.cat([linear_weight(linear) for linear in linears], -1)
    solution = input_fit.refitted(weight, has_bias=teacher.query.bias is not None)
    query, key, value = (part.T.unflatten(0, (teacher.num_heads, -1)) for part in solution.chunk(3, -1))
    output = (basis.T @ teacher.output.weight.double()).unflatten(-1, (teacher.num_heads, -1))
    return AttentionHeads(query, key, value, output, input_fit.mean_moment(), moment)


def _fit_feed_forward(
    student: FeedForward,
    teacher: FeedForward,
    basis: Tensor,
    states: CalibrationStates,
    progress: Callable[[], object],
) -> None:
    """Fit the feed-forward sublayer over the units u with the largest E[a_u²]·‖W_out,u‖², a_u their activations."""
    input_fit, energy, narrow = InputFit(student, teacher, basis), 0.0, basis.float()
    for i, batch in enumerate(states.batches):
        hidden = states.teacher[i]
        read = teacher.read(hidden)
        input_fit.add(student.read(states.student[i]), read, batch.held_out_tokens)
        activations = teacher.units(read)
        energy = energy + activations.square().sum(0).double()
        states.teacher[i] = hidden = teacher.write(hidden, activations)
        states.targets[i] = hidden @ narrow
        progress()
    output_energy = energy * (basis.T @ teacher.output.weight.double()).square().sum(0)
    units = output_energy.topk(student.intermediate.out_features).indices.sort().values
    has_bias = teacher.intermediate.bias is not None
    set_linear(student.intermediate, input_fit.refitted(linear_weight(teacher.intermediate)[:, units], has_bias))
    output = linear_weight(teacher.output) @ basis
    set_linear(student.output, torch.cat([output[units], output[-1:]]))

    def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        # The units are many times wider than the states and are computed again.
        for i, batch in enumerate(states.batches):
            hidden = states.student[i]
            yield student.units(student.read(hidden)), hidden, states.targets[i], batch.held_out_tokens

    fit_output(student, tokens)
    for i, (activations, hidden, _, _) in enumerate(tokens()):
        states.student[i] = student.write(hidden, activations)
