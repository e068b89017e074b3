"""The rows on which a converted model is compared with the model that it was made from."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.prediction_heads import MaskedTokens, PredictionHead
from ..models.row_checks import InputLimits, check_rows, take_rows

logger = logging.getLogger(__name__)

ROWS, BATCH = 256, 16
MASK_EVERY = 7  # of the tokens of a masked language model, as in its training


@dataclass(frozen=True)
class ComparisonRows:
    """Padded rows.

    Attributes:
        batches: The inputs of each batch, (B, S) or (B, choices, S).
        masks: (B, S) of each batch, true at the tokens that count; None in multiple choice.
        count: The number of rows.
        real: Whether they are rows that were passed, not random tokens.
    """

    batches: list[dict[str, Tensor]]
    masks: list[Tensor | None]
    count: int
    real: bool

    @property
    def few(self) -> bool:
        """Whether they say little about real data."""
        return not self.real or self.count < ROWS

    def __str__(self) -> str:
        return f"{self.count} rows of {'calibration_dataset' if self.real else 'random tokens'}"


def comparison_rows(
    calibration_dataset: Iterable[Mapping[str, Any]] | None,
    processing_class: PreTrainedTokenizerBase,
    limits: InputLimits,
    head: PredictionHead,
    names: Sequence[str],
) -> ComparisonRows:
    """The rows to compare on: 256 of those that were passed, evenly spread, or random tokens.

    Args:
        calibration_dataset: Tokenised rows; None draws random tokens.
        processing_class: The tokenizer, which pads.
        limits: What rows of the model may hold.
        head: The kind of its prediction head. In masked language models every seventh token is masked unless the
            rows have masks.
        names: The inputs of the model.

    Raises:
        ValueError: If rows were passed that hold no tokens or do not fit the model.
    """
    if calibration_dataset is None:
        rows = _random_rows(limits)
    else:
        rows = take_rows(calibration_dataset, ["input_ids", "attention_mask", *names], ROWS)
        if not rows or not all(row.get("input_ids") for row in rows):
            raise ValueError("calibration_dataset holds no tokens: pass tokenised rows, each with an input_ids.")
        more = len(rows) == ROWS
        check_rows(rows, limits, f"the {ROWS} rows taken of calibration_dataset" if more else "calibration_dataset")
    nested = isinstance(rows[0]["input_ids"][0], Sequence)
    rows.sort(key=lambda row: max(map(len, row["input_ids"])) if nested else len(row["input_ids"]))
    batches = [
        _pad(rows[start : start + BATCH], processing_class, names, nested) for start in range(0, len(rows), BATCH)
    ]
    masks = [None if nested else batch["attention_mask"].bool() for batch in batches]
    if isinstance(head, MaskedTokens) and processing_class.mask_token_id is not None:
        masks = [
            _mask_tokens(batch["input_ids"], mask, processing_class)
            for batch, mask in zip(batches, masks, strict=True)
        ]
    batches = [{name: batch[name] for name in names} for batch in batches]
    return ComparisonRows(batches, masks, len(rows), real=calibration_dataset is not None)


def warn_of_few_rows(rows: ComparisonRows, name: str) -> None:
    """Log a warning if rows say little about real data; `name` is the file that is compared on them."""
    if rows.few:
        logger.warning(
            f"{name} is compared with the model on {rows}: pass {ROWS} rows of the task or more (calibration_dataset, "
            "or --data), to know what it changes on real data."
        )


def _random_rows(limits: InputLimits) -> list[dict[str, list]]:
    """Rows of 4 to 64 random tokens, the same in every call."""
    generator = np.random.default_rng(0)
    longest, size = min(64, limits.positions or 64), limits.sizes["input_ids"]

    def draw() -> list[int]:
        return generator.integers(size, size=generator.integers(min(4, longest), longest + 1)).tolist()

    return [{"input_ids": [draw(), draw()] if limits.choices else draw()} for _ in range(ROWS)]


def _pad(
    rows: list[dict], processing_class: PreTrainedTokenizerBase, names: Sequence[str], nested: bool
) -> dict[str, Tensor]:
    shape = (len(rows), -1)
    if nested:
        counts = {len(row["input_ids"]) for row in rows}
        if len(counts) > 1:
            raise ValueError(f"Rows of calibration_dataset have {sorted(counts)} choices: all need the same number.")
        shape = (len(rows), *counts, -1)
        rows = [dict(zip(row, choice, strict=True)) for row in rows for choice in zip(*row.values(), strict=True)]
    batch = dict(processing_class.pad(rows, return_attention_mask=True, return_tensors="pt"))
    for name in names:  # token types, for example: a tokenizer gives 0 to a single text
        batch.setdefault(name, torch.zeros_like(batch["input_ids"]))
    return {name: values.view(shape) for name, values in batch.items()}


def _mask_tokens(input_ids: Tensor, real: Tensor, processing_class: PreTrainedTokenizerBase) -> Tensor:
    """Mask every seventh token of rows without masks, in place; returns where tokens are masked."""
    masked = input_ids == processing_class.mask_token_id
    if not masked.any():
        every = (real.cumsum(1) % MASK_EVERY == 2) & real
        input_ids[every] = processing_class.mask_token_id
        masked = every
    return masked
