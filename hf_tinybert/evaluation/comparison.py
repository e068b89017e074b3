"""How far one set of logits is another's: metrics with bootstrap intervals, agreement, what is kept of each class."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import kl_div
from tqdm.auto import trange
from transformers import EvalPrediction

from ..tasks.metrics import Pearson


def compare(
    logits: Sequence[np.ndarray],
    labels: np.ndarray,
    compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
    id2label: Mapping[int, str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, dict]]:
    """The quality fields of a `Measurement` for each of `logits`, the first being the reference.

    Logits are (rows, C) with labels (rows), or (rows, S, C) with labels (rows, S), −100 where there is none.
    """

    def scores(rows: np.ndarray) -> np.ndarray:  # (2, logits, metrics): metrics, and their distance to the reference
        found = [compute_metrics(EvalPrediction(values[rows], labels[rows])) for values in logits]
        metrics = np.array([list(values.values()) for values in found], dtype=float)
        return np.stack([metrics, metrics - metrics[0]])

    names, real = list(compute_metrics(EvalPrediction(logits[0], labels))), labels != -100
    whole, (low, high) = scores(np.arange(len(labels))), bootstrap(scores, len(labels), resamples, seed)
    metrics, differences = np.stack([whole, low, high], axis=-1).tolist()
    reference = [value for value, _, _ in metrics[0]]
    classes = logits[0].shape[-1] > 1
    return [
        {
            "metrics": dict(zip(names, metrics[i], strict=True)),
            "differences": dict(zip(names, differences[i], strict=True)),
            "retained": {
                name: value / base if base > 0 else None
                for name, (value, _, _), base in zip(names, metrics[i], reference, strict=True)
            },
            "agreement": agreement(logits[0][real], values[real]),
            "class_retention": class_retention(logits[0][real], values[real], labels[real], id2label)
            if classes
            else {},
        }
        for i, values in enumerate(logits)
    ]


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], rows: int, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """95 % percentile interval of `statistic(row numbers)`, an array of any shape, over rows drawn with replacement.

    Returns (2, *shape): low and high (Efron and Tibshirani 1993, chapter 13).
    """
    generator = np.random.default_rng(seed)
    progress = trange(resamples, desc="Confidence intervals", leave=False)
    return np.percentile([statistic(generator.integers(rows, size=rows)) for _ in progress], [2.5, 97.5], axis=0)


def agreement(reference: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """How far `logits` (rows, C) say what `reference` says.

    `top1`: share of rows with the same largest logit; `kl`: mean KL(reference‖logits) of the softmaxes, in nats. Of
    one logit a row, `pearson`: their correlation.
    """
    if reference.shape[-1] == 1:
        return {"pearson": float(Pearson.value(logits[:, 0], reference[:, 0]))}
    theirs, ours = (torch.from_numpy(values).double().log_softmax(-1) for values in (reference, logits))
    return {
        "top1": float((reference.argmax(-1) == logits.argmax(-1)).mean()),
        "kl": kl_div(ours, theirs, log_target=True, reduction="batchmean").item(),
    }


def class_retention(
    reference: np.ndarray, logits: np.ndarray, labels: np.ndarray, id2label: Mapping[int, str]
) -> dict[str, float | None]:
    """Of the rows of a class that `reference` (rows, C) gets right, the share that `logits` gets right too.

    None for a class of which `reference` gets none right.
    """
    right, kept = reference.argmax(-1) == labels, logits.argmax(-1) == labels
    of_class = {name: right & (labels == index) for index, name in id2label.items()}
    return {name: float(kept[rows].mean()) if rows.any() else None for name, rows in of_class.items()}
