"""What the fit stores of both models: rows of numbers for every real token of the calibration data."""

import os
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .calibration import CalibrationBatch


class TokenStore:
    """A row of numbers for each real token, in a temporary file, so that memory holds one batch of them.

    `store[i]` are the rows of batch i on the device of its inputs, (tokens, `width`) in float32; they can be set.

    Args:
        batches: The calibration data.
        width: The numbers of a row.

    Raises:
        OSError: If the folder for temporary files has too little space.
    """

    def __init__(self, batches: list[CalibrationBatch], width: int):
        self._device = batches[0].mask.device
        counts = [int(batch.mask.sum()) for batch in batches]
        self._rows = _matrix_in_a_file(sum(counts), width).split(counts)

    def __getitem__(self, index: int) -> Tensor:
        return self._rows[index].to(self._device)

    def __setitem__(self, index: int, rows: Tensor) -> None:
        self._rows[index].copy_(rows)


def _matrix_in_a_file(rows: int, width: int) -> Tensor:
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # without space, writing to mapped memory would end the process
            try:
                os.posix_fallocate(file.fileno(), 0, rows * width * 4)
            except OSError as error:
                raise OSError(
                    f"{tempfile.gettempdir()} has no room for {rows * width * 4 / 1e9:.2f} GB of hidden states: set "
                    "TMPDIR to a folder that has, or pass fewer calibration rows."
                ) from error
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(rows, width)))


@dataclass(frozen=True)
class CalibrationStates:
    """The states of both models on the calibration data, between two sublayers.

    Attributes:
        batches: The calibration data.
        teacher: The teacher's hidden states h, rows of D numbers.
        student: The student's hidden states, rows of D' numbers.
        contexts: What the output projection of the student's attention sublayer receives, rows of D' numbers.
        targets: What the student's next hidden states are fitted to, rows of D' numbers.
        middles: The teacher's states between attention and feed-forward sublayer, rows of D numbers, a store for each
            of the layers whose heads and units one layer of the student takes.
    """

    batches: list[CalibrationBatch]
    teacher: TokenStore
    student: TokenStore
    contexts: TokenStore
    targets: TokenStore
    middles: list[TokenStore]

    @classmethod
    def allocate(
        cls, batches: list[CalibrationBatch], width: int, student_width: int, group_size: int
    ) -> "CalibrationStates":
        """Stores for a teacher of width D and a student of width D'.

        Args:
            batches: The calibration data.
            width: D.
            student_width: D'.
            group_size: The largest number of teacher layers whose heads and units one layer of the student takes.
        """
        stores = [TokenStore(batches, size) for size in (width, *[student_width] * 3)]
        return cls(batches, *stores, [TokenStore(batches, width) for _ in range(group_size)])


def padded(rows: Tensor, mask: Tensor) -> Tensor:
    """The rows of a batch, (tokens, D), as (B, S, D) with zeros at padding.

    Args:
        rows: (tokens, D).
        mask: (B, S), true at real tokens.
    """
    states = rows.new_zeros(*mask.shape, rows.shape[-1])
    states[mask] = rows
    return states
