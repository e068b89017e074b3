"""What the fit of a student takes, told before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from statistics import median
from time import perf_counter

import torch
from transformers import PreTrainedModel

from ..models.architectures import Block, architecture_of
from ..models.forward import evaluation_mode
from .survey import SURVEY_TOKENS

# Solutions of a ridge regression: penalties tried, and the last one on all tokens.
SOLUTIONS = 5
# The share of the speed of a matrix product that the fit reaches.
EFFICIENCY = 0.65
# Copies of the largest second moment: fitted, held-out and all tokens, the system and its Cholesky factor.
MOMENT_COPIES = 6


@dataclass(frozen=True)
class FitCost:
    """What a fit takes.

    Attributes:
        parameters: The number of parameters of the student.
        seconds: The time of the fit.
        memory: Bytes of memory beside the teacher, at the peak.
        disk: Bytes of temporary files.
    """

    parameters: int
    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f} M parameters, about {max(self.seconds, 1):.0f} s, "
            f"{self.memory / 1e9:.2f} GB of memory and {self.disk / 1e9:.2f} GB of temporary files"
        )


def fit_cost(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    lengths: Sequence[int],
    batch_size: int = 32,
    merge_layers: bool = False,
) -> FitCost:
    """Estimate the cost of `create_student(init="teacher")` on calibration data.

    The time is the number of operations of both models, of the second moments and of the regressions, divided by the
    speed of two matrix products that are measured here.

    Args:
        student: A student of the sizes asked for, with any weights.
        teacher: The teacher, on the device of the fit.
        lengths: The number of tokens of each calibration row.
        batch_size: The number of calibration rows a batch.
        merge_layers: Whether a student layer takes heads and units of all teacher layers that it stands for.
    """
    blocks, teacher_blocks = (architecture_of(model.config).blocks(model) for model in (student, teacher))
    tokens, width, student_width = sum(lengths), teacher.config.hidden_size, student.config.hidden_size
    units, depth = blocks[0].feed_forward.intermediate.out_features, len(blocks)
    taken = len(teacher_blocks) if merge_layers else depth
    surveyed = min(SURVEY_TOKENS, tokens) if student_width < width else 0
    single = 2 * (tokens + surveyed) * _weights(teacher_blocks) + 8 * tokens * _weights(blocks)
    single += 2 * surveyed * width**2 * (len(teacher_blocks) + 1) + 4 * tokens * depth * width * student_width
    moments = 4 * student_width**2 + units * (units + student_width)
    double = 2 * tokens * (depth * moments + 2 * taken * student_width * width + width * (width + student_width))
    solutions = 2 * taken * _solution(student_width, width) + 2 * depth * _solution(student_width, student_width)
    solutions += depth * _solution(units, student_width) + _solution(width, student_width)
    double += SOLUTIONS * solutions
    seconds = single / _speed(torch.float32, teacher.device) + double / _speed(torch.float64, teacher.device)
    longest_batch = min(batch_size, len(lengths)) * max(lengths)
    teacher_units = teacher_blocks[0].feed_forward.intermediate.out_features
    memory = student.get_memory_footprint() + 8 * MOMENT_COPIES * max(units, width) ** 2
    memory += longest_batch * (12 * teacher_units + 24 * max(units, width))
    disk = 4 * tokens * ((1 + ceil(taken / depth)) * width + 3 * student_width)
    return FitCost(student.num_parameters(), seconds / EFFICIENCY, memory, disk)


@torch.no_grad()
def seconds_per_row(model: PreTrainedModel, length: int) -> float:
    """The time of an encoder for one row at batch size 1 in PyTorch, the median of five runs.

    Args:
        model: A model; its prediction head is left out.
        length: The number of tokens of the row.
    """
    ids, seconds = torch.full((1, length), 3, device=model.device), []
    with evaluation_mode(model):
        for _ in range(6):
            start = perf_counter()
            model.base_model(input_ids=ids)[0].sum().item()  # waits for the device
            seconds.append(perf_counter() - start)
    return median(seconds[1:])


def _weights(blocks: list[Block]) -> int:
    linears = []
    for block in blocks:
        attention, feed_forward = block.attention, block.feed_forward
        linears += [attention.query, attention.key, attention.value, attention.output]
        linears += [feed_forward.intermediate, feed_forward.output]
    return sum(linear.weight.numel() for linear in linears)


def _solution(inputs: int, outputs: int) -> float:
    """Operations of a Cholesky decomposition, of its solution, and of the error of the solution."""
    return inputs**3 / 3 + 4 * inputs**2 * outputs


@cache
def _speed(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a matrix product, measured once."""
    x = torch.ones(256, 1024, dtype=dtype, device=device)
    weight, seconds = torch.ones(1024, 1024, dtype=dtype, device=device), []
    for _ in range(8):
        start = perf_counter()
        (x @ weight).sum().item()  # waits for the device
        seconds.append(perf_counter() - start)
    return 2 * x.numel() * 1024 / min(seconds)
