"""How far predictions are those of a reference: metrics with bootstrap intervals, agreement, retention of classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import kl_div
from tqdm.auto import trange
from transformers import EvalPrediction

from ..models.prediction_heads import PredictionHead
from ..tasks.base import ExampleScorer
from ..tasks.metrics import Pearson

Metrics = Callable[[EvalPrediction], Mapping[str, float]]


@dataclass
class Scores:
    """The fields `metrics`, `differences` and `retained` of a `Measurement`."""

    metrics: dict[str, list[float]]
    differences: dict[str, list[float]]
    retained: dict[str, float | None]


def compare(
    predictions: Sequence[EvalPrediction], compute_metrics: Metrics, resamples: int = 1000, seed: int = 0
) -> list[Scores]:
    """The metrics of several models with intervals, and their differences from those of the first model.

    Args:
        predictions: Of each model on the same rows; the first one is the reference.
        compute_metrics: Trainer's. An `ExampleScorer` scores each example once, and its examples are resampled. Any
            other function is called on resampled rows.
        resamples: The number of bootstrap resamples.
        seed: The seed of the resamples.

    Returns:
        The scores of each model.
    """
    if isinstance(compute_metrics, ExampleScorer):
        examples = [compute_metrics.score_examples(prediction) for prediction in predictions]
        count = len(examples[0])

        def metrics_of(drawn: np.ndarray) -> list[Mapping[str, float]]:
            return [compute_metrics.summarise(numbers[drawn]) for numbers in examples]
    else:
        count = len(_first(predictions[0].label_ids))

        def metrics_of(drawn: np.ndarray) -> list[Mapping[str, float]]:
            return [compute_metrics(_take(prediction, drawn)) for prediction in predictions]

    def statistic(drawn: np.ndarray) -> np.ndarray:  # (2, models, metrics): the metrics, their differences
        metrics = np.array([list(values.values()) for values in metrics_of(drawn)], dtype=float)
        return np.stack([metrics, metrics - metrics[0]])

    everything = np.arange(count)
    names = list(metrics_of(everything)[0])
    low, high = bootstrap(statistic, count, resamples, seed)
    metrics, differences = np.stack([statistic(everything), low, high], axis=-1).tolist()
    reference = [value for value, _, _ in metrics[0]]
    return [
        Scores(
            dict(zip(names, model_metrics, strict=True)),
            dict(zip(names, model_differences, strict=True)),
            {
                name: value / base if base > 0 else None
                for name, (value, _, _), base in zip(names, model_metrics, reference, strict=True)
            },
        )
        for model_metrics, model_differences in zip(metrics, differences, strict=True)
    ]


def _first(arrays: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    return arrays[0] if isinstance(arrays, tuple) else arrays


def _take(prediction: EvalPrediction, rows: np.ndarray) -> EvalPrediction:
    """Some rows of a prediction."""
    taken = [
        tuple(array[rows] for array in arrays) if isinstance(arrays, tuple) else arrays[rows]
        for arrays in (prediction.predictions, prediction.label_ids)
    ]
    return EvalPrediction(*taken, inputs=None if prediction.inputs is None else prediction.inputs[rows])


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], rows: int, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """The 95 % percentile interval of a statistic over rows drawn with replacement.

    Efron and Tibshirani (1993), chapter 13.

    Args:
        statistic: A function of row numbers; it returns an array of any shape.
        rows: The number of rows.
        resamples: The number of draws of that many rows.
        seed: The seed of the draws.

    Returns:
        (2, *shape): low and high ends.
    """
    generator = np.random.default_rng(seed)
    progress = trange(resamples, desc="Confidence intervals", leave=False)
    return np.percentile([statistic(generator.integers(rows, size=rows)) for _ in progress], [2.5, 97.5], axis=0)


class Agreement:
    """How far the logits of several models agree with those of the first one, added up over batches.

    - Of decisions between options: `top1`, the share with the same largest logit, and `kl`, the mean of KL(first
      model‖model) of the softmaxes in nats. Each of several labels is a decision between yes and no.
    - Of real-valued scores: `pearson`, their correlation, the mean over the scores of a row.
    - Of classes with names: the share of the decisions which the first model gets right that the model gets right
      too, by class; None for a class of which the first model gets none right.

    Args:
        prediction_head: The kind of the models' prediction heads.
        id2label: The names of the classes.
        models: The number of models.
    """

    def __init__(self, prediction_head: PredictionHead, id2label: Mapping[int, str], models: int):
        self.prediction_head, self.id2label = prediction_head, id2label
        self._models = range(models)
        self._scores: list[list[np.ndarray]] = [[] for _ in self._models]
        self._same, self._divergence, self._decisions = np.zeros(models), np.zeros(models), 0
        self._correct: list[list[np.ndarray]] = [[] for _ in self._models]
        self._classes: list[np.ndarray] = []

    def add(self, logits: Sequence[np.ndarray], labels: np.ndarray) -> None:
        """Add a batch of rows.

        Args:
            logits: Of each model, as `PredictionHead.decisions` takes them.
            labels: As `PredictionHead.decisions` takes them.
        """
        decisions = [self.prediction_head.decisions(model_logits, labels)[0] for model_logits in logits]
        if self.prediction_head.real_valued:
            for scores, more in zip(self._scores, decisions, strict=True):
                scores.append(more)
            return
        self._decisions += len(decisions[0])
        for model in self._models:
            self._same[model] += (decisions[0].argmax(-1) == decisions[model].argmax(-1)).sum()
            self._divergence[model] += divergence(decisions[0], decisions[model])
        if self.prediction_head.names_classes:
            for correct, model_logits in zip(self._correct, logits, strict=True):
                right, classes = self.prediction_head.correct(model_logits, labels)
                correct.append(right)
            self._classes.append(classes)

    def agreement(self, model: int) -> dict[str, float]:
        """The agreement of a model, by its number, with the first one."""
        if self.prediction_head.real_valued:
            reference, scores = (np.concatenate(self._scores[index]) for index in (0, model))
            pairs = zip(scores.T, reference.T, strict=True)
            return {"pearson": float(np.mean([Pearson.value(*columns) for columns in pairs]))}
        top1, kl = self._same[model] / self._decisions, self._divergence[model] / self._decisions
        return {"top1": float(top1), "kl": float(kl)}

    def class_retention(self, model: int) -> dict[str, float | None]:
        """{class: share} of a model, by its number; {} if the prediction head names no classes."""
        if not self.prediction_head.names_classes:
            return {}
        classes = np.concatenate(self._classes)
        expected, retained = (np.concatenate(self._correct[index]) for index in (0, model))
        of_class = {name: expected & (classes == index) for index, name in self.id2label.items()}
        return {name: float(retained[rows].mean()) if rows.any() else None for name, rows in of_class.items()}


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """The sum over rows of KL(reference‖logits) of the softmaxes of (N, K), in nats and float64."""
    target, log_probabilities = (torch.from_numpy(values).double().log_softmax(-1) for values in (reference, logits))
    return kl_div(log_probabilities, target, log_target=True, reduction="sum").item()
