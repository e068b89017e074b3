"""Cut a smaller encoder out of a larger one on a sample of data, by principal components and least squares.

The student's hidden state stands for Pᵀh of the teacher's h, with P [D, D'] the principal components of all of those.
The student is built from the embeddings up and runs on the sample as it grows: every linear map is refitted by ridge
regression from what the student really sees to what the teacher computes there, towards the teacher's projected
weights. So each layer also absorbs the teacher layers that it skips and the errors made below it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from ..least_squares import (
    fit_writer,
    linear_moments,
    project_inputs,
    read_linear,
    score_maps,
    validated_ridge,
    value_maps,
    write_linear,
)
from ..models.architectures import Block

# Of the alternation between a writer and its LayerNorm.
ROUNDS = 1


@dataclass
class Batch:
    """One padded batch of the sample, part of the way through both encoders."""

    mask: Tensor  # [B, S], True at real tokens
    check: Tensor  # [real tokens], True where the row only chooses ridge penalties
    teacher: Tensor  # [B, S, D]
    student: Tensor  # [B, S, D']


def fit_attention(student: Block, teacher: Block, basis: Tensor, batches: list[Batch]):
    """Fit the attention sublayer: scores and values of each head at its smaller size, then the output."""
    linears = (teacher.query, teacher.key, teacher.value)
    fit, check = linear_moments(
        (b.student[b.mask], torch.cat([linear(b.teacher[b.mask]) for linear in linears], -1), b.check) for b in batches
    )
    prior = torch.cat([project_inputs(read_linear(linear), basis) for linear in linears], -1)
    solution = validated_ridge(fit, check, prior)
    query, key, value = (w.T.unflatten(0, (teacher.num_heads, -1)) for w in solution.chunk(3, -1))  # [H, d, D' + 1]
    writer = (basis.T @ teacher.attention_output.weight.double()).unflatten(-1, (teacher.num_heads, -1))

    context_moment = 0.0
    for b in batches:
        context = teacher.context(b.teacher, b.mask)[b.mask].double().unflatten(-1, (teacher.num_heads, -1))
        context_moment = context_moment + torch.einsum("nhi,nhj->hij", context, context)
    input_moment = (fit + check).inputs / (fit + check).inputs[-1, -1]
    # Softmax ignores what all keys share, so of the keys only the spread counts.
    centred_moment = input_moment - input_moment[:, -1:] * input_moment[-1:]

    written = torch.einsum("ohi,hij,ohj->h", writer, context_moment, writer)
    heads = written.topk(student.num_heads).indices.sort().values.tolist()
    teacher_size, student_size = query.shape[1], student.query.out_features // student.num_heads
    rank = min(teacher_size, student_size)
    # Scores keep their size although the student divides them by the root of another head size.
    scale = (student_size / teacher_size) ** 0.25
    student.query.weight.zero_()
    student.query.bias.zero_()
    student.attention_output.weight.zero_()
    for index, head in enumerate(heads):
        rows = slice(index * student_size, index * student_size + rank)
        query_map = key_map = value_map = torch.eye(teacher_size).to(query)
        output = writer[:, head]
        if rank < teacher_size:
            query_map, key_map = score_maps(
                query[head] @ input_moment @ query[head].T, key[head] @ centred_moment @ key[head].T, rank
            )
            value_map, output = value_maps(output, context_moment[head], rank)
        for linear, weight in (
            (student.query, scale * query_map @ query[head]),
            (student.key, scale * key_map @ key[head]),
            (student.value, value_map @ value[head]),
        ):
            linear.weight[rows], linear.bias[rows] = weight[:, :-1].float(), weight[:, -1].float()
        student.attention_output.weight[:, rows] = output.float()
    student.attention_output.bias.copy_(basis.T @ teacher.attention_output.bias.double())

    tokens = []
    for b in batches:
        target = teacher.attend(b.teacher, b.mask)[b.mask].double() @ basis
        tokens.append((student.context(b.student, b.mask)[b.mask], b.student[b.mask], target.float(), b.check))
    fit_writer(student.attention_output, student.attention_norm, lambda: tokens, ROUNDS)


def fit_feed_forward(student: Block, teacher: Block, basis: Tensor, batches: list[Batch]):
    """Keep the feed-forward units u with the largest E[a_u²]·‖W_out,u‖², then fit what they read and write."""
    energy = 0.0
    for b in batches:
        energy = energy + teacher.activation(teacher.intermediate(b.teacher[b.mask])).double().square().sum(0)
    written = energy * (basis.T @ teacher.output.weight.double()).square().sum(0)
    units = written.topk(student.intermediate.out_features).indices.sort().values
    fit, check = linear_moments(
        (b.student[b.mask], teacher.intermediate(b.teacher[b.mask])[:, units], b.check) for b in batches
    )
    prior = project_inputs(read_linear(teacher.intermediate)[:, units], basis)
    write_linear(student.intermediate, validated_ridge(fit, check, prior))
    student.output.weight.copy_(basis.T @ teacher.output.weight.double()[:, units])
    student.output.bias.copy_(basis.T @ teacher.output.bias.double())

    targets = [(teacher.feed_forward(b.teacher[b.mask]).double() @ basis).float() for b in batches]

    def tokens():
        # Everything else has the student's width and is kept; the units are many times wider, so they run again.
        for b, target in zip(batches, targets, strict=True):
            hidden = b.student[b.mask]
            yield student.activation(student.intermediate(hidden)), hidden, target, b.check

    fit_writer(student.output, student.output_norm, tokens, ROUNDS)


def fit_encoder(student: list[Block], teacher: list[Block], layers: list[int], basis: Tensor, batches: list[Batch]):
    """Fit student layer m to teacher layer layers[m − 1] (from 1, increasing); moves the batches to the last."""
    done = 0
    for block, layer in zip(student, tqdm(layers, desc="Cutting layers"), strict=True):
        for b in batches:
            for skipped in teacher[done : layer - 1]:
                b.teacher = skipped.feed_forward(skipped.attend(b.teacher, b.mask))
        done = layer
        target = teacher[layer - 1]
        fit_attention(block, target, basis, batches)
        for b in batches:
            b.student, b.teacher = block.attend(b.student, b.mask), target.attend(b.teacher, b.mask)
        fit_feed_forward(block, target, basis, batches)
        for b in batches:
            b.student, b.teacher = block.feed_forward(b.student), target.feed_forward(b.teacher)
