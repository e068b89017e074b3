"""A whole model on its way to a smaller one: embeddings, encoder and heads fitted in turn on a sample."""

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..least_squares import (
    fit_writer,
    linear_moments,
    principal_basis,
    project_inputs,
    read_linear,
    validated_ridge,
    write_linear,
)
from ..models.architectures import Block, architecture_of
from .fit_embeddings import embedding_inputs, fit_factors, map_tables
from .fit_encoder import ROUNDS, Batch, fit_encoder

logger = logging.getLogger(__name__)


def reduce_model(student: PreTrainedModel, teacher: PreTrainedModel, layers: list[int], inputs: list[dict]):
    """Fit every weight of the student that can be; inputs are padded batches with `check`, [B] bool, beside them."""
    checks = [batch.pop("check") for batch in inputs]
    sums, batches = embed(teacher, inputs, checks)
    teacher_blocks = architecture_of(teacher.config).blocks(teacher)
    basis = principal_basis(hidden_moment(teacher_blocks, batches), student.config.hidden_size)
    table_map = fit_embeddings(student, teacher, basis, inputs, sums, batches)
    fit_encoder(architecture_of(student.config).blocks(student), teacher_blocks, layers, basis, batches)
    fit_heads(student, teacher, basis, table_map, inputs, checks)


def hidden_moment(blocks: list[Block], batches: list[Batch]) -> Tensor:
    """Σ hhᵀ over real tokens and all hidden states, the embeddings' and every layer's."""
    moment = 0.0
    for b in batches:
        hidden = b.teacher
        for block in [None, *blocks]:
            hidden = hidden if block is None else block.feed_forward(block.attend(hidden, b.mask))
            x = hidden[b.mask].double()
            moment = moment + x.T @ x
    return moment


class _Reached(Exception):
    pass


def module_input(model: nn.Module, module: nn.Module, batch: dict) -> Tensor:
    """What reaches `module` while `model` runs on a batch; nothing after it is run, vocabulary logits least of all."""

    def stop(_, args):
        raise _Reached(args[0])

    hook = module.register_forward_pre_hook(stop)
    try:
        model(**batch)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()
    raise ValueError(f"{type(model).__name__} never runs {module}: use init='layers' or init='random'.")


def embed(teacher: PreTrainedModel, inputs: list[dict], checks: list[Tensor]) -> tuple[list[Tensor], list[Batch]]:
    """The sums of embeddings before their LayerNorm, and the batches that enter layer 1 (of the teacher as yet)."""
    embeddings, projection = (
        teacher.base_model.embeddings,
        architecture_of(teacher.config).embedding_projection(teacher),
    )
    sums, batches = [], []
    for batch, check in zip(inputs, checks, strict=True):
        mask = batch["attention_mask"].bool()
        sums.append(module_input(embeddings, embeddings.LayerNorm, embedding_inputs(batch)))
        hidden = embeddings.LayerNorm(sums[-1])
        if projection is not None:
            hidden = projection(hidden)
        batches.append(Batch(mask, check[:, None].expand_as(mask)[mask], teacher=hidden, student=hidden))
    return sums, batches


def fit_embeddings(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    basis: Tensor,
    inputs: list[dict],
    sums: list[Tensor],
    batches: list[Batch],
) -> nn.Linear | None:
    """Embeddings with LayerNorm(table·A) ≈ Pᵀh; moves the batches there. Returns A, None where tables are copied."""
    old, new = teacher.base_model.embeddings, student.base_model.embeddings
    width, student_width = (module.word_embeddings.embedding_dim for module in (old, new))
    projection, new_projection = (
        architecture_of(teacher.config).embedding_projection(teacher),
        architecture_of(student.config).embedding_projection(student),
    )
    if width == student_width and (new_projection is None) == (projection is None):
        new.load_state_dict(old.state_dict())
        if projection is not None:
            write_linear(new_projection, read_linear(projection) @ basis)
        for b in batches:
            b.student = (b.teacher.double() @ basis).float()
        return None

    if new_projection is not None:
        return fit_factors(student, teacher, basis, inputs, sums, batches)

    table_map = nn.Linear(width, student_width).to(student.device)
    start = basis if projection is None else (projection.weight * old.LayerNorm.weight).T.double() @ basis
    write_linear(table_map, torch.cat([start, torch.zeros_like(start[:1])]))

    def tokens():
        for b, x in zip(batches, sums, strict=True):
            target = b.teacher[b.mask].double() @ basis
            yield x[b.mask].float(), torch.zeros_like(target, dtype=torch.float), target, b.check

    fit_writer(table_map, new.LayerNorm, tokens, ROUNDS)
    map_tables(new, old, table_map)
    # Every token has one position: its embedding can carry the constant.
    new.position_embeddings.weight.add_(table_map.bias)
    for b, x in zip(batches, sums, strict=True):
        b.student = new.LayerNorm(table_map(x.float()))
    return table_map


