"""Students whose embeddings are narrower than their layers."""

import pytest
import torch
from tiny_teachers import BERT, SMALL, build, distance, outputs, rows
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_tinybert.lineage import Lineage
from hf_tinybert.students import create_student
from hf_tinybert.students.calibration import calibration_batches
from hf_tinybert.students.fit_embeddings import embedded_states, fit_embeddings


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (BertForSequenceClassification, BertConfig(**BERT)),
        (BertForTokenClassification, BertConfig(**BERT)),
        (BertForQuestionAnswering, BertConfig(**BERT)),
        (BertForMaskedLM, BertConfig(**BERT)),
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=24)),
        (ElectraForMaskedLM, ElectraConfig(**BERT, embedding_size=16)),
    ],
)
def test_a_factorised_student_is_nearer_to_the_teacher_than_a_random_one(tmp_path, model_class, config):
    teacher, dataset = build(model_class, config), rows(160)
    torch.manual_seed(0)
    random = create_student(teacher, **SMALL, embedding_size=10, init="random")
    student = create_student(teacher, **SMALL, embedding_size=10, calibration_dataset=dataset)
    assert student.get_input_embeddings().weight.shape == (60, 10)
    assert student.config.hidden_size == 16
    assert Lineage.from_config(student.config).layers == [2, 4]
    assert distance(student, teacher, dataset) < 0.8 * distance(random, teacher, dataset)
    student.save_pretrained(tmp_path)
    again, loading = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    for a, b in zip(outputs(student, dataset[:3]), outputs(again, dataset[:3]), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("width", [5, 10, 18])
def test_the_factors_are_nearly_the_best_of_their_width(width):
    # The LayerNorm takes two columns of the tables. Positions are zero, so that a token's sum is its row of the table.
    teacher, dataset = build(BertForMaskedLM, BertConfig(**BERT)), rows(200)
    torch.manual_seed(0)
    with torch.no_grad():
        teacher.bert.embeddings.position_embeddings.weight.zero_()
        teacher.bert.embeddings.LayerNorm.weight.uniform_(0.5, 2)
    student = create_student(teacher, embedding_size=width, calibration_dataset=dataset)
    ids = torch.tensor([row["input_ids"][:4] for row in dataset])
    student_states, teacher_states = (first_layer_input(model, ids) for model in (student, teacher))
    centred = teacher_states - teacher_states.mean(0)
    best = centred - centred @ (right := torch.linalg.svd(centred).Vh[: width - 2]).T @ right
    assert (student_states - teacher_states).square().sum() < 1.05 * best.square().sum()


@pytest.mark.parametrize(
    ("model_class", "config", "sizes"),
    [
        (BertForSequenceClassification, BertConfig(**BERT), {}),
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=16), {}),
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=20), {}),
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=24), {"embedding_size": 10}),
    ],
)
@torch.no_grad()
def test_the_encoder_is_fitted_to_what_the_embeddings_compute(model_class, config, sizes):
    teacher, dataset = build(model_class, config), rows(40)
    student = create_student(teacher, **SMALL, **sizes, init="random").eval()
    states = embedded_states(teacher, calibration_batches(dataset, None, teacher, 40), 16, 1)
    basis = torch.linalg.qr(torch.randn(24, 16, dtype=torch.float64)).Q
    fit_embeddings(student, teacher, basis, states)
    batch = states.batches[0]
    computed = student(**batch.inputs, output_hidden_states=True).hidden_states[0][batch.mask]
    torch.testing.assert_close(states.student[0], computed, atol=1e-5, rtol=1e-4)


def first_layer_input(model, ids):
    """(B·S, D)."""
    with torch.no_grad():
        return model.eval()(ids, output_hidden_states=True).hidden_states[0].flatten(0, 1)


def test_embeddings_as_wide_as_the_layers_are_not_factorised():
    teacher = build(BertForSequenceClassification, BertConfig(**BERT))
    student = create_student(teacher, **SMALL, embedding_size=16, calibration_dataset=rows())
    assert type(student) is BertForSequenceClassification


@pytest.mark.parametrize(
    ("model_class", "config", "arguments", "message"),
    [
        (BertForSequenceClassification, BertConfig(**BERT), {"embedding_size": 25}, "embedding_size=25"),
        (BertForSequenceClassification, BertConfig(**BERT), {"init": "layers"}, "embedding_size differs"),
        (BertForSequenceClassification, BertConfig(**BERT), {"calibration_dataset": None}, "another embedding_size"),
        (BertForNextSentencePrediction, BertConfig(**BERT), {}, "BertForNextSentencePrediction has no counterpart"),
        (BertForPreTraining, BertConfig(**BERT), {}, "BertForPreTraining has no counterpart"),
        (RobertaForSequenceClassification, RobertaConfig(**BERT), {}, "RobertaConfig has no embedding_size"),
    ],
)
def test_what_cannot_be_factorised_is_refused(model_class, config, arguments, message):
    arguments = {"embedding_size": 8, "calibration_dataset": rows()} | arguments
    with pytest.raises(ValueError, match=message):
        create_student(build(model_class, config), **arguments)
