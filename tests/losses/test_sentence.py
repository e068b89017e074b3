"""Sentence embeddings against plain Python, and through the trainer."""

import math

import pytest
import torch
from conftest import bert_config, build, pad, rows
from short_runs import distil
from transformers import BertModel

from hf_tinybert.activations import Activations
from hf_tinybert.losses import SentenceLoss
from hf_tinybert.losses.sentence import pool

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_equals_the_formula(pooling):
    student, teacher = torch.randn(2, 3, 4, 5).unbind()
    expected = []
    for student_states, teacher_states, mask in zip(student, teacher, MASK.bool(), strict=True):
        real = student_states[mask], teacher_states[mask]
        pooled = [states.mean(0) if pooling == "mean" else states[0] for states in real]
        expected.append(1 - cosine(*(x.tolist() for x in pooled)))
    student[~MASK.bool()] = float("nan")
    activations = [Activations(MASK, hidden_states=(None, hidden)) for hidden in (student, teacher)]
    values = SentenceLoss(pooling=pooling)(*activations, [(1, 1)])
    torch.testing.assert_close(values, torch.tensor(expected))


def test_without_a_mask_every_token_counts():
    hidden = torch.randn(2, 3, 4)
    torch.testing.assert_close(pool(hidden), hidden.mean(1))
    torch.testing.assert_close(pool(hidden, pooling="first"), hidden[:, 0])


def test_the_last_mapped_layers_are_read():
    assert SentenceLoss().hidden_layers([(1, 3), (2, 6)]) == [(2, 6)]


def test_it_is_least_at_the_teacher_whatever_the_length():
    teacher = torch.randn(3, 4, 5)
    student = (2 * teacher).requires_grad_()
    activations = [Activations(MASK, hidden_states=(hidden,)) for hidden in (student, teacher)]
    values = SentenceLoss()(*activations, [(0, 0)])
    torch.testing.assert_close(values, torch.zeros(3), atol=1e-6, rtol=0)
    values.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-6, rtol=0)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling='max': give one of mean, first"):
        SentenceLoss(pooling="max")


def test_a_student_of_the_same_width_comes_to_embed_as_its_teacher(tmp_path):
    teacher, student = build(BertModel, bert_config(4, 32), 1).eval(), build(BertModel, bert_config(2, 32), 2)
    data = rows(32).remove_columns("labels")
    trained = {"max_steps": 60, "optim": "adamw_torch", "learning_rate": 1e-2}
    _, logs, _ = distil(tmp_path, student, teacher, [SentenceLoss()], data, **trained)
    assert logs[-1]["sentence_loss"] < 0.3 * logs[0]["sentence_loss"]
    batch = pad(list(data))
    with torch.no_grad():
        embeddings = [pool(m.eval()(**batch).last_hidden_state, batch["attention_mask"]) for m in (student, teacher)]
    assert torch.cosine_similarity(*embeddings).mean() > 1 - 0.5 * logs[0]["sentence_loss"]
