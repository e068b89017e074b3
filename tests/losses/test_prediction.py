import copy
import math

import pytest
import torch
from conftest import bert_config, build
from datasets import Dataset
from short_runs import distil
from transformers import BertForMaskedLM

from hf_tinybert.activations import Activations
from hf_tinybert.losses import PredictionLoss, soft_cross_entropy
from hf_tinybert.models.prediction_heads import (
    Choices,
    Classes,
    Labels,
    MaskedTokens,
    Regression,
    Spans,
    TokenClasses,
    soft_binary_cross_entropy,
    span_cross_entropy,
)

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])


def reference(student, teacher, temperature):
    """Equation 10 for one example, with Python floats."""

    def softmax(logits):
        powers = [math.exp(x / temperature) for x in logits]
        return [p / sum(powers) for p in powers]

    return -sum(t * math.log(s) for s, t in zip(softmax(student), softmax(teacher), strict=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equals_the_formula(temperature):
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    expected = [reference(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature), torch.tensor(expected))


def test_token_logits_are_averaged_over_real_tokens():
    student, teacher = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    values = soft_cross_entropy(student.flatten(0, 1), teacher.flatten(0, 1)).view(2, 5)
    expected = torch.stack([values[0].mean(), values[1, :2].mean()])
    torch.testing.assert_close(soft_cross_entropy(student, teacher, attention_mask=mask), expected)


def test_its_minimum_is_the_teacher():
    teacher = torch.randn(2, 4)
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)


def prediction_loss(head, student_logits, teacher_logits, mask=None, **settings):
    """`PredictionLoss` of a student with this kind of head; `mask` is true where logits are predictions."""
    student = Activations(MASK, student_logits, prediction_head=head, logits_mask=mask)
    return PredictionLoss(**settings)(student, Activations(MASK, teacher_logits), [])


def test_a_regression_head_learns_the_teachers_score():
    student_scores, teacher_scores = torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [4.0]])
    assert prediction_loss(Regression(), student_scores, teacher_scores).tolist() == [4.0, 0.0]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_spans_equal_the_formula(temperature):
    """Over the real tokens alone, whatever stands at the others."""
    student, teacher = torch.randn(2, 3, 5, 2).unbind()
    expected = []
    for student_row, teacher_row, mask in zip(student, teacher, MASK.bool(), strict=True):
        columns = zip(student_row[mask].T.tolist(), teacher_row[mask].T.tolist(), strict=True)
        expected.append(sum(reference(s, t, temperature) for s, t in columns) / 2)
    teacher[~MASK.bool()], student[~MASK.bool()] = 50, -50
    torch.testing.assert_close(span_cross_entropy(student, teacher, temperature, MASK), torch.tensor(expected))
    torch.testing.assert_close(span_cross_entropy(student[:1], teacher[:1], temperature), torch.tensor(expected[:1]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_labels_equal_the_formula(temperature):
    """Each label is a choice between the logits 0 and z."""
    student, teacher = torch.randn(2, 4, 3).unbind()
    expected = [
        sum(reference([0, s], [0, t], temperature) for s, t in zip(student_row, teacher_row, strict=True)) / 3
        for student_row, teacher_row in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(soft_binary_cross_entropy(student, teacher, temperature), torch.tensor(expected))


def test_masked_tokens_equal_the_formula():
    """Over the masked tokens alone; a sequence without one is worth 0, and its gradient is 0."""
    student, teacher = torch.randn(2, 3, 5, 7).unbind()
    student.requires_grad_()
    masked = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    expected = []
    for student_row, teacher_row, at in zip(student.detach(), teacher, masked, strict=True):
        pairs = zip(student_row[at].tolist(), teacher_row[at].tolist(), strict=True)
        expected.append(sum(reference(s, t, 2.0) for s, t in pairs) / max(at.sum(), 1))
    values = prediction_loss(MaskedTokens(), student, teacher, masked, temperature=2)
    torch.testing.assert_close(values, torch.tensor(expected))
    values.sum().backward()
    assert (student.grad.abs().sum(-1) > 0).equal(masked)


def test_masked_tokens_through_the_trainer(tmp_path):
    """The logged loss is the float64 mean over sequences of their means over masked tokens."""
    teacher, student = (build(BertForMaskedLM, bert_config(n, 16, vocab_size=20), n) for n in (2, 1))
    masked = [i % 4 for i in range(8)]  # tokens of each row, in some none
    data = [
        {"input_ids": [5 + i, 6, 7, 8, 9][: 3 + i % 3], "labels": [6] * n + [-100] * (3 + i % 3 - n)}
        for i, n in enumerate(masked)
    ]
    data = Dataset.from_list([row | {"attention_mask": [1] * len(row["labels"])} for row in data])
    expected = []
    with torch.no_grad():
        models = [copy.deepcopy(model).double().eval() for model in (student, teacher)]
        for row, n in zip(data, masked, strict=True):
            logits = [model(torch.tensor([row["input_ids"]])).logits[0, :n].tolist() for model in models]
            expected.append(sum(reference(s, t, 1.5) for s, t in zip(*logits, strict=True)) / max(n, 1))
    _, (log,), _ = distil(tmp_path, student, teacher, [PredictionLoss(temperature=1.5)], data)
    assert log["prediction_loss"] == pytest.approx(sum(expected) / 8, rel=1e-5)


@pytest.mark.parametrize(
    ("head", "shape", "mask", "form"),
    [
        (Classes(), (3, 4), None, soft_cross_entropy),
        (Choices(), (3, 4), None, soft_cross_entropy),
        (Labels(), (3, 4), None, soft_binary_cross_entropy),
        (TokenClasses(), (3, 5, 4), MASK, lambda s, t: soft_cross_entropy(s, t, attention_mask=MASK)),
        (MaskedTokens(), (3, 5, 4), MASK, lambda s, t: soft_cross_entropy(s, t, attention_mask=MASK)),
        (Spans(), (3, 5, 2), MASK, lambda s, t: span_cross_entropy(s, t, attention_mask=MASK)),
        (Regression(), (3, 1), None, lambda s, t: (s - t).square().sum(-1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_form_follows_the_head_and_is_least_at_the_teacher(head, shape, mask, form):
    teacher = torch.randn(shape)
    student = torch.randn(shape)
    values = prediction_loss(head, student, teacher, mask)
    assert values.shape == (3,)
    torch.testing.assert_close(values, form(student, teacher))
    student = teacher.clone().requires_grad_()
    prediction_loss(head, student, teacher, mask).sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(shape), atol=1e-6, rtol=0)


def test_a_score_a_token():
    student, teacher = torch.randn(2, 3, 5, 1).unbind()
    values = prediction_loss(Regression(), student, teacher, MASK)
    expected = [((s - t)[m.bool()] ** 2).mean() for s, t, m in zip(student, teacher, MASK, strict=True)]
    torch.testing.assert_close(values, torch.stack(expected))


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        PredictionLoss(temperature=temperature)
