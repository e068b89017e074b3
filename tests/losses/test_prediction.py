import copy
import math

import pytest
import torch
from conftest import bert_config, build
from datasets import Dataset
from short_runs import distil
from transformers import BertForMaskedLM

from hf_tinybert.activations import Activations, Logits
from hf_tinybert.losses import PredictionLoss, soft_cross_entropy
from hf_tinybert.losses.prediction import soft_binary_cross_entropy, span_cross_entropy


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


def test_a_regression_head_learns_the_teachers_score():
    student, teacher = (
        Activations(logits=torch.tensor([[1.0], [4.0]])),
        Activations(logits=torch.tensor([[3.0], [4.0]])),
    )
    assert PredictionLoss()(student, teacher, []).tolist() == [4.0, 0.0]


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_spans_equal_the_formula(temperature):
    """Over the real tokens alone, whatever stands at the others."""
    student, teacher = torch.randn(2, 3, 5, 2).unbind()
    expected = []
    for ours, theirs, mask in zip(student, teacher, MASK.bool(), strict=True):
        columns = zip(ours[mask].T.tolist(), theirs[mask].T.tolist(), strict=True)
        expected.append(sum(reference(s, t, temperature) for s, t in columns) / 2)
    teacher[~MASK.bool()], student[~MASK.bool()] = 50, -50
    torch.testing.assert_close(span_cross_entropy(student, teacher, temperature, MASK), torch.tensor(expected))
    torch.testing.assert_close(span_cross_entropy(student[:1], teacher[:1], temperature), torch.tensor(expected[:1]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_labels_equal_the_formula(temperature):
    """Each label is a choice between the logits 0 and z."""
    student, teacher = torch.randn(2, 4, 3).unbind()
    expected = [
        sum(reference([0, s], [0, t], temperature) for s, t in zip(ours, theirs, strict=True)) / 3
        for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(soft_binary_cross_entropy(student, teacher, temperature), torch.tensor(expected))


def test_masked_words_equal_the_formula():
    """Over the masked tokens alone; a sequence without one is worth 0, and its gradient is 0."""
    student, teacher = torch.randn(2, 3, 5, 7).unbind()
    student.requires_grad_()
    masked = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    expected = []
    for ours, theirs, at in zip(student.detach(), teacher, masked, strict=True):
        pairs = zip(ours[at].tolist(), theirs[at].tolist(), strict=True)
        expected.append(sum(reference(s, t, 2.0) for s, t in pairs) / max(at.sum(), 1))
    values = PredictionLoss(temperature=2)(
        Activations(MASK, student, logits_mask=masked), Activations(MASK, teacher), []
    )
    torch.testing.assert_close(values, torch.tensor(expected))
    values.sum().backward()
    assert (student.grad.abs().sum(-1) > 0).equal(masked)


def test_masked_words_through_the_trainer(tmp_path):
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
            ours, theirs = (model(torch.tensor([row["input_ids"]])).logits[0, :n].tolist() for model in models)
            expected.append(sum(reference(s, t, 1.5) for s, t in zip(ours, theirs, strict=True)) / max(n, 1))
    _, (log,), _ = distil(tmp_path, student, teacher, [PredictionLoss(temperature=1.5)], data)
    assert log["prediction_loss"] == pytest.approx(sum(expected) / 8, rel=1e-5)


@pytest.mark.parametrize("kind", Logits)
def test_the_form_follows_the_head(kind):
    """Every kind is least at the teacher, by the form of its own."""
    shape = (3, 5, 2) if kind is Logits.POSITIONS else (3, 4)
    teacher = torch.randn(shape)
    student = teacher.clone().requires_grad_()
    values = PredictionLoss()(Activations(MASK, student, kind=kind), Activations(MASK, teacher, kind=kind), [])
    want = {
        Logits.CLASSES: soft_cross_entropy,
        Logits.LABELS: soft_binary_cross_entropy,
        Logits.POSITIONS: lambda s, t: span_cross_entropy(s, t, attention_mask=MASK),
    }[kind](student, teacher)
    assert values.shape == (3,)
    torch.testing.assert_close(values, want)
    values.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(shape), atol=1e-6, rtol=0)


def test_a_score_a_token():
    student, teacher = torch.randn(2, 3, 5, 1).unbind()
    values = PredictionLoss()(Activations(MASK, student), Activations(MASK, teacher), [])
    expected = [((s - t)[m.bool()] ** 2).mean() for s, t, m in zip(student, teacher, MASK, strict=True)]
    torch.testing.assert_close(values, torch.stack(expected))


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        PredictionLoss(temperature=temperature)
