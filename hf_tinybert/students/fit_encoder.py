"""The layers of a student, fitted to the teacher's by principal components and least squares on calibration data.

The student's hidden state stands for Pᵀh of the teacher's h, with P (D, D') the leading principal components. The
layers are fitted from the first to the last. A student layer stands for a group of teacher layers: its own one and
those skipped before it. It has the attention heads of its own layer, which the attention loss compares it with, and
the feed-forward units of the group that write most. Its output is fitted to that of the group. Both models run once on
the calibration data, group by group, as the student grows: every linear map is refitted by ridge regression from the
student's own activations to the teacher's, towards the teacher's projected weights. Each layer thus also absorbs the
errors of the layers below it.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..least_squares import linear_weight, set_linear
from ..models.architectures import Attention, Block, FeedForward
from .attention_heads import AttentionHeads, context_moment, set_attention_heads
from .fit_sublayer import InputFit, fit_output
from .states import CalibrationStates, padded


def layer_groups(teacher: Sequence[Block], layers: list[int]) -> list[Sequence[Block]]:
    """The teacher layers that each student layer stands for.

    Args:
        teacher: The teacher's layers.
        layers: The last teacher layer of each student layer, counted from 1 and increasing.
    """
    return [teacher[start:end] for start, end in zip([0, *layers], layers, strict=False)]


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
    for block, group in zip(student, layer_groups(teacher, layers), strict=True):
        unit_energies = _fit_attention(block.attention, group, basis, states, heads, progress)
        _fit_feed_forward(block.feed_forward, group, unit_energies, basis, states)


def _fit_attention(
    student: Attention,
    group: Sequence[Block],
    basis: Tensor,
    states: CalibrationStates,
    heads: list[int] | None,
    progress: Callable[[], object],
) -> list[Tensor]:
    """Fit the attention sublayer: queries, keys and values at the student's size, then the output projection.

    The teacher's states become those after the group.

    Returns:
        The energies of the feed-forward units of each layer of the group.
    """
    input_fit, moment, unit_energies = _run_group(student, group, basis, states, progress)
    teacher = group[-1].attention
    if student.output.bias is not None:
        student.output.bias.copy_(basis.T @ teacher.output.bias.double())
    all_heads = _refitted_heads(teacher, basis, input_fit, moment)
    set_attention_heads(student, all_heads, heads or all_heads.largest(student.num_heads))
    middles, narrow = states.middles[len(group) - 1], basis.float()
    for i, batch in enumerate(states.batches):
        read = padded(student.read(states.student[i]), batch.mask)
        states.contexts[i] = student.context(read, batch.mask)[batch.mask]
        states.targets[i] = middles[i] @ narrow

    def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for i, batch in enumerate(states.batches):
            yield states.contexts[i], states.student[i], states.targets[i], batch.held_out_tokens

    fit_output(student, tokens)
    for i, (context, hidden, _, _) in enumerate(tokens()):
        states.student[i] = student.write(hidden, context)
    return unit_energies


def _run_group(
    student: Attention,
    group: Sequence[Block],
    basis: Tensor,
    states: CalibrationStates,
    progress: Callable[[], object],
) -> tuple[InputFit, Tensor, list[Tensor]]:
    """Run some of the teacher's layers; their middle states are stored, and the teacher's states follow.

    Returns:
        The regression of what the last attention sublayer receives, Σ ccᵀ of its context vectors, and Σ a² of the
        feed-forward units of each layer.
    """
    input_fit, moment, unit_energies = InputFit(student, [group[-1].attention], basis), 0.0, [0.0] * len(group)
    for i, batch in enumerate(states.batches):
        hidden = states.teacher[i]
        for index, block in enumerate(group):
            attention, feed_forward = block.attention, block.feed_forward
            read = attention.read(hidden)
            context = attention.context(padded(read, batch.mask), batch.mask)[batch.mask]
            states.middles[index][i] = hidden = attention.write(hidden, context)
            units = feed_forward.units(feed_forward.read(hidden))
            unit_energies[index] = unit_energies[index] + units.square().sum(0).double()
            hidden = feed_forward.write(hidden, units)
            progress()
        input_fit.add(student.read(states.student[i]), [read], batch.held_out_tokens)
        moment = moment + context_moment(context, attention.num_heads)
        states.teacher[i] = hidden
    return input_fit, moment, unit_energies


def _refitted_heads(teacher: Attention, basis: Tensor, input_fit: InputFit, moment: Tensor) -> AttentionHeads:
    """The teacher's attention heads, with queries, keys and values computed from what the student receives."""
    linears = (teacher.query, teacher.key, teacher.value)
    weight = torch.cat([linear_weight(linear) for linear in linears], -1)
    solution = input_fit.refitted(0, weight, has_bias=teacher.query.bias is not None)
    query, key, value = (part.T.unflatten(0, (teacher.num_heads, -1)) for part in solution.chunk(3, -1))
    output = (basis.T @ teacher.output.weight.double()).unflatten(-1, (teacher.num_heads, -1))
    return AttentionHeads(query, key, value, output, input_fit.mean_moment(), moment)


def _fit_feed_forward(
    student: FeedForward,
    group: Sequence[Block],
    unit_energies: list[Tensor],
    basis: Tensor,
    states: CalibrationStates,
) -> None:
    """Fit the feed-forward sublayer over the units u of the group with the largest Σ a_u²·‖W_out,u‖²."""
    input_fit, narrow = InputFit(student, [block.feed_forward for block in group], basis), basis.float()
    for i, batch in enumerate(states.batches):
        reads = [block.feed_forward.read(states.middles[index][i]) for index, block in enumerate(group)]
        input_fit.add(student.read(states.student[i]), reads, batch.held_out_tokens)
        states.targets[i] = states.teacher[i] @ narrow
    outputs = [linear_weight(block.feed_forward.output) @ basis for block in group]
    weights = torch.cat([output[:-1] for output in outputs])
    energies = torch.cat(unit_energies) * weights.square().sum(1)
    is_chosen = torch.zeros_like(energies, dtype=torch.bool)
    is_chosen[energies.topk(student.intermediate.out_features).indices] = True
    intermediates = []
    for index, (block, units) in enumerate(zip(group, is_chosen.chunk(len(group)), strict=True)):
        linear = block.feed_forward.intermediate
        intermediates.append(input_fit.refitted(index, linear_weight(linear)[:, units], linear.bias is not None))
    set_linear(student.intermediate, torch.cat(intermediates, 1))
    set_linear(student.output, torch.cat([weights[is_chosen], outputs[-1][-1:]]))

    def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        # The units are many times wider than the states and are computed again.
        for i, batch in enumerate(states.batches):
            hidden = states.student[i]
            yield student.units(student.read(hidden)), hidden, states.targets[i], batch.held_out_tokens

    fit_output(student, tokens)
    for i, (activations, hidden, _, _) in enumerate(tokens()):
        states.student[i] = student.write(hidden, activations)
