"""What is known of a teacher before its student is fitted: principal components, and the largest attention heads."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..least_squares import principal_basis
from ..models.architectures import Attention, Block
from .attention_heads import context_moment, largest_heads, output_energy
from .states import CalibrationStates, padded

# Principal components need fewer tokens than regressions.
SURVEY_TOKENS = 1024


@dataclass(frozen=True)
class SurveySize:
    """What a survey looks for.

    Attributes:
        width: D', the number of principal components.
        num_heads: The number of attention heads that all layers share; None if each layer has its own.
        layers: The teacher layers whose attention heads count, from 1.
    """

    width: int
    num_heads: int | None
    layers: list[int]


def survey_batches(states: CalibrationStates) -> list[int]:
    """Indices of some batches, short and long ones, with about `SURVEY_TOKENS` real tokens together."""
    count = len(states.batches)
    tokens = sum(int(batch.mask.sum()) for batch in states.batches)
    step = min(max(tokens // SURVEY_TOKENS, 1), count)
    return list(range(step // 2, count, step))


def survey(
    teacher: list[Block], states: CalibrationStates, size: SurveySize, progress: Callable[[], object]
) -> tuple[Tensor, list[int] | None]:
    """Principal components of the teacher's hidden states, and the attention heads with the largest output.

    Args:
        teacher: The teacher's layers.
        states: What enters the first of them.
        size: What to look for.
        progress: Called when the teacher has run a layer on a batch.

    Returns:
        P, (D, D') in float64 with orthonormal columns, the identity if D' is D; and the attention heads that all
        layers share, None if each layer has its own.
    """
    width, all_heads = teacher[0].attention.norm.normalized_shape[0], teacher[0].attention.num_heads
    chooses_heads = size.num_heads not in (None, all_heads)
    heads = None if size.num_heads is None else list(range(all_heads))
    if width == size.width and not chooses_heads:
        return torch.eye(width, dtype=torch.float64, device=states.teacher[0].device), heads
    moment, energy = 0.0, torch.zeros(all_heads, dtype=torch.float64, device=states.teacher[0].device)
    for i in survey_batches(states):
        mask, hidden = states.batches[i].mask, states.teacher[i]
        moment = moment + _second_moment(hidden, teacher[0].attention)
        for layer, block in enumerate(teacher, start=1):
            context = block.attention.context(padded(block.attention.read(hidden), mask), mask)[mask]
            if layer in size.layers:
                energy += _head_energy(block.attention, context)
            hidden = block.feed_forward.feed_forward(block.attention.write(hidden, context))
            moment = moment + _second_moment(hidden, block.attention)
            progress()
    if chooses_heads:
        heads = largest_heads(energy, size.num_heads)
    return _basis(moment, size.width, centred=teacher[0].attention.norm_first), heads


def _head_energy(attention: Attention, context: Tensor) -> Tensor:
    """Σ‖Wc‖² of each attention head in the output of its sublayer, relative to all of them."""
    output = attention.output.weight.double().unflatten(-1, (attention.num_heads, -1))
    energy = output_energy(output, context_moment(context, attention.num_heads))
    return energy / energy.sum()


def _second_moment(hidden: Tensor, attention: Attention) -> Tensor:
    """Σ hhᵀ (D, D) over tokens. States before a norm count as that norm reads them, without its weights."""
    if attention.norm_first:
        hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=attention.norm.eps)
    return (hidden.T @ hidden).double()


def _basis(moment: Tensor, width: int, centred: bool) -> Tensor:
    """The principal components.

    LayerNorm removes the mean of a state. If all sublayers read the states through it, no information may lie there:
    one component less is spread over the columns so that the coordinates of every state have the mean 0.
    """
    if not centred or width in (1, len(moment)):
        return principal_basis(moment, width)
    ones = torch.ones(width, 1).to(moment)
    rotation = torch.linalg.qr(torch.cat([ones, torch.eye(width).to(ones)[:, :-1]], 1)).Q[:, 1:]
    return principal_basis(moment, width - 1) @ rotation.T
