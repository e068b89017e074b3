import pytest
import torch

from hf_tinybert.activations import Activations, QueryKey
from hf_tinybert.losses import MiniLMLoss

B, H, S = 2, 3, 7


def activations(d, seed):
    vectors = [torch.randn(B, H, S, d, generator=torch.Generator().manual_seed(seed + i)) for i in range(3)]
    mask = torch.tensor([[1] * S, [1] * 4 + [0] * 3])
    return Activations(mask, attentions=(None, QueryKey(*vectors[:2], d**-0.5, vectors[2].requires_grad_())))


def divergence(student_scores, teacher_scores, n):
    """KL of one head of one sequence, from its n×n scores, with loops."""
    p, q = teacher_scores[:n, :n].softmax(-1), student_scores[:n, :n].softmax(-1)
    return sum(p[i, j] * (p[i, j] / q[i, j]).log() for i in range(n) for j in range(n)) / n


def test_is_attention_and_value_relations_of_the_last_layer():
    student, teacher = activations(5, 0), activations(8, 3)
    value = MiniLMLoss(block=4)(student, teacher, [(1, 1), (2, 2)])
    expected = []
    for b, n in enumerate([S, 4]):
        total = 0.0
        for first, second in (("query", "key"), ("value", "value")):
            scores = [
                (getattr(a, first).double() @ getattr(a, second).double().mT * a.scaling)[b]
                for a in (student.attentions[1], teacher.attentions[1])
            ]
            total += sum(divergence(scores[0][h], scores[1][h], n) for h in range(H)) / H
        expected.append(total)
    torch.testing.assert_close(value.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    value.sum().backward()
    assert student.attentions[1].value.grad.abs().max() > 0


def test_scores_without_factors_are_refused():
    dense = Activations(None, attentions=(torch.zeros(B, H, S, S),))
    with pytest.raises(ValueError, match="drop 'minilm'"):
        MiniLMLoss()(dense, dense, [(1, 1)])
