"""Intervals against scipy, agreement and class retention against the plainest formulas."""

import numpy as np
import pytest
from head_kinds import divergence
from scipy import stats
from transformers import EvalPrediction

from hf_tinybert import TokenClassification
from hf_tinybert.evaluation.comparison import Agreement, bootstrap, compare
from hf_tinybert.models.prediction_heads import Classes, Labels, Regression, TokenClasses
from hf_tinybert.tasks import ExampleScorer
from hf_tinybert.tasks.token_classification import TagScorer

NAMES = {0: "a", 1: "b", 2: "c", 3: "absent"}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def draw_labels(*shape):
    return np.random.default_rng(2).integers(0, 3, shape)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    real = prediction.label_ids != -100
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": hits[real].mean(), "error": 1 - hits[real].mean()}


def agreement_of(head, teacher, student, labels, names=NAMES) -> Agreement:
    agreement = Agreement(head(), names, 2)
    agreement.add([teacher, student], labels)
    return agreement


def test_an_interval_is_scipys():
    values = draw(200)
    interval = bootstrap(lambda rows: values[rows].mean(keepdims=True), 200, resamples=4000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(interval[:, 0], expected, atol=0.05 * (expected.high - expected.low))


def test_an_interval_is_the_same_again_and_of_the_statistics_shape():
    intervals = [bootstrap(lambda rows: np.full((3, 2), rows.mean()), 20, resamples=50) for _ in range(2)]
    assert intervals[0].shape == (2, 3, 2)
    np.testing.assert_array_equal(*intervals)


def test_agreement_of_classes_against_scipy():
    teacher, student = 3 * draw(30, 4), 3 * draw(30, 4, seed=1)
    agreement = agreement_of(Classes, teacher, student, draw_labels(30)).agreement(1)
    pairs = [*zip(teacher, student, strict=True)]
    assert agreement["kl"] == pytest.approx(np.mean([divergence(*pair) for pair in pairs]), rel=1e-12)
    assert agreement["top1"] == np.mean([t.tolist().index(max(t)) == s.tolist().index(max(s)) for t, s in pairs])
    shifted = agreement_of(Classes, teacher, teacher + 5, draw_labels(30))
    assert shifted.agreement(1) == pytest.approx({"top1": 1, "kl": 0})


def test_agreement_of_scores_is_their_correlation():
    teacher, student = draw(30, 1), draw(30, 1, seed=1)
    agreement = agreement_of(Regression, teacher, student, draw(30)).agreement(1)
    assert agreement == pytest.approx({"pearson": stats.pearsonr(teacher[:, 0], student[:, 0])[0]})


@pytest.mark.parametrize("head", [Classes, Regression])
def test_batches_add_up_to_the_whole(head):
    teacher, student, labels = draw(30, 4), draw(30, 4, seed=1), draw_labels(30)
    parts = Agreement(head(), NAMES, 2)
    for chunk in (slice(0, 7), slice(7, 30)):
        parts.add([teacher[chunk], student[chunk]], labels[chunk])
    whole = agreement_of(head, teacher, student, labels)
    assert parts.agreement(1) == pytest.approx(whole.agreement(1), rel=1e-12)
    assert parts.class_retention(1) == whole.class_retention(1)


def test_class_retention_by_counting():
    labels = draw_labels(60)
    teacher, student = np.eye(4)[labels] + draw(60, 4), np.eye(4)[labels] + draw(60, 4, seed=1)
    expected = {"absent": None}
    for index in range(3):
        right = [s.argmax() == y for t, s, y in zip(teacher, student, labels, strict=True) if t.argmax() == y == index]
        expected[NAMES[index]] = sum(right) / len(right)
    assert 0 < expected["a"] < 1
    assert agreement_of(Classes, teacher, student, labels).class_retention(1) == expected


def test_class_retention_of_several_labels_is_of_those_that_rows_have():
    teacher = np.array([[1.0, -1], [1, 1], [-1, 1], [1, -1]])
    student = np.array([[1.0, 1], [-1, 1], [1, 1], [1, -1]])
    labels = np.array([[1.0, 0], [1, 1], [1, 0], [1, 0]])
    retention = agreement_of(Labels, teacher, student, labels, {0: "a", 1: "b"}).class_retention(1)
    assert retention == {"a": 2 / 3, "b": 1}


def test_every_model_is_compared_with_the_first_on_the_same_resampled_rows():
    labels = draw_labels(80)
    logits = 2 * np.eye(3)[labels] + draw(80, 3), np.eye(3)[labels] + draw(80, 3, seed=1)
    predictions = [EvalPrediction(values, labels) for values in logits]
    teacher, student = compare(predictions, accuracy, resamples=300)
    expected = [accuracy(prediction) for prediction in predictions]
    for name in ("accuracy", "error"):
        base, score = expected[0][name], expected[1][name]
        assert student.metrics[name][0] == score
        assert student.differences[name][0] == pytest.approx(score - base)
        assert student.retained[name] == pytest.approx(score / base)
        assert teacher.differences[name] == [0, 0, 0]
        for value, low, high in (student.metrics[name], student.differences[name]):
            assert low < value < high
    # the student errs where the teacher does not, and the other way: a paired interval differs from the ends' distance
    hits = [(values.argmax(-1) == labels).astype(float) for values in logits]
    error = np.std(hits[1] - hits[0]) / np.sqrt(80)
    _, low, high = student.differences["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_nothing_is_retained_of_a_score_of_nothing():
    labels = np.array([0, 1, 0, 1])
    wrong = EvalPrediction(np.eye(2)[1 - labels], labels)
    assert compare([wrong], accuracy, resamples=2)[0].retained["accuracy"] is None


def test_tokens_without_a_label_do_not_count():
    labels = draw_labels(10, 6)
    labels[:, 4:] = -100
    teacher, student = draw(10, 6, 3), draw(10, 6, 3, seed=1)

    def results():
        agreement = agreement_of(TokenClasses, teacher, student, labels)
        predictions = [EvalPrediction(values, labels) for values in (teacher, student)]
        return compare(predictions, accuracy, resamples=5), agreement.agreement(1), agreement.class_retention(1)

    before = results()
    student[:, 4:] = 9
    assert results() == before


def test_tuples_and_inputs_are_resampled_together():
    rows = np.arange(20)
    prediction = EvalPrediction((rows, rows + 100), (rows + 200, rows + 300), inputs=rows + 400)

    def together(resampled):
        columns = [*resampled.predictions, *resampled.label_ids, resampled.inputs]
        assert all((column - columns[0] == 100 * index).all() for index, column in enumerate(columns))
        return {"mean": columns[0].mean()}

    ((value, low, high),) = compare([prediction], together, resamples=50)[0].metrics.values()
    assert low < value == 9.5 < high


class Means(ExampleScorer):
    def __init__(self):
        self.calls = 0

    def score_examples(self, prediction):
        self.calls += 1
        return prediction.predictions.reshape(-1, 2, 1).mean(1)  # two rows an example

    def summarise(self, examples):
        return {"mean": examples.mean()}


def test_examples_are_scored_once_and_resampled():
    scorer, predictions = Means(), [EvalPrediction(draw(40, seed=seed), np.zeros(40)) for seed in range(2)]
    scores = compare(predictions, scorer, resamples=200)
    assert scorer.calls == 2
    generator = np.random.default_rng(0)
    drawn = [generator.integers(20, size=20) for _ in range(200)]
    for prediction, score in zip(predictions, scores, strict=True):
        means = prediction.predictions.reshape(20, 2).mean(1)
        interval = np.percentile([means[numbers].mean() for numbers in drawn], [2.5, 97.5])
        assert score.metrics["mean"] == pytest.approx([means.mean(), *interval])


def test_counts_of_sentences_give_the_intervals_of_resampled_sentences():
    task = TokenClassification("ner", labels=("O", "B-A", "I-A"))
    labels = draw_labels(30, 6)
    labels[::2, 4:] = -100
    logits = [np.eye(3)[labels.clip(0)] + draw(30, 6, 3, seed=seed) for seed in range(2)]
    predictions = [EvalPrediction(values, labels) for values in logits]
    assert compare(predictions, TagScorer(task), 20) == compare(predictions, task.compute_metrics, 20)
