"""The score of rows without labels, against formulas written out row by row."""

import math

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_tinybert.tasks.unlabelled_text import TeacherAgreement

RNG = np.random.default_rng(0)
TOKENS = [[1, *(int(digit) + 3 for digit in str(row + 10)), 2] for row in range(40)]
TEACHER, STUDENT = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))


def predicted(student) -> EvalPrediction:
    """A prediction of the rows, in another order and padded."""
    order = RNG.permutation(40)
    return EvalPrediction(student[order], np.zeros(40), [[*TOKENS[row], 0, 0] for row in order])


def scored(teacher, student, **kind):
    return TeacherAgreement(teacher, TOKENS, **kind)(predicted(student))


def softmax(row):
    return [math.exp(value) / sum(map(math.exp, row)) for value in row]


def test_classes():
    same, kl = 0, 0.0
    for t, s in zip(TEACHER.tolist(), STUDENT.tolist(), strict=True):
        same += t.index(max(t)) == s.index(max(s))
        kl += sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True))
    values = scored(TEACHER, STUDENT)
    assert values == {"agreement": same / 40, "kl": pytest.approx(kl / 40), "score": same / 40}
    assert scored(TEACHER, TEACHER)["kl"] == pytest.approx(0)


def test_several_labels():
    same, kl = 0, 0.0
    for t, s in zip(TEACHER.ravel().tolist(), STUDENT.ravel().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-t)), 1 / (1 + math.exp(-s))
        same += (t > 0) == (s > 0)
        kl += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    values = scored(TEACHER, STUDENT, multi_label=True)
    assert values == {
        "agreement": pytest.approx(same / 120),
        "kl": pytest.approx(kl / 40),
        "score": values["agreement"],
    }


def test_scores():
    teacher, student = TEACHER[:, :1], STUDENT[:, 0]  # Trainer drops an axis of size 1
    values = scored(teacher, student)
    assert values["agreement"] == pytest.approx(np.corrcoef(teacher[:, 0], student)[0, 1])
    assert values["rmse"] == pytest.approx(math.sqrt(sum((teacher[:, 0] - student) ** 2) / 40))
    assert scored(teacher, np.zeros(40))["agreement"] == 0


def test_rows_have_the_mean_of_what_they_count_for():
    scorer = TeacherAgreement(TEACHER, TOKENS)
    examples = scorer.score_examples(predicted(STUDENT))
    assert scorer.summarise(examples[[0, 0, 5]])["agreement"] == pytest.approx(examples[[0, 0, 5], 0].mean())
