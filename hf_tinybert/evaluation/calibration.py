"""How far probabilities can be trusted, and the temperature that makes them honest (Guo et al. 2017)."""

from dataclasses import dataclass

import numpy as np

BINS = 15
BLOCKS = 20  # of neighbours, such as the tokens of a row, which lie in the same half of the decisions
COLDEST, HOTTEST = 0.1, 10.0


@dataclass
class Calibration:
    """What softmax says of decisions, and how often they are right.

    Attributes:
        decisions: The number of decisions.
        temperature: The temperature t of softmax(z/t) with the highest likelihood.
        error: The expected calibration error of softmax(z).
        error_after: The same of softmax(z/t); each half of the decisions with the temperature of the other half.
        bins: (share of the decisions, mean confidence, accuracy) of each bin of softmax(z) that is not empty.
        bins_after: The same of softmax(z/t).
    """

    decisions: int
    temperature: float
    error: float
    error_after: float
    bins: list[list[float]]
    bins_after: list[list[float]]

    @classmethod
    def measure(cls, logits: np.ndarray, labels: np.ndarray) -> "Calibration":
        """Calibrate labelled decisions.

        Args:
            logits: z, (N, K), as `PredictionHead.decisions` returns them.
            labels: (N,), or the teacher's probabilities (N, K) where there are none.
        """
        second = np.arange(len(labels)) * BLOCKS // len(labels) % 2 == 1
        scaled = np.array(logits, dtype=float)
        if second.any():
            for half in (second, ~second):
                scaled[half] /= fit_temperature(logits[~half], labels[~half])
        before, after = (reliability(values, labels) for values in (logits, scaled))
        errors = [calibration_error(bins) for bins in (before, after)]
        return cls(len(labels), fit_temperature(logits, labels), *errors, before, after)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature t from 0.1 to 10 that minimises the mean of −Σ_c q_c · log softmax(z/t)_c.

    With β = 1/t the mean is convex, and its derivative is that of Σ_c (softmax(βz)_c − q_c) · z_c, whose root is
    found by bisection.

    Args:
        logits: z, (N, K).
        targets: Labels (N,), or the teacher's probabilities q (N, K) where there are none.
    """
    z = np.asarray(logits, dtype=float)
    z = z - z.max(1, keepdims=True)
    wanted = z[np.arange(len(z)), targets] if np.ndim(targets) == 1 else (targets * z).sum(1)
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(40):
        middle = (low + high) / 2
        below = ((softmax(np.exp(middle) * z) * z).sum(1) - wanted).mean() < 0
        low, high = (middle, high) if below else (low, middle)
    return float(np.exp(-(low + high) / 2))


def reliability(logits: np.ndarray, labels: np.ndarray) -> list[list[float]]:
    """(Share of the decisions, mean confidence, accuracy) of each of 15 equal bins of the confidence, if not empty.

    Args:
        logits: (N, K).
        labels: (N,), or the teacher's probabilities (N, K): a decision is then as correct as the teacher finds it
            likely.
    """
    probabilities = softmax(np.asarray(logits, dtype=float))
    confidence, decisions = probabilities.max(1), probabilities.argmax(1)
    correct = decisions == labels if np.ndim(labels) == 1 else labels[np.arange(len(labels)), decisions]
    numbers = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [numbers == number for number in np.unique(numbers)]
    return [[float(values.mean()) for values in (chosen, confidence[chosen], correct[chosen])] for chosen in bins]


def calibration_error(bins: list[list[float]]) -> float:
    """The expected calibration error Σ_b share_b · |accuracy_b − confidence_b| of the bins of `reliability`."""
    return sum(share * abs(accuracy - confidence) for share, confidence, accuracy in bins)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
