"""Intervals against scipy, agreement and retention against the plainest formulas."""

import numpy as np
import pytest
from scipy import special, stats
from transformers import EvalPrediction

from hf_tinybert.evaluation.comparison import agreement, bootstrap, class_retention, compare


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    real = prediction.label_ids != -100
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": hits[real].mean(), "error": 1 - hits[real].mean()}


def test_interval_is_scipys():
    values = draw(200)
    ours = bootstrap(lambda rows: values[rows].mean(keepdims=True), 200, resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    np.testing.assert_allclose(ours[:, 0], theirs, atol=0.05 * (theirs.high - theirs.low))


def test_interval_is_the_same_again_and_of_the_statistics_shape():
    ours = [bootstrap(lambda rows: np.full((3, 2), rows.mean()), 20, resamples=50) for _ in range(2)]
    assert ours[0].shape == (2, 3, 2)
    np.testing.assert_array_equal(*ours)


def test_agreement_against_scipy():
    teacher, student = 3 * draw(30, 4), 3 * draw(30, 4, seed=1)
    found = agreement(teacher, student)
    divergence = special.rel_entr(special.softmax(teacher, -1), special.softmax(student, -1)).sum(-1).mean()
    assert found["kl"] == pytest.approx(divergence, rel=1e-12)
    assert found["top1"] == np.mean(
        [t.tolist().index(max(t)) == s.tolist().index(max(s)) for t, s in zip(teacher, student, strict=True)]
    )
    assert agreement(teacher, teacher + 5) == pytest.approx({"top1": 1, "kl": 0})


def test_agreement_of_scores_is_their_correlation():
    teacher, student = draw(30, 1), draw(30, 1, seed=1)
    assert agreement(teacher, student) == pytest.approx({"pearson": stats.pearsonr(teacher[:, 0], student[:, 0])[0]})


def test_class_retention_by_counting():
    labels, names = np.random.default_rng(2).integers(0, 3, 60), {0: "a", 1: "b", 2: "c", 3: "absent"}
    teacher, student = np.eye(4)[labels] + draw(60, 4), np.eye(4)[labels] + draw(60, 4, seed=1)
    expected = {"absent": None}
    for index in range(3):
        right = [s.argmax() == y for t, s, y in zip(teacher, student, labels, strict=True) if t.argmax() == y == index]
        expected[names[index]] = sum(right) / len(right)
    assert 0 < expected["a"] < 1
    assert class_retention(teacher, student, labels, names) == expected


def test_compare_pairs_every_one_with_the_first():
    labels = np.random.default_rng(2).integers(0, 3, 80)
    teacher, student = 2 * np.eye(3)[labels] + draw(80, 3), np.eye(3)[labels] + draw(80, 3, seed=1)
    same, found = compare([teacher, student], labels, accuracy, {0: "a", 1: "b", 2: "c"}, resamples=300)
    scores = [accuracy(EvalPrediction(logits, labels)) for logits in (teacher, student)]
    for name in ("accuracy", "error"):
        base, score = scores[0][name], scores[1][name]
        assert found["metrics"][name][0] == score
        assert found["differences"][name][0] == pytest.approx(score - base)
        assert found["retained"][name] == pytest.approx(score / base)
        assert same["differences"][name] == [0, 0, 0]
        for value, low, high in (found["metrics"][name], found["differences"][name]):
            assert low < value < high
    # the student errs where the teacher does not, and the other way: a paired interval differs from the ends' distance
    hits = [(logits.argmax(-1) == labels).astype(float) for logits in (teacher, student)]
    error = np.std(hits[1] - hits[0]) / np.sqrt(80)
    _, low, high = found["differences"]["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_nothing_is_retained_of_a_score_of_nothing():
    labels = np.array([0, 1, 0, 1])
    wrong = np.eye(2)[1 - labels]
    assert compare([wrong], labels, accuracy, {0: "a", 1: "b"}, resamples=2)[0]["retained"]["accuracy"] is None


def test_tokens_without_a_label_do_not_count():
    labels = np.random.default_rng(2).integers(0, 3, (10, 6))
    labels[:, 4:] = -100
    teacher, student = draw(10, 6, 3), draw(10, 6, 3, seed=1)
    first = compare([teacher, student], labels, accuracy, {0: "a", 1: "b", 2: "c"}, resamples=5)
    student[:, 4:] = 9
    assert compare([teacher, student], labels, accuracy, {0: "a", 1: "b", 2: "c"}, resamples=5) == first
