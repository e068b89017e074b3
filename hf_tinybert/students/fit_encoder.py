"""The layers of a student, fitted to the teacher's by principal components and least squares on calibration data.

The student's hidden state stands for Pᵀh of the teacher's h, with P (D, D') the leading principal components. The
layers are fitted from the first to the last. A student layer stands for its own teacher layer and those skipped before
it. It takes the attention heads and the feed-forward units that write most, of its own layer or of all of these. Both
models run once on the calibration data, as the student grows: every linear map is refitted by ridge regression from
the student's own activations to the teacher's, towards the teacher's projected weights. Each layer thus also absorbs
the teacher layers that it skips and the errors of the layers below it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..least_squares import linear_weight, set_linear
from ..models.architectures import Attention, Block, FeedForward
from .attention_heads import AttentionHeads, context_moment, largest_heads, output_energy, set_attention_heads
from .fit_sublayer import InputFit, fit_output
from .states import CalibrationStates, padded


@dataclass(frozen=True)
class LayerGroup:
    """The teacher layers that a student layer stands for, from the first to the last.

    Attributes:
        skipped: Those that only run.
        taken: Those whose attention heads and feed-forward units the student layer may take.
    """

    skipped: Sequence[Block]
    taken: Sequence[Block]


def layer_groups(teacher: Sequence[Block], layers: list[int], merge: bool) -> list[LayerGroup]:
    """The teacher layers that each student layer stands for.

    Args:
        teacher: The teacher's layers.
        layers: The last teacher layer of each student layer, counted from 1 and increasing.
        merge: Whether heads and units come from all of them, or from the last one alone.
    """
    spans = zip([0, *layers], layers, strict=False)
    return [
        LayerGroup([], teacher[start:end]) if merge else LayerGroup(teacher[start : end - 1], teacher[end - 1 : end])
        for start, end in spans
    ]


def fit_encoder(
    student: list[Block],
    groups: list[LayerGroup],
    basis: Tensor,
    states: CalibrationStates,
    heads: list[int] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Fit every layer of the student.

    Args:
        student: The student's layers, which are changed.
        groups: The teacher layers that each of them stands for (`layer_groups`).
        basis: P, (D, D').
        states: What enters the first layer; afterwards what left the student's last layer and its teacher layer.
        heads: The teacher's attention heads that every layer of the student has, each from any layer of its group. By
            default each layer has those with the largest output.
        progress: Called when the teacher has run a layer on a batch.
    """
    for block, group in zip(student, groups, strict=True):
        for i, batch in enumerate(states.batches):
            for skipped in group.skipped:
                states.teacher[i] = skipped.run(padded(states.teacher[i], batch.mask), batch.mask)[batch.mask]
                progress()
        unit_energies = _fit_attention(block.attention, group.taken, basis, states, heads, progress)
        _fit_feed_forward(block.feed_forward, group.taken, unit_energies, basis, states)


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
    input_fit, moments, unit_energies = _run_group(student, group, basis, states, progress)
    chosen = _chosen_heads(group, moments, basis, student.num_heads, heads)
    if student.output.bias is not None:
        student.output.bias.copy_(basis.T @ group[-1].attention.output.bias.double())
    set_attention_heads(student, _refitted_heads(group, chosen, moments, basis, input_fit))
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
) -> tuple[InputFit, list[Tensor], list[Tensor]]:
    """Run some of the teacher's layers; their middle states are stored, and the teacher's states follow.

    Returns:
        The regression of what their attention sublayers receive; Σ ccᵀ of the context vectors and Σ a² of the
        feed-forward units of each layer.
    """
    input_fit = InputFit(student, [block.attention for block in group], basis)
    moments, unit_energies = [0.0] * len(group), [0.0] * len(group)
    for i, batch in enumerate(states.batches):
        hidden, reads = states.teacher[i], []
        for index, block in enumerate(group):
            attention, feed_forward = block.attention, block.feed_forward
            reads.append(attention.read(hidden))
            context = attention.context(padded(reads[-1], batch.mask), batch.mask)[batch.mask]
            moments[index] = moments[index] + context_moment(context, attention.num_heads)
            states.middles[index][i] = hidden = attention.write(hidden, context)
            units = feed_forward.units(feed_forward.read(hidden))
            unit_energies[index] = unit_energies[index] + units.square().sum(0).double()
            hidden = feed_forward.write(hidden, units)
            progress()
        input_fit.add(student.read(states.student[i]), reads, batch.held_out_tokens)
        states.teacher[i] = hidden
    return input_fit, moments, unit_energies


def _chosen_heads(
    group: Sequence[Block], moments: list[Tensor], basis: Tensor, count: int, heads: list[int] | None
) -> list[tuple[int, int]]:
    """The layer and the number of each attention head with the largest output.

    Args:
        group: The teacher's layers.
        moments: Σ ccᵀ of the context vectors of each layer.
        basis: P, (D, D').
        count: How many are chosen.
        heads: Their numbers; None if they may be any.
    """
    energies = torch.stack(
        [output_energy(_output(block.attention, basis), moment) for block, moment in zip(group, moments, strict=True)]
    )
    if heads is not None:
        return [(int(energies[:, head].argmax()), head) for head in heads]
    return [divmod(index, energies.shape[1]) for index in largest_heads(energies.flatten(), count)]


def _output(attention: Attention, basis: Tensor) -> Tensor:
    """The projected output projection of the attention heads, (D', H, d)."""
    return (basis.T @ attention.output.weight.double()).unflatten(-1, (attention.num_heads, -1))


def _refitted_heads(
    group: Sequence[Block], chosen: list[tuple[int, int]], moments: list[Tensor], basis: Tensor, input_fit: InputFit
) -> AttentionHeads:
    """Attention heads of the teacher, with queries, keys and values computed from what the student receives."""
    parts = {}
    for layer, block in enumerate(group):
        heads, attention = [head for index, head in chosen if index == layer], block.attention
        weight = torch.stack(
            [
                linear_weight(linear).unflatten(-1, (attention.num_heads, -1))[:, heads]
                for linear in (attention.query, attention.key, attention.value)
            ],
            1,
        )
        solution = input_fit.refitted(layer, weight.flatten(1), has_bias=attention.query.bias is not None)
        query_key_value = solution.unflatten(-1, weight.shape[1:]).permute(1, 2, 3, 0)
        for position, head in enumerate(heads):
            parts[layer, head] = (
                *query_key_value[:, position],
                _output(attention, basis)[:, head],
                moments[layer][head],
            )
    columns = zip(*(parts[place] for place in chosen), strict=True)
    query, key, value, output, moment = (torch.stack(column) for column in columns)
    return AttentionHeads(query, key, value, output.transpose(0, 1), input_fit.mean_moment(), moment)


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
