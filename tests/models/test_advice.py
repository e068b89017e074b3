"""Errors say what to change: here it is changed, and what failed works."""

import copy

import pytest
import torch
from conftest import LABELS, bert_config, build, pad, rows
from short_runs import arguments
from transformers import (
    BertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from hf_tinybert import DistillationTrainer, transfer_vocabulary


def fails_and_then_works(folder, student, teacher, says, change=dict, **options):
    """Training fails with this message before any step; with what `change` changes or returns it runs."""
    before = copy.deepcopy(student.state_dict())

    def train(loss_type=("attention", "prediction"), teacher_model=teacher, **options):
        args = arguments(folder, loss_type=list(loss_type), **options)
        DistillationTrainer(student, args, pad, rows(8), teacher_model=teacher_model).train()
        return not all(torch.equal(value, before[name]) for name, value in student.state_dict().items())

    with pytest.raises(ValueError, match=says):
        train(**options)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)
    assert train(**options | (change() or {}))


def test_label_names(tmp_path, student, teacher):
    student.config.id2label = dict(enumerate(reversed(LABELS.values())))

    def change():
        student.config.id2label, student.config.label2id = teacher.config.id2label, teacher.config.label2id

    fails_and_then_works(tmp_path, student, teacher, "Give the student the teacher's id2label and label2id", change)


def test_heads_of_another_kind(tmp_path, student, token_teacher):
    drop = {"loss_type": ["attention"]}
    fails_and_then_works(tmp_path, student, token_teacher, "or drop 'prediction' from loss_type", lambda: drop)


@pytest.mark.parametrize(("flag", "value"), [("output_hidden_states", True), ("return_dict", False)])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_flags_of_the_configuration(tmp_path, student, teacher, flag, value, role):
    model = {"student": student, "teacher": teacher}[role]
    setattr(model.config, flag, value)
    says = f"Set {flag} of the {role}'s config to {not value}"
    fails_and_then_works(tmp_path, student, teacher, says, lambda: setattr(model.config, flag, not value))


def test_the_student_as_its_teacher(tmp_path, student):
    says = r"pass a copy \(copy\.deepcopy\)"
    fails_and_then_works(tmp_path, student, student, says, lambda: {"teacher_model": copy.deepcopy(student)})


def test_reentrant_activation_checkpointing(tmp_path, student, teacher):
    student.activation_checkpointing_enable({"use_reentrant": True})

    def change():
        student.activation_checkpointing_enable({"use_reentrant": False})

    says = r"call student\.activation_checkpointing_enable\(\{'use_reentrant': False\}\)"
    fails_and_then_works(tmp_path, student, teacher, says, change)


def test_padding_free_of_an_architecture_that_cannot(tmp_path, teacher):
    sizes = {name: getattr(teacher.config, name) for name in ("vocab_size", "id2label", "label2id")}
    config = MPNetConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, pad_token_id=0, **sizes
    )
    student = build(MPNetForSequenceClassification, config)
    says, advised = "set padding_free=False", {"padding_free": False}
    fails_and_then_works(tmp_path, student, teacher, says, lambda: advised, padding_free=True)


def test_padding_id_of_a_model_that_counts_positions_from_it():
    def tokenizer(*words):
        return RobertaTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])

    old, new = tokenizer("<s>", "<pad>", "</s>", "<unk>", "a"), tokenizer("<pad>", "<s>", "</s>", "<unk>", "a", "b")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = build(RobertaModel, RobertaConfig(vocab_size=len(old), pad_token_id=old.pad_token_id, **sizes))
    with pytest.raises(ValueError, match=f"give its padding token the id {old.pad_token_id}"):
        transfer_vocabulary(model, old, new)
    new = tokenizer("<s>", "<pad>", "</s>", "<unk>", "a", "b")
    assert transfer_vocabulary(model, old, new).config.vocab_size == len(new)


def test_teachers_of_several_kinds_of_message(tmp_path, student, teacher):
    """A message about one of several teachers names it, and its advice works too."""
    other = build(BertForSequenceClassification, bert_config(3, 16, vocab_size=56), 4)
    says = r"^Teacher 2 of 2: .*student\.resize_token_embeddings\(56\)"
    change = {"teacher_model": [teacher, other]}

    def resize():
        other.resize_token_embeddings(50)
        return change

    fails_and_then_works(tmp_path, student, [teacher, other], says, resize)
