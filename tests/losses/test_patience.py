import pytest
import torch
from conftest import bert_config, build, pad, rows
from short_runs import arguments
from transformers import BertForSequenceClassification

from hf_tinybert import DistillationTrainer
from hf_tinybert.activations import Activations
from hf_tinybert.losses import PatienceLoss, first_token_distance


def reference(student, teacher):
    """Equation 7 for one layer of one example, with Python floats."""
    student, teacher = student.double().tolist(), teacher.double().tolist()
    student_norm, teacher_norm = (sum(x * x for x in vector) ** 0.5 for vector in (student, teacher))
    return sum((s / student_norm - t / teacher_norm) ** 2 for s, t in zip(student, teacher, strict=True))


def test_equals_the_formula_at_the_first_real_token():
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])  # padded right and left
    expected = [reference(student[b, i], teacher[b, i]) for b, i in enumerate([0, 0, 2])]
    torch.testing.assert_close(first_token_distance(student, teacher, mask), torch.tensor(expected))
    expected[2] = reference(student[2, 0], teacher[2, 0])
    torch.testing.assert_close(first_token_distance(student, teacher), torch.tensor(expected))


def test_adds_all_mapped_layers_but_the_last():
    student, teacher = torch.randn(4, 2, 3, 6), torch.randn(7, 2, 3, 6)
    activations = Activations(hidden_states=tuple(student)), Activations(hidden_states=tuple(teacher))
    value = PatienceLoss()(*activations, [(1, 2), (2, 4), (3, 6)])
    expected = [sum(reference(student[m][b, 0], teacher[g][b, 0]) for m, g in [(1, 2), (2, 4)]) for b in range(2)]
    torch.testing.assert_close(value, torch.tensor(expected))


def test_a_student_of_one_layer_is_refused(tmp_path, teacher):
    student = build(BertForSequenceClassification, bert_config(1, 16))
    args = arguments(tmp_path, loss_type=["patience"])
    with pytest.raises(ValueError, match=r"only one is mapped.*drop 'patience'"):
        DistillationTrainer(student, args, pad, rows(8), teacher_model=teacher).train()
