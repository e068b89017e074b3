"""Several teachers read as one: their combined logits, and errors that say which of them is meant."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ..activations import Activations
from ..models.checks import check_finite, non_finite
from ..models.prediction_heads import PredictionHead
from ..native_dtypes import target_dtype
from .teacher import TEACHER_LOGITS, TEACHER_ROW, Teacher

COMBINATIONS = ("mean", "confidence")


def combine_logits(
    logits: Sequence[Tensor],
    weights: Sequence[float],
    prediction_head: PredictionHead,
    how: str = "mean",
    attention_mask: Tensor | None = None,
) -> Tensor:
    """The logits of several teachers as those of one, Σ_k s_k·z_k with Σ_k s_k = 1.

    Args:
        logits: z_k, one tensor a teacher, all of one shape.
        weights: w_k > 0 with sum 1 (`normalised`).
        prediction_head: The kind of head that the logits come from.
        how: "mean": s_k = w_k; the softmax of the result is the normalised geometric mean of the teachers'
            softmaxes. "confidence": s_k ∝ w_k·exp(−H_k), with H_k the entropy of each distribution: a surer teacher
            counts for more.
        attention_mask: (B, S), which the entropy of spans needs.

    Returns:
        A tensor of the same shape, at least in float32.

    Raises:
        ValueError: For "confidence" of scores, which have no entropy.
    """
    logits = [z.to(torch.promote_types(z.dtype, torch.float32)) for z in logits]
    shares = torch.tensor(weights, dtype=logits[0].dtype, device=logits[0].device).view(-1, *[1] * logits[0].dim())
    if how == "confidence":
        entropies = torch.stack([prediction_head.entropy(z, attention_mask) for z in logits])
        shares = (shares.log() - entropies).softmax(0)
    return sum(share * z for share, z in zip(shares, logits, strict=True))


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights of `count` teachers, scaled to sum 1; None weighs them equally.

    Raises:
        ValueError: If `weights` are not one positive number a teacher.
    """
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"teacher_weights={weights}: give one positive number for each of the {count} teachers.")
    return [weight / sum(weights) for weight in weights]


