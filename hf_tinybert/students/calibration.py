"""Calibration data: padded batches of the rows on which a student is fitted to its teacher."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.forward import forward_columns
from ..models.row_checks import InputLimits, check_rows, take_rows

# One calibration row in four is held out.
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class CalibrationBatch:
    """A padded batch of calibration rows.

    Attributes:
        inputs: The model's inputs, (B, S) each.
        held_out_rows: (B,), true at the held-out rows, which choose ridge penalties.
    """

    inputs: Mapping[str, Tensor]
    held_out_rows: Tensor

    @cached_property
    def mask(self) -> Tensor:
        """(B, S), true at real tokens."""
        return self.inputs["attention_mask"].bool()

    @cached_property
    def held_out_tokens(self) -> Tensor:
        """(number of real tokens,), true at the tokens of held-out rows."""
        return self.held_out_rows[:, None].expand_as(self.mask)[self.mask]

    @property
    def embedding_inputs(self) -> dict[str, Tensor]:
        """The inputs of the embeddings."""
        return {name: self.inputs[name] for name in ("input_ids", "token_type_ids") if name in self.inputs}


def calibration_batches(
    calibration_dataset: Iterable[Mapping[str, Any]], processing_class: Any, model: PreTrainedModel, batch_size: int
) -> list[CalibrationBatch]:
    """Calibration rows in batches of similar length, on the model's device.

    Args:
        calibration_dataset: Tokenised rows. Every choice of a multiple-choice row becomes a row.
        processing_class: Pads the rows by its `pad`; None pads them with the model's `pad_token_id`.
        model: The model that they are for.
        batch_size: The number of rows a batch.

    Raises:
        ValueError: If there is no row, or if a column of a row does not fit the model; the message names both.
    """
    accepted = forward_columns(model.base_model)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]
    rows = take_rows(calibration_dataset, names)
    if not rows or "input_ids" not in rows[0]:
        raise ValueError("calibration_dataset holds no tokens: pass tokenised rows, each with a non-empty input_ids.")
    choices = isinstance(rows[0]["input_ids"], list) and np.ndim(rows[0]["input_ids"][:1]) == 2
    check_rows(rows, InputLimits.of_models([model], choices), "calibration_dataset")
    if choices:
        rows = [dict(zip(row, choice, strict=True)) for row in rows for choice in zip(*row.values(), strict=True)]
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    batches = []
    for start in range(0, len(rows), batch_size):
        indices = by_length[start : start + batch_size]
        inputs = _pad([rows[index] for index in indices], processing_class, model.config.pad_token_id)
        held_out = torch.tensor([index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for index in indices])
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        batches.append(CalibrationBatch(inputs, held_out.to(model.device)))
    return batches


def _pad(rows: list[dict], processing_class: Any, pad_token_id: int | None) -> dict[str, Tensor]:
    if processing_class is not None:
        return dict(processing_class.pad(rows, return_tensors="pt"))
    padding = {"input_ids": pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
    rows = [{"attention_mask": [1] * len(row["input_ids"])} | row for row in rows]
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [padding[name]] * (length - len(row[name])) for row in rows])
        for name in rows[0]
    }


def module_input(model: nn.Module, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The first argument that `module` is called with in a forward pass of `model`.

    Args:
        model: The model that is run.
        module: A module of it.
        inputs: The model's inputs.

    Raises:
        ValueError: If the model does not call the module.
    """
    recorded: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        recorded.append(args[0])

    with module.register_forward_pre_hook(record):
        model(**inputs)
    if not recorded:
        raise ValueError(f"{type(model).__name__} never runs {module}: use init='layers' or init='random'.")
    return recorded[0]
