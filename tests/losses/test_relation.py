import pytest
import torch
from conftest import bert_config, build, pad, rows
from short_runs import arguments, distil
from transformers import BertForSequenceClassification

from hf_tinybert import DistillationTrainer
from hf_tinybert.activations import Activations, QueryKey
from hf_tinybert.losses import RelationLoss, relation_kl

B, A = 3, 4


def reference(student, teacher, mask):
    """In float64 with the S×S relations in full, one sequence at a time."""
    values = []
    for b in range(B):
        real = mask[b].bool()
        student_relation, teacher_relation = (
            torch.softmax(x[b][:, real].double() @ x[b][:, real].double().mT / x.shape[-1] ** 0.5, -1)
            for x in (student, teacher)
        )
        values.append((teacher_relation * (teacher_relation.log() - student_relation.log())).sum(-1).mean())
    return torch.stack(values)


def padding(length):
    return (torch.arange(length) < torch.tensor([length, max(1, length // 2), max(1, length - 3)])[:, None]).long()


@pytest.mark.parametrize("length", [1, 17, 129])
@pytest.mark.parametrize("block", [16, 128])
def test_value_and_gradient_equal_the_float64_reference(length, block):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(B, A, length, d, generator=generator) for d in (26, 64))
    mask, weights = padding(length), torch.arange(1.0, B + 1)
    results = []
    for loss in (reference, lambda s, t, m: relation_kl(s, t, m, block)):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, mask)
        (value * weights).sum().backward()
        results.append((value.detach(), leaf.grad))
    for expected_values, values in zip(*results, strict=True):
        torch.testing.assert_close(values.double(), expected_values.double(), rtol=1e-4, atol=1e-6)
    assert not leaf.grad[1, :, mask[1].sum() :].any()


def activations(heads, d, length, mask=None, batch=B):
    generator = torch.Generator().manual_seed(heads)
    vectors = [torch.randn(batch, heads, length, d, generator=generator).requires_grad_() for _ in range(3)]
    return Activations(mask, attentions=(None, QueryKey(*vectors[:2], 1.0, vectors[2])))


def test_memory_is_linear_in_the_length():
    def largest(length):
        student, teacher = activations(8, 3, length, batch=1), activations(12, 4, length, batch=1)
        sizes = []

        class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
                return result

        with Sizes():
            RelationLoss(relation_heads=6, block=32)(student, teacher, [(2, 2)]).sum().backward()
        return max(sizes)

    assert largest(1024) == 4 * largest(256)


@pytest.mark.parametrize(("student_heads", "teacher_heads"), [(8, 12), (12, 8)])
@pytest.mark.parametrize("length", [7, 150])
def test_head_counts_may_differ(student_heads, teacher_heads, length):
    mask = padding(length)
    student, teacher = activations(student_heads, 6, length, mask), activations(teacher_heads, 10, length, mask)
    student_vectors, teacher_vectors = (x.attentions[1].vectors for x in (student, teacher))
    value = RelationLoss(relation_heads=4)(student, teacher, [(1, 1), (2, 2)])
    regrouped = [
        [x.transpose(1, 2).reshape(B, length, 4, -1).transpose(1, 2) for x in vectors]
        for vectors in (student_vectors, teacher_vectors)
    ]
    expected = sum(reference(a, b.detach(), mask) for a, b in zip(*regrouped, strict=True)) / 3
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    weights = torch.arange(1.0, B + 1).double()
    gradients = [torch.autograd.grad(x.double() @ weights, student_vectors) for x in (value, expected)]
    for gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=f"relation_heads=5 does not divide the width {6 * student_heads}"):
        RelationLoss(relation_heads=5)(student, teacher, [(2, 2)])


def models(student_width=24):
    return (
        build(BertForSequenceClassification, bert_config(layers, width, heads, num_labels=3), layers)
        for layers, width, heads in ((2, student_width, 8), (4, 36, 12))
    )


def test_8_heads_learn_from_12(tmp_path):
    changes = {"loss_type": ["relation"], "relation_heads": 6, "max_steps": 10, "learning_rate": 0.5}
    _, logs, gradients = distil(tmp_path, *models(), **changes)
    assert logs[-1]["relation_loss"] < 0.9 * logs[0]["relation_loss"]
    last = {name for name in gradients[0] if "layer.1.attention.self" in name}
    assert len(last) == 6
    assert all(gradients[0][name].abs().max() > 0 for name in last if "weight" in name)


@pytest.mark.parametrize(("heads", "message"), [(8, "relation_heads=8 "), (None, "=12 .the teacher's heads")])
def test_relation_heads_that_do_not_fit_are_refused_before_training(tmp_path, heads, message):
    student, teacher = models(40)
    args = arguments(tmp_path, loss_type=["relation"], relation_heads=heads)
    with pytest.raises(ValueError, match=rf"{message}.* 40 of the student and 36 .*give one of 1, 2, 4\."):
        DistillationTrainer(student, args, pad, rows(8), teacher_model=teacher)


def test_scores_without_factors_are_refused():
    dense = Activations(None, attentions=(torch.zeros(B, 2, 7, 7),))
    with pytest.raises(ValueError, match="drop 'relation'"):
        RelationLoss()(dense, dense, [(1, 1)])