@contextmanager
def about_teacher(number: int, count: int) -> Iterator[None]:
    """Errors raised inside say which of several teachers they are about, counted from 1."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if count == 1:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"Teacher {number} of {count}: {error}") from error


@dataclass
class Teaching:
    """What the losses read of the teachers for one batch.

    Args:
        activations: One for each teacher, all with the combined logits.
        logits: The combined logits, (B, C) or (B, S, C); None if no loss reads them.
        observed: One for each teacher, with its own logits if it ran for them.
    """

    activations: list[Activations]
    logits: Tensor | None
    observed: list[Activations]

    def non_finite(self) -> str | None:
        """What holds NaN or infinity, in words that a message can go on from; None if nothing does."""
        for number, activations in enumerate(self.observed, start=1):
            if (name := non_finite(activations)) is not None:
                several = f" {number} of {len(self.observed)}" if len(self.observed) > 1 else ""
                return f"{name} of the teacher{several}"
        combined = Activations(logits=self.logits)
        return None if non_finite(combined) is None else "the column teacher_logits"


class Ensemble:
    """Any number of teachers, read as one. Without a teacher there are only the logits that a batch holds.

    Args:
        teachers: The teachers; their weights sum to 1.
        how: "mean" or "confidence" (`combine_logits`).
    """

    def __init__(self, teachers: Sequence[Teacher], how: str = "mean"):
        self.teachers, self.how = teachers, how

    @property
    def columns(self) -> list[str]:
        """The inputs that the teachers take, each once."""
        return list(dict.fromkeys(chain.from_iterable(teacher.columns for teacher in self.teachers)))

    @torch.no_grad()
    def run_all(self, inputs: Mapping[str, Any]) -> list[Activations]:
        """One checked forward pass of each teacher, with its own logits."""
        return checked([teacher.run(inputs) for teacher in self.teachers])

    @torch.no_grad()
    def teach(self, inputs: Mapping[str, Any], verify: bool = False) -> Teaching:
        """What the losses read of the teachers. A column `teacher_logits` of the batch stands for all their logits.

        Args:
            inputs: The batch.
            verify: Whether to run the teachers in any case and compare what is cached with what they say now.

        Raises:
            ValueError: If a cache is stale or an activation is not finite.
        """
        observed = [teacher.observe(inputs, verify) for teacher in self.teachers]
        if verify:
            checked(observed)
        cached, live = inputs.get(TEACHER_LOGITS), None
        each_logits = [activations.logits for activations in observed]
        if observed and all(logits is not None for logits in each_logits):
            weights, first = [teacher.weight for teacher in self.teachers], observed[0]
            live = combine_logits(each_logits, weights, first.prediction_head, self.how, first.attention_mask)
        if verify and cached is not None and live is not None:
            check_cached_logits(cached, live, inputs.get("attention_mask"))
        logits = live if cached is None else cached
        return Teaching([replace(activations, logits=logits) for activations in observed], logits, observed)

    def cache_activations(
        self,
        dataset: datasets.Dataset,
        collate: Callable[[list[dict]], Mapping[str, Any]],
        budget_gb: float,
        worthwhile: bool,
        dtype: str | None,
    ) -> datasets.Dataset:
        """Cache what is captured of each teacher, as far as the disk budget for all of them allows.

        Args:
            dataset: The training rows.
            collate: Rows → a batch on the device.
            budget_gb: Disk space for all teachers together, in 10⁹ bytes.
            worthwhile: Whether a cache that does not exist yet is to be made (`cache_activations`).
            dtype: The data type that the teachers compute in (`Teacher.cache_rows`).

        Returns:
            `dataset`, with a column of row numbers if any teacher's activations are cached.
        """
        for number, teacher in enumerate(self.teachers, start=1):
            if not teacher.captures:
                continue
            with about_teacher(number, len(self.teachers)):
                if teacher.cache_rows(dataset, collate, budget_gb, worthwhile, dtype):
                    budget_gb -= teacher.cache.records.nbytes / 1e9
        cached = any(teacher.cache is not None for teacher in self.teachers)
        return dataset.add_column(TEACHER_ROW, np.arange(len(dataset))) if cached else dataset

    def lower(self, dtype: str, inputs: Mapping[str, Any]) -> bool:
        """Bring the teachers that run to a data type while they are read.

        Args:
            dtype: The name of the data type, or "auto" (`target_dtype`).
            inputs: A batch, on which a teacher runs or does not.

        Returns:
            Whether that changed any.
        """
        targets = [(teacher, target_dtype(dtype, teacher.model)) for teacher in self.teachers]
        changed = [(teacher, target) for teacher, target in targets if target is not None and teacher.runs_on(inputs)]
        for teacher, target in changed:
            teacher.lower(target)
        return bool(changed)

    def restore(self) -> None:
        """Undo `lower`."""
        for teacher in self.teachers:
            teacher.restore()


def checked(activations: list[Activations]) -> list[Activations]:
    """Return the activations of several teachers after a check that they are finite.

    Raises:
        ValueError: If one holds NaN or infinity; the message names the teacher and the activation.
    """
    for number, observed in enumerate(activations, start=1):
        with about_teacher(number, len(activations)):
            check_finite(observed)
    return activations


def check_cached_logits(cached: Tensor, live: Tensor, attention_mask: Tensor | None) -> None:
    """Check that a `teacher_logits` column is what the teacher says now, to one part in twenty.

    Another teacher, other tokens or other rows are much further off; bf16 against float32 is nearer.

    Args:
        cached: (B, C), or (B, S, C), of which only real tokens count.
        live: Of the same shape.
        attention_mask: (B, S).

    Raises:
        ValueError: If it is not.
    """
    if cached.dim() == 3 and cached.shape == live.shape and attention_mask is not None:
        cached, live = (logits[attention_mask.bool()] for logits in (cached, live))
    if cached.shape != live.shape or (cached - live).abs().max() > 0.05 * live.abs().max():
        raise ValueError(
            "The column teacher_logits is not what teacher_model computes on these rows: it was made by another "
            "teacher or tokenizer, or for other rows. Remove the column, or make it again with cache_logits."
        )
