import pytest
import torch

from hf_tinybert.activations import Activations, QueryKey
from hf_tinybert.losses import RelationLoss, relation_kl

B, A = 3, 4


def reference(student, teacher, mask):
    """In float64 with the S×S relations in full, one sequence at a time."""
    values = []
    for b in range(B):
        real = mask[b].bool()
        ours, theirs = (
            torch.softmax(x[b][:, real].double() @ x[b][:, real].double().mT / x.shape[-1] ** 0.5, -1)
            for x in (student, teacher)
        )
        values.append((theirs * (theirs.log() - ours.log())).sum(-1).mean())
    return torch.stack(values)


def padding(length):
    return (torch.arange(length) < torch.tensor([length, max(1, length // 2), max(1, length - 3)])[:, None]).long()


@pytest.mark.parametrize("length", [1, 2, 17, 128, 129, 300])
@pytest.mark.parametrize("block", [16, 128])
def test_value_and_gradient_equal_the_float64_reference(length, block):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(B, A, length, d, generator=generator) for d in (26, 64))
    mask, weights = padding(length), torch.arange(1.0, B + 1)
    results = []
    for loss in (reference, lambda s, t, m: relation_kl(s, t, m, block)):
        given = student.clone().requires_grad_()
        value = loss(given, teacher, mask)
        (value * weights).sum().backward()
        results.append((value.detach(), given.grad))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-4, atol=1e-6)
    assert torch.equal(results[1][1][1, :, mask[1].sum() :], torch.zeros_like(given[1, :, mask[1].sum() :]))


def test_memory_is_linear_in_the_length():
    def largest(length):
        student, teacher = torch.randn(1, 2, length, 8, requires_grad=True), torch.randn(1, 2, length, 8)
        sizes = []

        class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
                return result

        with Sizes():
            relation_kl(student, teacher, block=32).sum().backward()
        return max(sizes)

    assert largest(1024) == 4 * largest(256)


def test_head_counts_may_differ():
    def activations(heads, d):
        vectors = [torch.randn(B, heads, 7, d, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        return Activations(None, attentions=(None, QueryKey(*vectors[:2], 1.0, vectors[2])))

    student, teacher = activations(2, 24), activations(4, 16)
    value = RelationLoss(relation_heads=8)(student, teacher, [(1, 1), (2, 2)])
    expected = 0
    for ours, theirs in zip(student.attentions[1].vectors, teacher.attentions[1].vectors, strict=True):
        cut = [x.transpose(1, 2).reshape(B, 7, 8, -1).transpose(1, 2) for x in (ours, theirs)]
        expected = expected + reference(*cut, torch.ones(B, 7)) / 3
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="relation_heads=5 does not divide the width 48"):
        RelationLoss(relation_heads=5)(student, teacher, [(2, 2)])


def test_scores_without_factors_are_refused():
    dense = Activations(None, attentions=(torch.zeros(B, 2, 7, 7),))
    with pytest.raises(ValueError, match="drop 'relation'"):
        RelationLoss()(dense, dense, [(1, 1)])
