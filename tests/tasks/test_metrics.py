"""GLUE's metrics against scikit-learn and scipy."""

from functools import partial

import datasets
import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hf_tinybert.tasks.metrics import (
    F1,
    Accuracy,
    ArrayMetric,
    MacroF1,
    MatthewsCorrelation,
    MicroF1,
    Pearson,
    Spearman,
    entities,
    entity_scores,
    metric_scores,
)


class Distance(evaluate.Metric):
    """A user's own metric, which has no `value`."""

    def _info(self):
        features = datasets.Features(predictions=datasets.Value("int64"), references=datasets.Value("int64"))
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"distance": float(np.abs(np.subtract(predictions, references)).mean())}


@pytest.mark.parametrize("metric", ArrayMetric.__subclasses__())
def test_scores_of_arrays_are_those_of_compute(metric, monkeypatch):
    generator = np.random.default_rng(0)
    shape = (40, 3) if metric is MicroF1 else (40,)
    predictions, labels = generator.integers(0, 2, (2, *shape)).astype("f4")
    if metric.dtype == "float64":
        predictions = predictions + generator.normal(size=shape).astype("f4")
    expected = metric().compute(predictions=predictions, references=labels)
    monkeypatch.setattr(evaluate.Metric, "compute", lambda *_, **__: pytest.fail("a table was written"))
    assert metric_scores(metric, predictions, labels) == expected
    assert [*expected] == [metric.name]


def test_a_metric_without_arrays_goes_through_compute():
    assert metric_scores(Distance, np.array([1, 2, 3]), np.array([1, 4, 4])) == {"distance": 1}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (Accuracy, sklearn_metrics.accuracy_score),
        (F1, sklearn_metrics.f1_score),
        (MatthewsCorrelation, sklearn_metrics.matthews_corrcoef),
    ],
)
def test_of_labels(metric, reference, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 40)
    predictions = np.where(generator.random(40) < 0.3, 1 - labels, labels)
    (value,) = metric().compute(predictions=predictions, references=labels).values()
    assert value == pytest.approx(reference(labels, predictions))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("metric", "reference"), [(Pearson, stats.pearsonr), (Spearman, stats.spearmanr)])
def test_of_scores_with_ties(metric, reference, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 10, 40) / 2
    predictions = np.round(scores + generator.normal(size=40), 1)
    (value,) = metric().compute(predictions=predictions, references=scores).values()
    assert value == pytest.approx(reference(scores, predictions)[0])


@pytest.mark.parametrize(
    ("metric", "labels"), [(F1, [0, 0, 0]), (MatthewsCorrelation, [1, 1, 0]), (Spearman, [1, 2, 3])]
)
def test_a_constant_prediction_is_worth_nothing(metric, labels):
    (value,) = metric().compute(predictions=[0, 0, 0], references=labels).values()
    assert value == 0


@pytest.mark.parametrize("seed", range(2))
def test_of_several_labels(seed):
    generator = np.random.default_rng(seed)
    labels, predictions = (generator.random((2, 30, 4)) < 0.3).astype(int)
    value = MicroF1().compute(predictions=predictions, references=labels)["micro_f1"]
    assert value == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average="micro"))


@pytest.mark.parametrize(
    ("references", "predictions", "scores"),
    [  # by conlleval and, to the same four digits, seqeval 1.2.2
        ("B-A I-A O B-B", "B-A I-A O B-B", (1.0, 1.0, 1.0)),
        ("B-A I-A O B-B", "B-A O O B-A", (0.0, 0.0, 0.0)),
        ("O I-A I-A B-A I-B O", "O B-A I-A I-A I-B O", (0.5, 0.3333, 0.4)),
        ("B-A B-A I-A I-B", "I-A I-A I-A B-B", (0.5, 0.3333, 0.4)),
        ("I-A I-B B-B I-B I-A", "I-A B-B B-B B-B I-A", (0.6, 0.75, 0.6667)),
        ("B-A I-A", "O O", (0.0, 0.0, 0.0)),
        ("O O", "O O", (0.0, 0.0, 0.0)),
    ],
)
def test_of_entities(references, predictions, scores):
    values = entity_scores([["O"], predictions.split()], [["O"], references.split()])
    assert tuple(values.values()) == pytest.approx(scores, abs=5e-5)


def test_entities_that_nobody_was_shown_are_missed():
    scores = entity_scores([["B-A", "O"]], [["B-A", "B-B"]], count=4)
    assert scores == pytest.approx({"precision": 1, "recall": 1 / 4, "f1": 2 / 5})


def test_entities_do_not_go_on_from_a_row_to_the_next():
    assert entity_scores([["B-A"], ["I-A"]], [["B-A"], ["B-A"]])["f1"] == 1
    assert entity_scores([["B-A"], ["O"]], [["O"], ["B-A"]])["f1"] == 0


def test_entities_in_every_scheme():
    expected = {("A", 0, 2), ("A", 3, 3), ("B", 4, 4)}
    for tags in ("B-A I-A I-A B-A B-B", "I-A I-A I-A B-A I-B", "B-A I-A E-A S-A S-B", "B-A I-A L-A U-A U-B"):
        assert entities(tags.split()) == expected


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("classes", [2, 5])
def test_of_any_number_of_classes(seed, classes):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, 40)
    predictions = np.where(generator.random(40) < 0.4, generator.integers(0, classes, 40), labels)
    for metric, reference in (
        (MatthewsCorrelation, sklearn_metrics.matthews_corrcoef),
        (MacroF1, partial(sklearn_metrics.f1_score, average="macro")),
    ):
        (value,) = metric.scores(predictions, labels).values()
        assert value == pytest.approx(reference(labels, predictions))


def test_macro_f1_of_several_labels_counts_labels_that_nobody_has():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]])
    predictions = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    expected = sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    assert MacroF1.scores(predictions, labels) == {"macro_f1": pytest.approx(expected)}
