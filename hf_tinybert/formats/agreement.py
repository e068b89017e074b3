"""How far a converted model gives the answers of the model that it was made from, for every kind of prediction head.

Nothing here knows a format: a converted model is a function from inputs to named outputs.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.prediction_heads import PredictionHead
from .comparison_rows import ComparisonRows

MIN_AGREEMENT, MIN_CORRELATION = 0.98, 0.99
NO_ANSWER = -1

Forward = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Answers = dict[str, np.ndarray]


class QualityGate:
    """Refuses a converted model that does not give the answers of the model that it was made from.

    Args:
        reference: The model: inputs → named outputs. It runs once.
        head: The kind of its prediction head.
        rows: The rows to compare on.
        min_agreement: The lowest agreement allowed; default 0.98 of the answers, or a correlation of 0.99 for scores
            and embeddings.

    Raises:
        ValueError: If the model itself gives NaN.
    """

    def __init__(
        self, reference: Forward, head: PredictionHead, rows: ComparisonRows, min_agreement: float | None = None
    ):
        self.head, self.rows = head, rows
        self.expected = self._answers(reference)
        if any(_undefined(values).any() for values in self.expected.values()):
            raise ValueError(f"The model gives NaN on {rows}: check its weights. Nothing was written.")
        self.correlates = all(values.dtype.kind == "f" for values in self.expected.values())
        default = MIN_CORRELATION if self.correlates else MIN_AGREEMENT
        self.min_agreement = default if min_agreement is None else min_agreement

    def measure(self, candidate: Forward) -> float:
        """The agreement of a converted model with the model (`agreement`)."""
        return agreement(self.expected, self._answers(candidate), self.rows.count)

    def check(self, name: str, value: float) -> None:
        """Refuse a converted model, called `name`, of too low an agreement.

        Raises:
            ValueError: If `value` is lower than `min_agreement`.
        """
        if not value >= self.min_agreement:
            measured = (
                f"correlates with the model by {value:.3f}"
                if self.correlates
                else f"gives {value:.1%} of the model's answers"
            )
            more = "" if self.rows.real else " Pass calibration_dataset, rows of the task, to measure on real tokens."
            raise ValueError(
                f"{name} {measured} on {self.rows}: less than min_agreement={self.min_agreement:g}, so that it was "
                f"not written. Use another format, or lower min_agreement if you accept the loss.{more}"
            )

    def _answers(self, forward: Forward) -> Answers:
        batches = zip(self.rows.batches, self.rows.masks, strict=True)
        return join_answers([answers(self.head, forward(batch), mask) for batch, mask in batches])


def answers(head: PredictionHead, outputs: Mapping[str, Tensor], mask: Tensor | None) -> Answers:
    """The answers of a model for a batch.

    Args:
        head: The kind of its prediction head.
        outputs: Its named outputs.
        mask: (B, S), true at the tokens that count.

    Returns:
        `decisions`, the options that the head decides for, (N,) integers, −1 for NaN; one array (N, 1) for each
        real-valued score; or, without a prediction head, one (B, D) for each output, the mean over tokens.
    """
    logits = head.logits(outputs)
    if logits is None:
        return {name: _mean(values, mask).double().numpy() for name, values in outputs.items()}
    logits = logits.float()
    labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
    if mask is not None and logits.dim() == 3:
        labels = labels.masked_fill(~mask, -100)
        logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
    return answers_of_logits(head, logits.numpy(), labels.numpy())


def answers_of_logits(head: PredictionHead, logits: np.ndarray, labels: np.ndarray) -> Answers:
    """The answers that logits give, `decisions` or scores as in `answers`.

    Args:
        head: The kind of the prediction head.
        logits: As `PredictionHead.decisions` takes them.
        labels: As `PredictionHead.decisions` takes them; only where they are −100 matters.
    """
    options, _ = head.decisions(logits, labels)
    if head.real_valued:
        return {f"score {index}": column[:, None].astype(float) for index, column in enumerate(options.T)}
    return {"decisions": np.where(np.isnan(options).any(-1), NO_ANSWER, options.argmax(-1))}


def agreement(reference: Answers, candidate: Answers, rows: int) -> float:
    """The agreement of two models, the lowest of their answers'.

    - Of decisions: the share of equal ones. Of heads that decide several times a row (tokens, several labels), those
      at which both models give the reference's most frequent answer ("O", "no") are left out: they would hide a loss
      of all others.
    - Of scores and embeddings: Lin's (1989) concordance correlation 2·S_xy / (S_xx + S_yy + N·(x̄ − ȳ)²), which is
      Pearson's, lowered by differences of mean and scale.

    Args:
        reference: What `answers` returned for the reference, of all batches.
        candidate: The same for the candidate.
        rows: The number of rows.

    Returns:
        0 to 1 for decisions, −1 to 1 for correlations; 0 if the candidate's are NaN.
    """
    values = []
    for name, expected in reference.items():
        if expected.dtype.kind == "f":
            values.append(_concordance(expected, candidate[name]))
        else:
            values.append(_share_of_equal(expected, candidate[name], several=len(expected) > rows))
    return min(values)


def _share_of_equal(reference: np.ndarray, candidate: np.ndarray, several: bool) -> float:
    counted = np.ones(len(reference), dtype=bool)
    if several:
        options, counts = np.unique(reference, return_counts=True)
        common = options[counts.argmax()]
        counted = (reference != common) | (candidate != common)
    return float((reference == candidate)[counted].mean()) if counted.any() else 1.0


def _concordance(reference: np.ndarray, candidate: np.ndarray) -> float:
    (x, y), shift = (
        (values - values.mean(0) for values in (reference, candidate)),
        reference.mean(0) - candidate.mean(0),
    )
    if not x.any():  # one row, or the same value for every row
        return float(np.allclose(candidate, reference, rtol=1 - MIN_CORRELATION))
    value = 2 * (x * y).sum() / ((x * x).sum() + (y * y).sum() + len(x) * (shift * shift).sum())
    return float(value) if np.isfinite(value) else 0.0


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if values.dim() < 3 or mask is None:
        return values.flatten(1, -2).mean(1) if values.dim() > 2 else values
    weights = mask[..., None].to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1)


def _undefined(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else values == NO_ANSWER


def join_answers(batches: Sequence[Answers]) -> Answers:
    """The answers of several batches as those of one."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
