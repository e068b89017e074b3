import pytest
import torch

from hf_tinybert.activations import Activations, QueryKey
from hf_tinybert.losses import AttentionKLLoss, attention_kl, score_matrix_kl

B, H = 3, 4


def reference(student, teacher, mask):
    """In float64 with the S×S probabilities in full, one sequence at a time."""
    values = []
    for b in range(B):
        real = mask[b].bool()
        student_probabilities, teacher_probabilities = (
            torch.softmax(a.query[b][:, real].double() @ a.key[b][:, real].double().mT * a.scaling, -1)
            for a in (student, teacher)
        )
        log_ratio = teacher_probabilities.log() - student_probabilities.log()
        values.append((teacher_probabilities * log_ratio).sum(-1).mean())
    return torch.stack(values)


def inputs(length, dims=(26, 64), scalings=(0.2, 0.1)):
    generator = torch.Generator().manual_seed(0)
    return [
        QueryKey(*(torch.randn(B, H, length, d, generator=generator) for _ in range(2)), scaling)
        for d, scaling in zip(dims, scalings, strict=True)
    ]


def padding(length):
    return (torch.arange(length) < torch.tensor([length, max(1, length // 2), max(1, length - 3)])[:, None]).long()


def value_and_gradients(loss, student, teacher, mask):
    leaves = QueryKey(student.query.clone().requires_grad_(), student.key.clone().requires_grad_(), student.scaling)
    value = loss(leaves, teacher, mask)
    (value * torch.arange(1.0, B + 1)).sum().backward()
    return value.detach(), leaves.query.grad, leaves.key.grad


def in_small_blocks(student, teacher, mask):
    return attention_kl(student, teacher, mask, block=16)


def dense(student, teacher, mask):
    return score_matrix_kl(student.scores(), teacher.scores(), mask)


@pytest.mark.parametrize("length", [1, 128, 129, 300])
@pytest.mark.parametrize("loss", [dense, attention_kl, in_small_blocks])
def test_value_and_gradients_equal_the_float64_reference(length, loss):
    student, teacher = inputs(length)
    for mask in (padding(length), torch.ones(B, length)):
        result = value_and_gradients(loss, student, teacher, mask)
        expected = value_and_gradients(reference, student, teacher, mask)
        for values, expected_values in zip(result, expected, strict=True):
            torch.testing.assert_close(values.double(), expected_values.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(student, teacher, None), loss(student, teacher, mask))


def test_padding_gets_no_gradient():
    student, teacher = inputs(12)
    for loss in (attention_kl, dense):
        _, query, key = value_and_gradients(loss, student, teacher, padding(12))
        assert not query[1, :, 6:].any()
        assert not key[1, :, 6:].any()


def test_it_is_zero_at_the_teacher_alone():
    student, teacher = inputs(9)
    value, *gradients = value_and_gradients(attention_kl, teacher, teacher, padding(9))
    torch.testing.assert_close(value, torch.zeros(B), atol=1e-6, rtol=0)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)
    assert (attention_kl(student, teacher, padding(9)) > 0.01).all()


def test_masked_scores_may_be_minus_infinity():
    student, teacher = inputs(8)
    window = torch.full((8, 8), -torch.inf).triu(3)
    scores = [(a.scores() + window).requires_grad_() for a in (student, teacher)]
    value = score_matrix_kl(*scores)
    value.sum().backward()
    student_probabilities, teacher_probabilities = (torch.softmax(s, -1) for s in scores)
    ratio = teacher_probabilities / student_probabilities.clamp(min=1e-9)
    expected = torch.special.xlogy(teacher_probabilities, ratio).sum(-1).mean((1, 2))
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(scores[0].grad).all()


def test_layers_are_added_whatever_form_their_scores_have():
    student, teacher = inputs(7)
    pair = [Activations(padding(7), attentions=(None, a)) for a in (student, teacher)]
    expected = reference(student, teacher, padding(7)).float()
    torch.testing.assert_close(AttentionKLLoss()(*pair, [(2, 2)]), expected)
    torch.testing.assert_close(AttentionKLLoss()(*pair, [(2, 2), (2, 2)]), 2 * expected)
    pair[1].attentions = (None, teacher.scores())
    torch.testing.assert_close(AttentionKLLoss()(*pair, [(2, 2)]), expected)


def test_differing_head_counts_are_refused():
    student, teacher = inputs(5)
    fewer = QueryKey(teacher.query[:, :2], teacher.key[:, :2], 1.0)
    for loss in (lambda s, t: attention_kl(s, t), lambda s, t: score_matrix_kl(s.scores(), t.scores())):
        with pytest.raises(ValueError, match=r"4 attention heads and the teacher 2.*'relation' loss"):
            loss(student, fewer)
