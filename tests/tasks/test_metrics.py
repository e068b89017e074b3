"""GLUE's metrics against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hf_tinybert.tasks.metrics import (
    F1,
    Accuracy,
    MatthewsCorrelation,
    MicroF1,
    Pearson,
    Spearman,
    entities,
    entity_scores,
)


@pytest.mark.parametrize("seed", range(5))
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


@pytest.mark.parametrize("seed", range(5))
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


@pytest.mark.parametrize("seed", range(5))
def test_of_several_labels(seed):
    generator = np.random.default_rng(seed)
    labels, predictions = (generator.random((2, 30, 4)) < 0.3).astype(int)
    value = MicroF1().compute(predictions=predictions, references=labels)["micro_f1"]
    assert value == pytest.approx(sklearn_metrics.f1_score(labels, predictions, average="micro"))


@pytest.mark.parametrize(
    ("wanted", "found", "scores"),
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
def test_of_entities(wanted, found, scores):
    values = entity_scores([["O"], found.split()], [["O"], wanted.split()])
    assert tuple(values.values()) == pytest.approx(scores, abs=5e-5)


def test_entities_that_nobody_was_shown_are_missed():
    scores = entity_scores([["B-A", "O"]], [["B-A", "B-B"]], count=4)
    assert scores == pytest.approx({"precision": 1, "recall": 1 / 4, "f1": 2 / 5})


def test_entities_do_not_go_on_from_a_row_to_the_next():
    assert entity_scores([["B-A"], ["I-A"]], [["B-A"], ["B-A"]])["f1"] == 1
    assert entity_scores([["B-A"], ["O"]], [["O"], ["B-A"]])["f1"] == 0


def test_entities_in_every_scheme():
    wanted = {("A", 0, 2), ("A", 3, 3), ("B", 4, 4)}
    for tags in ("B-A I-A I-A B-A B-B", "I-A I-A I-A B-A I-B", "B-A I-A E-A S-A S-B", "B-A I-A L-A U-A U-B"):
        assert entities(tags.split()) == wanted
