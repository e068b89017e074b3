"""Attention heads at a smaller size, from second moments of what they read and compute."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..least_squares import score_maps, value_maps
from ..models.architectures import Attention


@dataclass(frozen=True)
class AttentionHeads:
    """Attention heads of a teacher over the student's hidden states, in float64.

    Attributes:
        query: (H, d, D' + 1), weights with the bias in the last column, d being the size of an attention head.
        key: (H, d, D' + 1).
        value: (H, d, D' + 1).
        output: (D', H, d), the output projection, without its bias.
        input_moment: (D' + 1, D' + 1), E xxᵀ of what the student's sublayer receives, with a constant 1 appended.
        context_moment: (H, d, d), Σ ccᵀ of the teacher's context vectors c.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    input_moment: Tensor
    context_moment: Tensor

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


def context_moment(context: Tensor, num_heads: int) -> Tensor:
    """Σ ccᵀ of the context vectors c of each attention head, (H, d, d) in float64, for contexts (tokens, H·d)."""
    context = context.double().unflatten(-1, (num_heads, -1)).transpose(0, 1)
    return context.mT @ context


def output_energy(output: Tensor, moment: Tensor) -> Tensor:
    """Σ‖Wc‖² of each attention head, (H,).

    Args:
        output: W, the output projection, (D, H, d).
        moment: Σ ccᵀ, (H, d, d).
    """
    return torch.einsum("ohi,hij,ohj->h", output, moment, output)


def largest_heads(energy: Tensor, count: int) -> list[int]:
    """The `count` attention heads with the largest energy, (H,), in their order."""
    return energy.topk(count).indices.sort().values.tolist()


def set_attention_heads(student: Attention, heads: AttentionHeads) -> None:
    """Give the student its attention heads, each reduced to the student's size if that is smaller.

    Args:
        student: The student's attention sublayer, which is changed.
        heads: An attention head of the teacher for each one of the student's.
    """
    size = student.query.out_features // student.num_heads
    teacher_size = heads.query.shape[1]
    rank = min(teacher_size, size)
    # The scaling depends on the size of an attention head; this factor leaves the scaled scores as they are.
    scale = (size / teacher_size) ** 0.25
    # What an attention head has beyond the teacher's size contributes neither to the scores nor to the output.
    for parameter in (*student.query.parameters(), student.output.weight):
        parameter.zero_()
    for head in range(student.num_heads):
        if rank < teacher_size:
            query, key, value, output = heads.reduced(head, rank, scale)
        else:
            query, key = scale * heads.query[head], scale * heads.key[head]
            value, output = heads.value[head], heads.output[:, head]
        rows = slice(head * size, head * size + rank)
        for linear, weight in ((student.query, query), (student.key, key), (student.value, value)):
            _set_rows(linear, rows, weight)
        student.output.weight[:, rows] = output.float()


def _set_rows(linear: nn.Linear, rows: slice, weight: Tensor) -> None:
    linear.weight[rows] = weight[:, :-1].float()
    if linear.bias is not None:
        linear.bias[rows] = weight[:, -1].float()
