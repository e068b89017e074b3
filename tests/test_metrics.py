"""GLUE's metrics against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hf_tinybert.metrics import F1, Accuracy, MatthewsCorrelation, Pearson, Spearman


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
