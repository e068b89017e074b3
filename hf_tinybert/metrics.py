"""The metrics of GLUE as `evaluate.Metric` classes that need no network: make one and call `compute`."""

import datasets
import evaluate
import numpy as np


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


class _Metric(evaluate.Metric):
    """`compute(predictions=..., references=...)` → {name: value}, of integers unless a subclass takes scores."""

    name: str
    dtype = "int64"

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value(self.dtype), "references": datasets.Value(self.dtype)}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", features=datasets.Features(features), inputs_description=""
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {self.name: float(self.value(np.asarray(predictions), np.asarray(references)))}

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        raise NotImplementedError


class Accuracy(_Metric):
    """Share of predictions equal to their reference."""

    name = "accuracy"

    @staticmethod
    def value(predictions, references):
        return (predictions == references).mean()


class F1(_Metric):
    """2·TP / (2·TP + FP + FN) of class 1; 0 where that is 0/0."""

    name = "f1"

    @staticmethod
    def value(predictions, references):
        hits = ((predictions == 1) & (references == 1)).sum()
        return 2 * hits / max((predictions == 1).sum() + (references == 1).sum(), 1)


class MatthewsCorrelation(_Metric):
    """Matthews correlation: the Pearson correlation of two binary labelings; 0 where one of them is constant."""

    name = "matthews_correlation"

    value = staticmethod(_correlation)


class Pearson(_Metric):
    """Pearson correlation of scores; 0 where one side is constant."""

    name = "pearson"
    dtype = "float64"

    value = staticmethod(_correlation)


class Spearman(_Metric):
    """Spearman correlation of scores: Pearson's of their ranks, ties sharing the mean of theirs."""

    name = "spearman"
    dtype = "float64"

    @staticmethod
    def value(predictions, references):
        return _correlation(_ranks(predictions), _ranks(references))
