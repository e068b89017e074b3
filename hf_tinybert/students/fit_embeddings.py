"""BERT written as ALBERT, whose token embeddings may be narrower than its layers (Lan et al., 2020, section 3.1).

An ALBERT with as many groups as layers shares nothing between them: it is BERT with a linear map after the embeddings.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..least_squares import linear_moments, principal_basis, validated_ridge, write_linear
from ..models.architectures import architecture_of
from .fit_encoder import Batch


def map_tables(new: nn.Module, old: nn.Module, table_map: nn.Linear) -> None:
    """Every table of the embeddings `new` from that of `old`, by the weight of a linear map."""
    for name, table in old.named_modules():
        if isinstance(table, nn.Embedding):
            new.get_submodule(name).weight.copy_(table.weight.float() @ table_map.weight.T)


def fit_factors(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    basis: Tensor,
    inputs: list[dict],
    sums: list[Tensor],
    batches: list[Batch],
) -> nn.Linear:
    """Tables of E columns and their projection to Pᵀh; moves the batches there. Returns the map of the tables."""
    old, new = teacher.base_model.embeddings, student.base_model.embeddings
    old_projection, projection = (
        architecture_of(teacher.config).embedding_projection(teacher),
        architecture_of(student.config).embedding_projection(student),
    )
    narrow = new.word_embeddings.embedding_dim
    read = basis if old_projection is None else old_projection.weight.T.double() @ basis
    read = old.LayerNorm.weight.double()[:, None] * read
    read = read - read.mean(0)  # so that it reads x as it reads x less its mean
    x = torch.cat([x[b.mask] for b, x in zip(batches, sums, strict=True)]).double()
    leading = principal_basis(torch.cov((x / _deviation(x) @ read).T, correction=0), narrow - 2)
    table_map, columns = _write_tables(new, old, read @ leading, longest=max(x.shape[1] for x in sums))

    for batch, b in zip(inputs, batches, strict=True):
        b.student = new(**embedding_inputs(batch))
    fit, check = linear_moments((b.student[b.mask], b.teacher[b.mask].double() @ basis, b.check) for b in batches)
    prior, both = columns @ leading.T, fit + check
    bias = (both.cross[-1] - both.inputs[-1, :-1] @ prior) / both.inputs[-1, -1]
    write_linear(projection, validated_ridge(fit, check, torch.cat([prior, bias[None]])))
    for b in batches:
        b.student = projection(b.student)
    return table_map


def _write_tables(new: nn.Module, old: nn.Module, components: Tensor, longest: int) -> tuple[nn.Linear, Tensor]:
    """Tables [V, E] with LayerNorm(x')·columns ≈ x/σ(x)·components [D, E − 2]; returns their map and the columns.

    One column is lost to the mean that LayerNorm takes away. One is a ballast, by which it divides as the teacher's
    does: with it a token's embedding has the length c·σ(x), where its components alone would all get the same length.
    """
    narrow = components.shape[1] + 2
    ones = torch.ones(narrow, 1).to(components)
    free = torch.linalg.qr(torch.cat([ones, torch.eye(narrow).to(ones)[:, :-1]], 1)).Q[:, 1:]  # orthogonal to the mean
    table_map = nn.Linear(len(components), narrow, bias=False).to(components.device)
    table_map.weight.copy_((components @ free[:, :-1].T).T)
    map_tables(new, old, table_map)
    usual = old.position_embeddings.weight[:longest].mean(0) + old.token_type_embeddings.weight[0]
    words = (old.word_embeddings.weight + usual).double()
    deviations, lengths = _deviation(words), (words @ components).norm(dim=1, keepdim=True)
    scale = (lengths / deviations).max()
    ballast = ((scale * deviations).square() - lengths.square()).clamp(min=0).sqrt()
    new.word_embeddings.weight.add_((ballast * free[:, -1]).float())
    nn.init.ones_(new.LayerNorm.weight)
    nn.init.zeros_(new.LayerNorm.bias)
    return table_map, scale / narrow**0.5 * free[:, :-1]


def embedding_inputs(batch: dict) -> dict:
    """What the embeddings take of a batch."""
    return {name: batch[name] for name in ("input_ids", "token_type_ids") if name in batch}


def _deviation(x: Tensor) -> Tensor:
    """What LayerNorm divides each row by."""
    return x.var(-1, correction=0, keepdim=True).sqrt()
