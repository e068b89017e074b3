"""What is known of a teacher before its student is fitted: which directions count, and which attention heads."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..least_squares import principal_basis
from ..models.architectures import Attention, Block, architecture_of
from .attention_heads import context_moment, largest_heads, output_energy
from .calibration import CalibrationBatch
from .last_states import head_inputs, with_last_states
from .states import CalibrationStates, padded

# Principal components need fewer tokens than regressions.
SURVEY_TOKENS = 1024
# The largest number of positions that gradients are computed for at once, which bounds their memory.
GRADIENT_POSITIONS = 512
# The weight of the directions that the output depends on, relative to those that the states have.
GRADIENT_WEIGHT = 10.0


@dataclass(frozen=True)
class SurveySize:
    """What a survey looks for.

    Attributes:
        width: D', the number of principal components.
        num_heads: The number of attention heads that all layers share; None if each layer has its own.
    """

    width: int
    num_heads: int | None


def survey_batches(states: CalibrationStates) -> list[int]:
    """Indices of some batches, short and long ones, with about `SURVEY_TOKENS` real tokens together."""
    count = len(states.batches)
    tokens = sum(int(batch.mask.sum()) for batch in states.batches)
    step = min(max(tokens // SURVEY_TOKENS, 1), count)
    return list(range(step // 2, count, step))


def survey(
    model: PreTrainedModel,
    teacher: list[Block],
    states: CalibrationStates,
    size: SurveySize,
    progress: Callable[[], object],
) -> tuple[Tensor, list[int] | None]:
    """A basis for the student's hidden states, and the attention heads with the largest output.

    The basis are the principal components of the teacher's hidden states h and of the gradients g of its outputs with
    respect to them: the leading eigenvectors of Σ hhᵀ / Σ‖h‖² + `GRADIENT_WEIGHT` · Σ ggᵀ / Σ‖g‖². Directions that
    move a prediction much are thus kept even if the states differ little in them. Language models have no gradients.

    Args:
        model: The teacher.
        teacher: Its layers.
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
    # Logits over a vocabulary are never computed here, and depend on all directions.
    weighs_outputs = width != size.width and model.get_output_embeddings() is None
    moment, gradient_moment = 0.0, 0.0
    energy = torch.zeros(all_heads, dtype=torch.float64, device=states.teacher[0].device)
    for i in survey_batches(states):
        mask, hidden = states.batches[i].mask, states.teacher[i]
        moment = moment + _second_moment(hidden, teacher[0].attention)
        if weighs_outputs:
            gradient_moment = gradient_moment + _gradient_moment(model, teacher, states.batches[i], hidden)
        for block in teacher:
            context = block.attention.context(padded(block.attention.read(hidden), mask), mask)[mask]
            energy += _head_energy(block.attention, context)
            hidden = block.feed_forward.feed_forward(block.attention.write(hidden, context))
            moment = moment + _second_moment(hidden, block.attention)
            progress()
    if chooses_heads:
        heads = largest_heads(energy, size.num_heads)
    if weighs_outputs:
        moment = moment / moment.trace() + GRADIENT_WEIGHT * gradient_moment / gradient_moment.trace().clamp(min=1e-30)
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


def _gradient_moment(model: PreTrainedModel, teacher: list[Block], batch: CalibrationBatch, hidden: Tensor) -> Tensor:
    """Σ ggᵀ (D, D) of the gradients g of random combinations of the outputs with respect to all hidden states.

    Gradients with respect to states before a norm count as those with respect to what it reads, without its weights.

    Args:
        model: The teacher.
        teacher: Its layers.
        batch: A batch, whose first rows are taken.
        hidden: What enters the first layer, (tokens, D).
    """
    rows = slice(max(1, GRADIENT_POSITIONS // batch.mask.shape[1]))
    mask, inputs = batch.mask[rows], {name: tensor[rows] for name, tensor in batch.inputs.items()}
    final_norm = architecture_of(model.config).final_norm(model)
    with torch.enable_grad():
        states = [padded(hidden, batch.mask)[rows].requires_grad_()]
        for block in teacher:
            states.append(block.run(states[-1], mask))
        last = states[-1] if final_norm is None else getattr(*final_norm)(states[-1])
        with with_last_states(model, last):
            outputs = model(**head_inputs(model, inputs)).to_tuple()
        combination = sum((output * torch.randn(output.shape).to(output)).sum() for output in outputs)
        gradients = torch.autograd.grad(combination, states)
    moment = 0.0
    for state, gradient in zip(states, gradients, strict=True):
        if teacher[0].attention.norm_first:
            gradient = gradient * state.std(-1, keepdim=True)
        moment = moment + (gradient[mask].T @ gradient[mask]).double()
    return moment


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
