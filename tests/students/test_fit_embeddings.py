"""as_albert: an ALBERT that is a BERT; students whose embeddings are narrower than their layers."""

import pytest
import torch
import transformers
from test_students import BERT, SMALL, build, outputs, rows
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_tinybert import create_student
from hf_tinybert.students.fit_embeddings import as_albert

HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"]


@pytest.mark.parametrize("head", [*HEADS, "ForMaskedLM"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "classifier_dropout": 0.3}])
def test_it_is_the_same_function(head, changes):
    bert = build(getattr(transformers, f"Bert{head}"), BertConfig(**BERT, **changes))
    albert = as_albert(bert)
    assert type(albert) is getattr(transformers, f"Albert{head}")
    assert (albert.config.id2label, albert.config.pad_token_id) == (bert.config.id2label, bert.config.pad_token_id)
    dropouts = [{m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} for model in (albert, bert)]
    assert dropouts[0] == dropouts[1]
    ids = torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "token_type_ids": ids % 2, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][0, 5:] = 0
    if head == "ForMultipleChoice":
        inputs = {name: value[None] for name, value in inputs.items()}
    with torch.no_grad():
        ours, theirs = albert(**inputs), bert(**inputs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        *((getattr(transformers, f"Bert{head}"), BertConfig(**BERT)) for head in [*HEADS[1:4], "ForMaskedLM"]),
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=24)),
        (ElectraForMaskedLM, ElectraConfig(**BERT, embedding_size=16)),
    ],
)
def test_a_factorised_student_is_nearer_to_the_teacher_than_a_random_one(tmp_path, model_class, config):
    teacher, sample = build(model_class, config), rows(160)
    wanted = torch.cat([x.flatten() for x in outputs(teacher, sample)])

    def error(student):
        return (torch.cat([x.flatten() for x in outputs(student, sample)]) - wanted).square().mean()

    torch.manual_seed(0)
    random = error(create_student(teacher, **SMALL, embedding_size=10, init="random"))
    student = create_student(teacher, **SMALL, embedding_size=10, calibration_dataset=sample)
    assert student.get_input_embeddings().weight.shape == (60, 10)
    assert student.config.hidden_size == 16
    assert student.config.distillation["layers"] == [2, 4]
    assert error(student) < 0.8 * random
    student.save_pretrained(tmp_path)
    again, loading = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    for a, b in zip(outputs(student, sample[:3]), outputs(again, sample[:3]), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("width", [5, 10, 18])
@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForMaskedLM])
def test_the_factors_are_nearly_the_best_of_their_width(model_class, width):
    # two columns of the tables go to the LayerNorm; one position, as the length of a token's sum is that of its row
    config = BertConfig(**BERT)
    teacher, sample = build(model_class, config), rows(200)
    with torch.no_grad():
        teacher.bert.embeddings.position_embeddings.weight.zero_()
        teacher.bert.embeddings.LayerNorm.weight.uniform_(0.5, 2)
    student = create_student(teacher, embedding_size=width, calibration_dataset=sample)
    ids = torch.tensor([row["input_ids"][:4] for row in sample])
    ours, theirs = (states(model, ids) for model in (student, teacher))
    centred = theirs - theirs.mean(0)
    best = centred - centred @ (right := torch.linalg.svd(centred).Vh[: width - 2]).T @ right
    assert (ours - theirs).square().sum() < 1.05 * best.square().sum()


def states(model, ids):
    """What the first layer is given, token by token."""
    with torch.no_grad():
        return model.eval()(ids, output_hidden_states=True).hidden_states[0].flatten(0, 1)


def test_embeddings_as_wide_as_the_layers_need_no_factors():
    teacher = build(BertForSequenceClassification, BertConfig(**BERT))
    student = create_student(teacher, **SMALL, embedding_size=16, calibration_dataset=rows())
    assert type(student) is BertForSequenceClassification


@pytest.mark.parametrize(
    ("model_class", "config", "message"),
    [
        (BertForNextSentencePrediction, BertConfig(**BERT), "BertForNextSentencePrediction has no counterpart"),
        (BertForPreTraining, BertConfig(**BERT), "BertForPreTraining has no counterpart"),
        (RobertaForSequenceClassification, RobertaConfig(**BERT), "RobertaConfig has no embedding_size"),
    ],
)
def test_what_cannot_be_factorised_is_refused(model_class, config, message):
    with pytest.raises(ValueError, match=message):
        create_student(build(model_class, config), embedding_size=8, calibration_dataset=rows())
