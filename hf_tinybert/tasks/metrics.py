"""Metrics that need no network: GLUE's as `evaluate.Metric` classes, and the scores of entities."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _one_hot(*labelings: np.ndarray) -> list[np.ndarray]:
    """(rows, classes) of each labeling, for the classes that occur in one of them."""
    classes = np.unique(np.concatenate(labelings))
    return [(labels[:, None] == classes).astype(int) for labels in labelings]


class ArrayMetric(evaluate.Metric):
    """A metric that is a function of two arrays: `compute(predictions=..., references=...)` → {name: value}.

    A subclass gives `name` and `value`. `metric_scores` calls `value` directly, which takes microseconds;
    `evaluate.Metric.compute` takes milliseconds for the same value, since it writes a table of the rows first.

    Attributes:
        name: The name of the value.
        dtype: What predictions and references are converted to: "int64" (default) or "float64".
        kinds: The kinds of labels that it scores, of "two classes", "classes" (more than two), "several labels" and
            "scores".
    """

    name: str
    dtype = "int64"
    kinds: tuple[str, ...] = ("two classes", "classes")

    def _info(self) -> evaluate.MetricInfo:
        return self._described(datasets.Value(self.dtype))

    def _described(self, feature: datasets.Value | datasets.List) -> evaluate.MetricInfo:
        features = datasets.Features(predictions=feature, references=feature)
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features, inputs_description="")

    def _compute(self, predictions, references) -> dict[str, float]:
        return self.scores(predictions, references)

    @classmethod
    def scores(cls, predictions: Sequence, references: Sequence) -> dict[str, float]:
        """What `compute` returns, without an instance and without a table."""
        return {cls.name: float(cls.value(np.asarray(predictions, cls.dtype), np.asarray(references, cls.dtype)))}

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        """The metric of arrays of equal shape, one prediction and one reference a row."""
        raise NotImplementedError


def metric_scores(metric: type[evaluate.Metric], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The values of a metric: from its `value` for an `ArrayMetric`, through `compute` for any other class.

    Args:
        metric: A subclass of `evaluate.Metric`.
        predictions: One a row.
        references: One a row.

    Returns:
        {name: value}.
    """
    if issubclass(metric, ArrayMetric):
        return metric.scores(predictions, references)
    return metric(keep_in_memory=True).compute(predictions=predictions, references=references)


class Accuracy(ArrayMetric):
    """Share of predictions equal to their reference."""

    name = "accuracy"

    @staticmethod
    def value(predictions, references):
        return (predictions == references).mean()


class F1(ArrayMetric):
    """2·TP / (2·TP + FP + FN) of class 1; 0 if that is 0/0."""

    name = "f1"
    kinds = ("two classes",)

    @staticmethod
    def value(predictions, references):
        hits = ((predictions == 1) & (references == 1)).sum()
        return 2 * hits / max((predictions == 1).sum() + (references == 1).sum(), 1)


class MicroF1(ArrayMetric):
    """2·TP / (2·TP + FP + FN) over all labels of all rows, (N, C) of 0 and 1; 1 if that is 0/0."""

    name = "micro_f1"
    kinds = ("several labels",)

    def _info(self) -> evaluate.MetricInfo:
        return self._described(datasets.List(datasets.Value(self.dtype)))

    @staticmethod
    def value(predictions, references):
        sizes = predictions.sum() + references.sum()
        return 2 * (predictions * references).sum() / sizes if sizes else 1.0


class MacroF1(ArrayMetric):
    """The mean over classes, or over several labels, of 2·TP / (2·TP + FP + FN); 0/0 is 0.

    The classes are those that occur in predictions or references.
    """

    name = "macro_f1"
    kinds = ("two classes", "classes", "several labels")

    @staticmethod
    def value(predictions, references):
        if predictions.ndim == 1:
            predictions, references = _one_hot(predictions, references)
        sizes = predictions.sum(0) + references.sum(0)
        return (2 * (predictions * references).sum(0) / np.maximum(sizes, 1)).mean()


class MatthewsCorrelation(ArrayMetric):
    """Matthews correlation: the Pearson correlation of two labelings as one-hot vectors; 0 if one is constant.

    Gorodkin (2004) for more than two classes.
    """

    name = "matthews_correlation"

    @staticmethod
    def value(predictions, references):
        return _correlation(*_one_hot(predictions, references))


class Pearson(ArrayMetric):
    """Pearson correlation of scores; 0 if one side is constant."""

    name = "pearson"
    dtype = "float64"
    kinds = ("scores",)

    value = staticmethod(_correlation)


class Spearman(ArrayMetric):
    """Spearman correlation of scores: the Pearson correlation of their ranks. Equal scores share their mean rank."""

    name = "spearman"
    dtype = "float64"
    kinds = ("scores",)

    @staticmethod
    def value(predictions, references):
        return _correlation(_ranks(predictions), _ranks(references))


METRICS = (Accuracy, F1, MacroF1, MicroF1, MatthewsCorrelation, Pearson, Spearman)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that IOB1, IOB2 or IOBES tags mark, as CoNLL's script conlleval reads them.

    An entity may begin with I-. It ends before another kind, O, B- or S-.

    Args:
        tags: One a word.

    Returns:
        (kind, first word, last word) of each entity.
    """
    spans, before = [], ("O", "")
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix in ("I", "E", "L") and before in (("B", kind), ("I", kind)):
            spans[-1][2] = index
        elif prefix != "O":
            spans.append([kind, index, index])
        before = prefix, kind
    return {tuple(span) for span in spans}


def entity_counts(predictions: Sequence[str], references: Sequence[str]) -> tuple[int, int, int]:
    """The numbers of correct, predicted and reference entities in the tags of one sentence.

    An entity is correct if its kind, first word and last word are.
    """
    predicted, wanted = entities(predictions), entities(references)
    return len(predicted & wanted), len(predicted), len(wanted)


def entity_rates(correct: int, predicted: int, wanted: int) -> dict[str, float]:
    """`precision`, `recall` and `f1` of numbers of entities; 0/0 is 0."""
    rates = {"precision": (correct, predicted), "recall": (correct, wanted), "f1": (2 * correct, predicted + wanted)}
    return {name: float(part / whole) if whole else 0.0 for name, (part, whole) in rates.items()}


def entity_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], count: int | None = None
) -> dict[str, float]:
    """`precision`, `recall` and `f1` of entities (Tjong Kim Sang and De Meulder, 2003); 0/0 is 0.

    Args:
        predictions: The tags of each sentence.
        references: The tags of each sentence.
        count: The number of entities that there are; default those of `references`.
    """
    counts = [entity_counts(*tags) for tags in zip(predictions, references, strict=True)]
    correct, predicted, wanted = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    return entity_rates(correct, predicted, wanted if count is None else count)
