"""Several teachers as one: their weights, their combined logits, and errors that say which of them is meant."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .activations import Logits

COMBINATIONS = ("mean", "confidence")


def combine_logits(
    logits: Sequence[Tensor],
    weights: Sequence[float],
    how: str = "mean",
    kind: Logits = Logits.CLASSES,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """The logits of several teachers as those of one, Σ_k s_k·z_k with Σ_k s_k = 1, at least in float32.

    - `"mean"`: s_k = w_k; softmax of it is the normalised geometric mean of the teachers' softmaxes.
    - `"confidence"`: s_k ∝ w_k·exp(−H_k), H_k the entropy of each distribution that `kind` says: the surer teacher is
      heard more. Raises ValueError for a regression's score, which has none.

    `logits` are of one shape, one a teacher, `weights` positive and of sum 1 (`normalised`); `attention_mask` (B, S)
    counts for positions only.
    """
    logits = [z.to(torch.promote_types(z.dtype, torch.float32)) for z in logits]
    shares = torch.tensor(weights, dtype=logits[0].dtype, device=logits[0].device).view(-1, *[1] * logits[0].dim())
    if how == "confidence":
        entropies = torch.stack([_entropy(z, kind, attention_mask) for z in logits])
        shares = (shares.log() - entropies).softmax(0)
    return sum(share * z for share, z in zip(shares, logits, strict=True))


def _entropy(logits: Tensor, kind: Logits, attention_mask: Tensor | None) -> Tensor:
    """Of each distribution, in nats, in a shape that broadcasts with `logits`."""
    if kind is Logits.LABELS:
        p = logits.sigmoid()
        return torch.special.entr(p) + torch.special.entr(1 - p)
    dim = -1
    if kind is Logits.POSITIONS:
        dim = 1
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask.bool()[..., None], -torch.inf)
    if logits.shape[dim] == 1:
        raise ValueError("teacher_logits='confidence' needs heads of two outputs or more: set teacher_logits='mean'.")
    return torch.special.entr(logits.softmax(dim)).sum(dim, keepdim=True)


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """A weight for each of `count` teachers, summing to 1; None weighs them equally.

    Raises ValueError where `weights` are not one positive number a teacher.
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
