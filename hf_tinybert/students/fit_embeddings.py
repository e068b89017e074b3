"""The embeddings of a student, fitted to the teacher's.

Embeddings that are as wide as the layers are mapped by one linear map of all tables. Narrower ones are factorised into
tables and a projection (Lan et al., 2020, arXiv 1909.11942, section 3.1).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..least_squares import (
    Moments,
    fit_output_projection,
    linear_moments,
    linear_weight,
    principal_basis,
    set_linear,
    validated_ridge,
)
from ..models.architectures import architecture_of
from .calibration import CalibrationBatch, module_input
from .fit_sublayer import ROUNDS
from .states import CalibrationStates


def embed(model: PreTrainedModel, batch: CalibrationBatch) -> Tensor:
    """What enters the first layer of a model in eval mode, (tokens, D)."""
    architecture = architecture_of(model.config)
    hidden = architecture.embeddings(model)(**batch.embedding_inputs)[batch.mask]
    projection = architecture.embedding_projection(model)
    return hidden if projection is None else projection(hidden)


def embedded_states(
    teacher: PreTrainedModel, batches: list[CalibrationBatch], student_width: int, group_size: int
) -> CalibrationStates:
    """What enters the teacher's first layer, and room for the states of a student.

    Args:
        teacher: The teacher, in eval mode.
        batches: The calibration data.
        student_width: D'.
        group_size: The largest number of teacher layers whose heads and units one layer of the student takes.
    """
    states = CalibrationStates.allocate(batches, teacher.config.hidden_size, student_width, group_size)
    for i, batch in enumerate(batches):
        states.teacher[i] = embed(teacher, batch)
    return states


def fit_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor, states: CalibrationStates
) -> nn.Linear | None:
    """Fit the embeddings of the student to Pᵀh, h being what enters the teacher's first layer.

    Args:
        student: The student, which is changed.
        teacher: The teacher.
        basis: P, (D, D').
        states: What enters the teacher's first layer; the student's states become what enters its own.

    Returns:
        The linear map from the teacher's tables (V, E) to the student's (V, E'); None if the tables are copied.
    """
    projection = architecture_of(teacher.config).embedding_projection(teacher)
    new_projection = architecture_of(student.config).embedding_projection(student)
    width, new_width = (model.get_input_embeddings().embedding_dim for model in (teacher, student))
    if width == new_width and (new_projection is None) == (projection is None):
        table_map = _copy_embeddings(student, teacher, basis)
    elif new_projection is None:
        table_map = _fit_tables(student, teacher, basis, states)
    else:
        table_map = _fit_factors(student, teacher, basis, states)
    for i, batch in enumerate(states.batches):
        states.student[i] = embed(student, batch)
    return table_map


def _copy_embeddings(student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor) -> None:
    """Copy the tables, and project the projection that follows them onto the basis."""
    architecture = architecture_of(teacher.config)
    architecture.embeddings(student).load_state_dict(architecture.embeddings(teacher).state_dict())
    projection = architecture.embedding_projection(teacher)
    if projection is not None:
        set_linear(architecture.embedding_projection(student), linear_weight(projection) @ basis)


def _fit_tables(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor, states: CalibrationStates
) -> nn.Linear:
    """Tables of the student's width without a projection: LayerNorm(table·A) ≈ Pᵀh; returns A."""
    architecture = architecture_of(teacher.config)
    old, new = architecture.embeddings(teacher), architecture_of(student.config).embeddings(student)
    projection = architecture.embedding_projection(teacher)
    norm, new_norm = getattr(old, "LayerNorm", None), getattr(new, "LayerNorm", None)
    prior = basis if projection is None else (projection.weight * norm.weight).T.double() @ basis
    # Every token has one position, so the position embeddings can carry a bias.
    carries_bias = hasattr(new, "position_embeddings") and new_norm is not None
    table_map = nn.Linear(*prior.shape, bias=carries_bias).to(student.device)
    set_linear(table_map, torch.cat([prior, torch.zeros_like(prior[:1])]))

    def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for i, batch in enumerate(states.batches):
            target = states.teacher[i] @ basis.float()
            yield _embedding_sum(old, batch), torch.zeros_like(target), target, batch.held_out_tokens

    if new_norm is not None:
        fit_output_projection(table_map, new_norm, tokens, ROUNDS)
    _map_tables(new, old, table_map)
    if carries_bias:
        new.position_embeddings.weight.add_(table_map.bias)
    return table_map


def _fit_factors(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor, states: CalibrationStates
) -> nn.Linear:
    """Factorised embeddings: tables of E' columns and their projection to Pᵀh; returns the map of the tables."""
    old, new = (architecture_of(model.config).embeddings(model) for model in (teacher, student))
    old_projection, projection = (
        architecture_of(model.config).embedding_projection(model) for model in (teacher, student)
    )
    weight = basis if old_projection is None else old_projection.weight.T.double() @ basis
    weight = old.LayerNorm.weight.double()[:, None] * weight
    weight = weight - weight.mean(0)  # the products with x are then those with x less its mean
    products = Moments()
    for batch in states.batches:
        x = _embedding_sum(old, batch).double()
        products.add(x / _deviation(x) @ weight, x[:, :0])
    leading = principal_basis(_covariance(products), student.get_input_embeddings().embedding_dim - 2)
    longest = max(batch.mask.shape[1] for batch in states.batches)
    table_map, columns = _set_factorised_tables(new, old, weight @ leading, longest)

    fit, held_out = linear_moments(
        (new(**batch.embedding_inputs)[batch.mask], states.teacher[i] @ basis.float(), batch.held_out_tokens)
        for i, batch in enumerate(states.batches)
    )
    prior, moments = columns @ leading.T, fit + held_out
    bias = (moments.cross[-1] - moments.inputs[-1, :-1] @ prior) / moments.inputs[-1, -1]
    set_linear(projection, validated_ridge(fit, held_out, torch.cat([prior, bias[None]])))
    return table_map


def _covariance(moments: Moments) -> Tensor:
    """The covariance of the regressors."""
    mean_moment = moments.inputs / moments.inputs[-1, -1]
    return mean_moment[:-1, :-1] - torch.outer(mean_moment[-1, :-1], mean_moment[-1, :-1])


def _set_factorised_tables(
    new: nn.Module, old: nn.Module, components: Tensor, longest: int
) -> tuple[nn.Linear, Tensor]:
    """Set tables of E' columns whose normalised sums x' satisfy LayerNorm(x')·columns ≈ x/σ(x)·components.

    LayerNorm subtracts the mean, which costs one column. Another column balances the lengths: it gives a token's
    embedding the length c·σ(x), so that LayerNorm divides it by as much as the teacher's LayerNorm divides x. Without
    it all components of a token would be scaled to the same length.

    Args:
        new: The student's embeddings, which are changed.
        old: The teacher's embeddings.
        components: (E, E' − 2).
        longest: The number of positions that the calibration data use.

    Returns:
        The map of the tables E → E', and the columns (E', E' − 2).
    """
    width = components.shape[1] + 2
    ones = torch.ones(width, 1).to(components)
    free = torch.linalg.qr(torch.cat([ones, torch.eye(width).to(ones)[:, :-1]], 1)).Q[:, 1:]  # orthogonal to the mean
    table_map = nn.Linear(len(components), width, bias=False).to(components.device)
    table_map.weight.copy_((components @ free[:, :-1].T).T)
    _map_tables(new, old, table_map)
    mean_position = old.position_embeddings.weight[:longest].mean(0) + old.token_type_embeddings.weight[0]
    words = (old.word_embeddings.weight + mean_position).double()
    deviations, lengths = _deviation(words), (words @ components).norm(dim=1, keepdim=True)
    scale = (lengths / deviations).max()
    balance = ((scale * deviations).square() - lengths.square()).clamp(min=0).sqrt()
    new.word_embeddings.weight.add_((balance * free[:, -1]).float())
    nn.init.ones_(new.LayerNorm.weight)
    nn.init.zeros_(new.LayerNorm.bias)
    return table_map, scale / width**0.5 * free[:, :-1]


def _map_tables(new: nn.Module, old: nn.Module, table_map: nn.Linear) -> None:
    """Set every table of the embeddings `new` to that of `old` times the weight of a linear map."""
    for name, table in old.named_modules():
        if isinstance(table, nn.Embedding):
            new.get_submodule(name).weight.copy_(table.weight.float() @ table_map.weight.T)


def _embedding_sum(embeddings: nn.Module, batch: CalibrationBatch) -> Tensor:
    """The sum of token, position and token type embeddings before their LayerNorm, (tokens, E)."""
    return module_input(embeddings, embeddings.LayerNorm, batch.embedding_inputs)[batch.mask]


def _deviation(x: Tensor) -> Tensor:
    """What LayerNorm divides each row by."""
    return x.var(-1, correction=0, keepdim=True).sqrt()
