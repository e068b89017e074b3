"""Metrics that need no network: GLUE's as `evaluate.Metric` classes, and those of entities."""

from collections.abc import Sequence

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


class MicroF1(_Metric):
    """2·TP / (2·TP + FP + FN) over all labels of all rows of 0 and 1, (N, C); 1 where none is to find or found."""

    name = "micro_f1"

    def _info(self) -> evaluate.MetricInfo:
        features = dict.fromkeys(("predictions", "references"), datasets.List(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", features=datasets.Features(features), inputs_description=""
        )

    @staticmethod
    def value(predictions, references):
        sizes = predictions.sum() + references.sum()
        return 2 * (predictions * references).sum() / sizes if sizes else 1.0


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


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first, last word) of the entities that IOB1, IOB2 or IOBES tags mark, as CoNLL's conlleval reads them.

    Lenient: an entity may begin with I-. One ends where the kind changes, or at O, B- or S-.
    """
    found, before = [], ("O", "")
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix in ("I", "E", "L") and before in (("B", kind), ("I", kind)):
            found[-1][2] = index
        elif prefix != "O":
            found.append([kind, index, index])
        before = prefix, kind
    return {tuple(entity) for entity in found}


def entity_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], count: int | None = None
) -> dict[str, float]:
    """`precision`, `recall` and `f1` (Tjong Kim Sang and De Meulder, 2003): an entity is found where kind, first and
    last word are right. `count` is the number of entities there are, default those of `references`; 0/0 is 0.
    """
    found, wanted = (
        {(row, *e) for row, tags in enumerate(of) for e in entities(tags)} for of in (predictions, references)
    )
    hits, count = len(found & wanted), len(wanted) if count is None else count
    values = {"precision": (hits, len(found)), "recall": (hits, count), "f1": (2 * hits, len(found) + count)}
    return {name: part / whole if whole else 0.0 for name, (part, whole) in values.items()}
