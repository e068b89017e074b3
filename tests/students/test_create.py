"""create_student: configurations, copied and fitted weights, and refusals, on tiny models of every architecture."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_teachers import BERT, DISTILBERT, SMALL, TEACHERS, build, distance, outputs, rows
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ConvBertConfig,
    ConvBertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForMultipleChoice,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hf_tinybert.lineage import Lineage
from hf_tinybert.students import TINYBERT4, check_can_initialise, create_student


@pytest.fixture
def teacher():
    return build(*TEACHERS["bert"])


@pytest.mark.parametrize("name", TEACHERS)
def test_a_compressed_student_has_the_sizes_asked_for_and_is_near_to_its_teacher(name):
    teacher, dataset = build(*TEACHERS[name]), rows(160)
    student = create_student(teacher, **SMALL, calibration_dataset=dataset)
    assert type(student) is type(teacher)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 16)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert [x.shape for x in outputs(student, dataset)] == [x.shape for x in outputs(teacher, dataset)]
    random = create_student(teacher, **SMALL, init="random")
    assert distance(student, teacher, dataset) < 0.8 * distance(random, teacher, dataset)


def test_a_model_without_prediction_head_has_hidden_states_of_the_new_width():
    teacher = build(BertModel, BertConfig(**BERT))
    student = create_student(teacher, **SMALL, calibration_dataset=rows())
    for a, b in zip(outputs(student, rows(5)), outputs(teacher, rows(5)), strict=True):
        assert a.shape == b[..., :16].shape


def test_the_teachers_sizes_without_calibration_data_give_the_teacher_itself(teacher):
    student = create_student(teacher)
    for a, b in zip(outputs(student, rows(5)), outputs(teacher, rows(5)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_layers_are_copied_by_the_mapping_and_all_else_by_name(teacher):
    student = create_student(teacher, num_hidden_layers=2, init="layers", layer_mapping=[1, 4])
    teacher_state = teacher.state_dict()
    for name, value in student.state_dict().items():
        teacher_name = name.replace("encoder.layer.1.", "encoder.layer.3.")
        torch.testing.assert_close(value, teacher_state[teacher_name], rtol=0, atol=0)
    uniform = create_student(teacher, num_hidden_layers=2, init="layers").state_dict()
    name = "bert.encoder.layer.{}.output.dense.weight"
    torch.testing.assert_close(uniform[name.format(0)], teacher_state[name.format(1)], rtol=0, atol=0)


def test_modernbert_layers_keep_their_attention_pattern():
    config = ModernBertConfig(**{**BERT, "num_hidden_layers": 6}, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    teacher = build(ModernBertForSequenceClassification, config)
    student = create_student(teacher, num_hidden_layers=2, init="layers", layer_mapping=[3, 4])
    assert student.config.layer_types == [teacher.config.layer_types[2], teacher.config.layer_types[3]]
    torch.testing.assert_close(student.model.layers[1].mlp.Wi.weight, teacher.model.layers[3].mlp.Wi.weight)


def test_albert_shares_its_layers():
    teacher = build(AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=8))
    student = create_student(teacher, num_hidden_layers=2, init="layers")
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[name], rtol=0, atol=0)
    assert student.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("model_class", "config", "embedding_size"),
    [
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=24), 16),
        (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=8), 8),
        (AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=24), 16),
        (ConvBertModel, ConvBertConfig(**BERT, embedding_size=24), 16),
    ],
)
def test_embeddings_as_wide_as_the_layers_remain_so(model_class, config, embedding_size):
    student = create_student(build(model_class, config), hidden_size=16, init="random")
    assert student.config.embedding_size == embedding_size


def test_labels_and_vocabulary_are_the_teachers(teacher):
    teacher.config.name_or_path = "someone/teacher"
    teacher.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    teacher.config.label2id = {"bad": 0, "fair": 1, "good": 2}
    student = create_student(teacher, hidden_size=16, calibration_dataset=rows())
    assert student.config.id2label == teacher.config.id2label
    assert student.config.label2id == teacher.config.label2id
    assert student.config.vocab_size == teacher.config.vocab_size
    assert student.config.name_or_path == ""


@pytest.mark.parametrize(
    ("arguments", "layers", "calibration_rows"),
    [
        ({"calibration_dataset": rows(20), "batch_size": 8}, [2, 4], 20),
        ({"init": "layers"}, [2, 4], None),
        ({"init": "random"}, None, None),
    ],
)
def test_the_configuration_tells_how_the_student_was_made(teacher, arguments, layers, calibration_rows):
    teacher.config.name_or_path = "some/where/teacher"
    lineage = Lineage.from_config(create_student(teacher, num_hidden_layers=2, **arguments).config)
    assert lineage.teacher.name == "./teacher"
    assert lineage.init == arguments.get("init", "teacher")
    assert (lineage.layers, lineage.calibration_rows) == (layers, calibration_rows)


def test_the_teacher_is_left_untouched(teacher):
    teacher.train()
    teacher.bert.encoder.layer[1].eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    implementation = teacher.config._attn_implementation
    student = create_student(teacher, **SMALL, calibration_dataset=rows())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes
    assert teacher.config._attn_implementation == implementation
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    assert student.training
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}


@pytest.mark.parametrize("name", ["bert-mlm", "distilbert-mlm"])
def test_logits_over_the_vocabulary_are_not_computed(name):
    teacher, decoded_tokens = build(*TEACHERS[name]), []
    teacher.get_output_embeddings().register_forward_hook(
        lambda module, args, output: decoded_tokens.append(output[..., 0].numel())
    )
    create_student(teacher, **SMALL, calibration_dataset=rows(20))
    assert decoded_tokens
    assert not any(decoded_tokens)
    output = teacher(input_ids=torch.tensor([[5, 6, 7]]))
    assert output.logits.shape == (1, 3, 60)


@pytest.mark.parametrize(
    "arguments", [{"init": "layers", "num_hidden_layers": 2}, SMALL | {"calibration_dataset": rows()}]
)
def test_the_global_random_state_plays_no_part(teacher, arguments):
    torch.manual_seed(1)
    first = create_student(teacher, **arguments)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = create_student(teacher, **arguments)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_teacher_that_trainer_left_in_bf16_autocast(teacher, tmp_path):
    args = TrainingArguments(str(tmp_path), bf16=True, use_cpu=True, report_to=[])
    expected = create_student(teacher, **SMALL, calibration_dataset=rows()).state_dict()
    Trainer(teacher, args).predict(Dataset.from_list(rows(1)))
    wrapped = teacher.forward
    student = create_student(teacher, **SMALL, calibration_dataset=rows())
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())
    assert teacher.forward is wrapped


def test_random_follows_the_global_seed(teacher):
    torch.manual_seed(1)
    first = create_student(teacher, hidden_size=16, init="random")
    torch.manual_seed(2)
    second = create_student(teacher, hidden_size=16, init="random")
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_padding_extra_columns_and_the_kind_of_data_set_change_nothing(teacher):
    unpadded = create_student(teacher, **SMALL, calibration_dataset=rows(), batch_size=1)
    dataset = Dataset.from_list([row | {"labels": 1, "text": "x"} for row in rows()])
    padded = create_student(teacher, **SMALL, calibration_dataset=dataset, batch_size=16)
    for a, b in zip(outputs(unpadded, rows(8)), outputs(padded, rows(8)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (BertForSequenceClassification, BertConfig(**BERT, classifier_dropout=0.2)),
        (BertForSequenceClassification, BertConfig(**BERT)),
        (DistilBertForSequenceClassification, DistilBertConfig(**DISTILBERT)),
        (ElectraForMultipleChoice, ElectraConfig(**BERT, embedding_size=16)),
        (ModernBertForSequenceClassification, ModernBertConfig(**BERT, attention_dropout=0.1, pad_token_id=0)),
    ],
)
def test_without_dropout_training_and_evaluation_are_one(model_class, config):
    teacher, ids = build(model_class, config), torch.tensor([row["input_ids"][:4] for row in rows(8)])
    ids = ids[None] if model_class is ElectraForMultipleChoice else ids
    for dropout in (None, 0.0):
        student = create_student(teacher, num_hidden_layers=2, init="layers", dropout=dropout)
        assert student.training
        trained, evaluated = student(ids).logits, student.eval()(ids).logits
        assert torch.equal(trained, evaluated) == (dropout == 0)


def test_a_processing_class_pads(teacher):
    class OtherPadder:
        def pad(self, features, return_tensors):
            length = max(len(row["input_ids"]) for row in features)
            pads = [length - len(row["input_ids"]) for row in features]
            ids = [row["input_ids"] + [59] * pad for row, pad in zip(features, pads, strict=True)]
            mask = [[1] * len(row["input_ids"]) + [0] * pad for row, pad in zip(features, pads, strict=True)]
            return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    first = create_student(teacher, **SMALL, calibration_dataset=rows(), processing_class=OtherPadder())
    second = create_student(teacher, **SMALL, calibration_dataset=rows())
    for a, b in zip(outputs(first, rows(8)), outputs(second, rows(8)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_attention_heads_of_another_size_keep_their_scaled_scores(teacher):
    student = create_student(teacher, num_attention_heads=2, calibration_dataset=rows()).eval()
    ids = torch.tensor([rows(1)[0]["input_ids"]])

    def scores(model):
        attention = model.bert.encoder.layer[0].attention.self
        hidden = model.bert.embeddings(input_ids=ids)
        query, key = (
            x(hidden).unflatten(-1, (model.config.num_attention_heads, -1)).transpose(1, 2)
            for x in (attention.query, attention.key)
        )
        return query @ key.mT * attention.scaling

    errors = (scores(student)[0][:, None] - scores(teacher)[0][None]).abs().amax((-1, -2))  # (2, 4)
    assert (errors.min(1).values < 1e-3).all()


def test_the_language_model_head_starts_where_its_activation_is_linear():
    teacher = build(BertForMaskedLM, BertConfig(**BERT))
    student = create_student(teacher, **SMALL, calibration_dataset=rows()).eval()
    ids = torch.tensor([rows(1)[0]["input_ids"]])
    with torch.no_grad():
        x = student.cls.predictions.transform.dense(student.bert(input_ids=ids).last_hidden_state)
    assert x.min() > 3.9


def test_the_classifier_receives_the_chosen_pooler_units(teacher):
    with torch.no_grad():
        teacher.bert.pooler.dense.bias.copy_(torch.arange(24) / 24)
    # None of three rows is held out, so no penalty is chosen and the projected weights remain.
    student = create_student(teacher, **SMALL, calibration_dataset=rows(3))
    units = (student.bert.pooler.dense.bias * 24).round().long()
    assert len(units.unique()) == 16
    torch.testing.assert_close(student.classifier.weight, teacher.classifier.weight[:, units])


def test_fewer_attention_heads_and_a_half_precision_teacher(teacher):
    student = create_student(
        teacher.to(torch.bfloat16), num_attention_heads=2, hidden_size=16, calibration_dataset=rows()
    )
    assert student.config.num_attention_heads == 2
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert all(x.isfinite().all() for x in outputs(student, rows(4)))


def test_a_saved_student_loads_again(teacher, tmp_path):
    student = create_student(teacher, **SMALL, calibration_dataset=rows())
    student.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    for a, b in zip(outputs(student, rows(3)), outputs(again, rows(3)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "other"}, "'teacher', 'layers', 'random'"),
        ({"hidden_size": 18, "init": "random"}, "num_attention_heads=4"),
        ({"hidden_size": 48, "init": "random"}, "hidden_size=48"),
        ({"intermediate_size": 0, "init": "random"}, "intermediate_size=0"),
        ({"hidden_size": 16, "init": "layers"}, "hidden_size differs"),
        ({"hidden_size": 16}, "pass calibration_dataset"),
        ({"hidden_size": 16, "calibration_dataset": []}, "calibration_dataset holds no tokens"),
        ({"hidden_size": 16, "calibration_dataset": [{"text": "a"}]}, "input_ids"),
        ({"num_hidden_layers": 2, "layer_mapping": [3, 2]}, "increase"),
        ({"num_hidden_layers": 2, "layer_mapping": [(1, 2)], "init": "layers"}, "each of the 2"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"embedding_size": 2}, "embedding_size=2 must lie between 3"),
        ({"embedding_size": 20, "hidden_size": 16}, "embedding_size=20 must lie"),
    ],
)
def test_bad_input_is_refused_by_name(teacher, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_student(teacher, **arguments)


def test_a_teacher_with_nan_is_refused(teacher):
    with torch.no_grad():
        teacher.classifier.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        create_student(teacher, num_hidden_layers=2)


@pytest.mark.parametrize(
    "config",
    [
        AlbertConfig(**BERT, embedding_size=8),
        ModernBertConfig(**BERT, pad_token_id=0),
        BertConfig(**BERT, is_decoder=True),
    ],
)
def test_a_teacher_that_cannot_initialise_students_is_refused_with_the_names_of_those_that_can(config):
    with pytest.raises(ValueError, match=r"distilbert.*init='layers'"):
        check_can_initialise(config, [2, 4])


def test_an_unsupported_teacher_is_refused_before_anything_is_computed(teacher):
    teacher = build(ModernBertForSequenceClassification, ModernBertConfig(**BERT, pad_token_id=0))
    before = copy.deepcopy(teacher.config.to_dict())
    with pytest.raises(ValueError, match=r"not this modernbert"):
        create_student(teacher, hidden_size=16, calibration_dataset=rows())
    assert teacher.config.to_dict() == before


def test_tinybert4_has_the_sizes_of_the_paper():
    config = BertConfig(vocab_size=60)
    student = create_student(build(BertForSequenceClassification, config), **TINYBERT4, init="random")
    # 4 layers of 312/1200 (table 1 of the paper gives 14.5M with the full vocabulary of 30,522).
    assert sum(parameter.numel() for parameter in student.bert.parameters()) + (30522 - 60) * 312 == pytest.approx(
        14.35e6, rel=0.01
    )
