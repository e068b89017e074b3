import math

import pytest
import torch

from hf_tinybert.activations import Activations
from hf_tinybert.losses import PredictionLoss, soft_cross_entropy


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


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        PredictionLoss(temperature=temperature)