def fit_heads(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    basis: Tensor,
    table_map: nn.Linear | None,
    inputs: list[dict],
    checks: list[Tensor],
):
    """Fit the linear maps outside embeddings and encoder, in their order; log what keeps its random start.

    A map D → D (pooler, dense) reads the hidden state and is cut to the units whose variance matters most to what
    reads them. The other maps read those units, or the hidden state where there is no such map.
    """
    output = teacher.get_output_embeddings()
    body = {*teacher.base_model.embeddings.modules(), *architecture_of(teacher.config).encoder(teacher).modules()}
    head = {name: module for name, module in teacher.named_modules() if module not in body and module is not output}
    base = set(teacher.base_model.modules())
    linears = {
        name: module
        for name, module in head.items()
        if isinstance(module, nn.Linear) and module.in_features == len(basis) and module.bias is not None
    }
    readers = [module for module in linears.values() if module.out_features != len(basis)]
    units, fitted = None, set()

    def pairs(name):
        """Inputs of a module in student and teacher, and the check mask, token by token or row by row."""
        for batch, check in zip(inputs, checks, strict=True):
            x = module_input(student, student.get_submodule(name), batch)
            h = module_input(teacher, teacher.get_submodule(name), batch)
            if x.dim() == 3:
                mask = batch["attention_mask"].bool()
                x, h, check = x[mask], h[mask], check[:, None].expand_as(mask)[mask]
            yield x, h, check

    for name, old in linears.items():
        new = student.get_submodule(name)
        if table_map is not None and output is not None and old not in base and old.out_features == output.in_features:
            norm = next(key for key, module in head.items() if isinstance(module, nn.LayerNorm))
            fit_language_head(student, teacher, name, norm, basis, table_map, pairs)
            fitted |= {f"{norm}.weight", f"{norm}.bias"}
        else:
            prior = read_linear(old)
            if old.out_features == len(basis):
                units = _important_units(teacher, old, readers, inputs, new.out_features)
                prior = project_inputs(prior[:, units], basis)
            elif units is not None:
                prior = torch.cat([prior[:-1][units], prior[-1:]])
            else:
                prior = project_inputs(prior, basis)
            outputs = units if old.out_features == len(basis) else slice(None)
            fit, check = linear_moments((x, old(h)[:, outputs], check) for x, h, check in pairs(name))
            write_linear(new, validated_ridge(fit, check, prior))
        fitted |= {f"{name}.weight", f"{name}.bias"}

    mapped_table = None if output is None or table_map is None else student.get_output_embeddings().weight
    for name, parameter in student.named_parameters():
        if name in fitted or parameter is mapped_table or "embeddings_project" in name:
            continue
        if teacher.get_submodule(name.rpartition(".")[0]) in body:
            continue
        source = teacher.get_parameter(name)
        if source.shape == parameter.shape:
            parameter.copy_(source)
        else:
            logger.warning("%s of the student does not follow from the teacher: it starts at random.", name)


def _important_units(
    teacher, transform: nn.Linear, readers: list[nn.Linear], inputs: list[dict], count: int
) -> Tensor:
    """The outputs of `transform` with the largest variance, times the squared weights of the maps that read them."""
    importance = 0.0
    for module in readers or [transform]:
        caught = [(module_input(teacher, module, batch), batch["attention_mask"].bool()) for batch in inputs]
        x = torch.cat([x[mask] if x.dim() == 3 else x for x, mask in caught])
        values = x if readers else transform(x)
        weight = module.weight.square().sum(0) if readers else 1.0
        importance = importance + values.double().var(0, correction=0) * weight
    return importance.topk(count).indices.sort().values


def fit_language_head(student, teacher, dense: str, norm: str, basis: Tensor, table_map: nn.Linear, pairs):
    """Fit LayerNorm(activation(dense(h))) so that its products with the mapped word table are the teacher's logits."""
    old, new = teacher.get_output_embeddings(), student.get_output_embeddings()
    if new.weight is not student.get_input_embeddings().weight:
        new.weight.copy_(old.weight.float() @ table_map.weight.T)
    # The t' whose logits Et' over the student's table are nearest to the teacher's logits Wt.
    gram = (new.weight.T @ new.weight).double()
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    decode = torch.linalg.solve(gram, (new.weight.T @ old.weight.float()).double()).T
    linear = student.get_submodule(dense)
    write_linear(linear, project_inputs(read_linear(teacher.get_submodule(dense)), basis) @ decode)
    tokens = [(x, h, check) for x, h, check in pairs(dense)]
    states = [h for _, h, _ in pairs(norm)]

    def wanted():
        for (x, _, check), state in zip(tokens, states, strict=True):
            target = teacher.get_submodule(norm)(state).double() @ decode
            yield x, torch.zeros_like(target, dtype=torch.float), target, check

    fit_writer(linear, student.get_submodule(norm), wanted, ROUNDS)
    # No choice of units fits a table in another basis. Far above zero GELU is the identity, and the LayerNorm removes
    # the constant: so the map starts linear.
    lowest = min(linear(x).min() for x, _, _ in tokens)
    linear.bias.add_(4.0 - lowest)
