"""create_student: configs, copies, cuts and refusals, on tiny models of every architecture it knows."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from hf_tinybert.students import TINYBERT4, create_student

SIZES = {"vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.2}
BERT = SIZES | {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
ROBERTA = BERT | {"pad_token_id": 1}
DISTILBERT = SIZES | {"dim": 24, "n_layers": 4, "n_heads": 4, "hidden_dim": 48}
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 40}

REDUCIBLE = [
    (BertModel, BertConfig(**BERT)),
    (BertForSequenceClassification, BertConfig(**BERT, num_labels=3)),
    (BertForTokenClassification, BertConfig(**BERT, num_labels=3)),
    (BertForQuestionAnswering, BertConfig(**BERT)),
    (BertForMultipleChoice, BertConfig(**BERT)),
    (BertForMaskedLM, BertConfig(**BERT)),
    (BertForMaskedLM, BertConfig(**BERT, tie_word_embeddings=False)),
    (BertForPreTraining, BertConfig(**BERT)),
    (RobertaForSequenceClassification, RobertaConfig(**ROBERTA)),
    (RobertaForMaskedLM, RobertaConfig(**ROBERTA)),
    (XLMRobertaForTokenClassification, XLMRobertaConfig(**ROBERTA)),
    (CamembertForMaskedLM, CamembertConfig(**ROBERTA)),
    (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=24)),
    (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=10)),
    (ElectraForMaskedLM, ElectraConfig(**BERT, embedding_size=16)),
    (DistilBertForSequenceClassification, DistilBertConfig(**DISTILBERT)),
    (DistilBertForMaskedLM, DistilBertConfig(**DISTILBERT)),
    (AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=10, num_hidden_groups=4)),
    (AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=24, num_hidden_groups=4)),
]


def build(model_class, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(copy.deepcopy(config)).eval()


def rows(count=96, seed=0, column="input_ids"):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
    return [{column: torch.randint(5, 60, (length,), generator=generator).tolist()} for length in lengths]


def outputs(model, sample):
    with torch.no_grad():
        rank = 2 if isinstance(model, BertForMultipleChoice) else 1
        one = lambda row: torch.tensor(row["input_ids"])[(None,) * rank]  # noqa: E731
        return [model.eval()(input_ids=one(row))[0] for row in sample]


@pytest.fixture
def teacher():
    return build(BertForSequenceClassification, BertConfig(**BERT, num_labels=3))


@pytest.mark.parametrize(("model_class", "config"), REDUCIBLE, ids=lambda value: getattr(value, "__name__", ""))
def test_every_architecture_and_head_is_cut_to_the_sizes_asked_for(model_class, config):
    teacher = build(model_class, config)
    student = create_student(teacher, **SMALL, calibration_dataset=rows())
    assert type(student) is model_class
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 16)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    result = outputs(student, rows(4))
    # Heads keep their shape; a bare model returns hidden states of the new width.
    expected = [x[..., :16] if model_class is BertModel else x for x in outputs(teacher, rows(4))]
    assert [x.shape for x in result] == [x.shape for x in expected]


@pytest.mark.parametrize(("model_class", "config"), REDUCIBLE[1:], ids=lambda value: getattr(value, "__name__", ""))
def test_a_cut_student_is_nearer_to_the_teacher_than_a_random_one(model_class, config):
    teacher = build(model_class, config)
    sample = rows(160)
    wanted = torch.cat([x.flatten() for x in outputs(teacher, sample)])

    def error(student):
        return (torch.cat([x.flatten() for x in outputs(student, sample)]) - wanted).square().mean()

    random = error(create_student(teacher, **SMALL, init="random"))
    assert error(create_student(teacher, **SMALL, calibration_dataset=sample)) < 0.8 * random


def test_same_sizes_and_no_sample_is_the_teacher_itself(teacher):
    student = create_student(teacher)
    for a, b in zip(outputs(student, rows(5)), outputs(teacher, rows(5)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(("model_class", "config"), REDUCIBLE[1:], ids=lambda value: getattr(value, "__name__", ""))
def test_same_sizes_with_a_sample_keeps_the_function(model_class, config):
    # Every least-squares target is met by the copied weights: refitting must not lose them.
    teacher = build(model_class, config)
    student = create_student(teacher, calibration_dataset=rows())
    for a, b in zip(outputs(student, rows(5, seed=9)), outputs(teacher, rows(5, seed=9)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


def test_layers_are_copied_by_the_mapping_and_all_else_by_name(teacher):
    student = create_student(teacher, num_hidden_layers=2, init="layers", layer_mapping=[1, 4])
    theirs, ours = teacher.state_dict(), student.state_dict()
    for name, value in ours.items():
        old = name.replace("encoder.layer.1.", "encoder.layer.3.")
        torch.testing.assert_close(value, theirs[old], rtol=0, atol=0)
    default = create_student(teacher, num_hidden_layers=2, init="layers").state_dict()
    name = "bert.encoder.layer.{}.output.dense.weight"
    torch.testing.assert_close(default[name.format(0)], theirs[name.format(1)], rtol=0, atol=0)


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
    assert create_student(teacher, hidden_size=16, init="random").config.embedding_size == 8


def test_labels_and_vocabulary_are_the_teachers(teacher):
    teacher.config._name_or_path = "someone/teacher"
    teacher.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    teacher.config.label2id = {"bad": 0, "fair": 1, "good": 2}
    student = create_student(teacher, hidden_size=16, calibration_dataset=rows())
    assert student.config.id2label == teacher.config.id2label
    assert student.config.label2id == teacher.config.label2id
    assert student.config.vocab_size == teacher.config.vocab_size
    assert student.config._name_or_path == ""


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
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in teacher.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    assert student.training
    shared = {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert not shared


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


def test_padding_extra_columns_and_the_kind_of_sample_change_nothing(teacher):
    plain = create_student(teacher, **SMALL, calibration_dataset=rows(), batch_size=1)
    dataset = Dataset.from_list([row | {"labels": 1, "text": "x"} for row in rows()])
    batched = create_student(teacher, **SMALL, sample=dataset, batch_size=16)
    for a, b in zip(outputs(plain, rows(8)), outputs(batched, rows(8)), strict=True):
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

    one = create_student(teacher, **SMALL, calibration_dataset=rows(), processing_class=OtherPadder())
    two = create_student(teacher, **SMALL, calibration_dataset=rows())
    for a, b in zip(outputs(one, rows(8)), outputs(two, rows(8)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_heads_of_another_size_keep_their_scaled_scores(teacher):
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

    ours, theirs = scores(student)[0], scores(teacher)[0]
    errors = (ours[:, None] - theirs[None]).abs().amax((-1, -2))  # [2, 4], of each head from each of the teacher's
    assert (errors.min(1).values < 1e-3).all()


def test_the_language_head_starts_where_its_activation_is_linear():
    teacher = build(BertForMaskedLM, BertConfig(**BERT))
    student = create_student(teacher, **SMALL, calibration_dataset=rows()).eval()
    ids = torch.tensor([rows(1)[0]["input_ids"]])
    with torch.no_grad():
        x = student.cls.predictions.transform.dense(student.bert(input_ids=ids).last_hidden_state)
    assert x.min() > 3.9


def test_the_classifier_reads_the_pooler_units_that_are_kept(teacher):
    with torch.no_grad():
        teacher.bert.pooler.dense.bias.copy_(torch.arange(24) / 24)
    # Three rows leave none to check a penalty with: the projected weights stay.
    student = create_student(teacher, **SMALL, calibration_dataset=rows(3))
    units = (student.bert.pooler.dense.bias * 24).round().long()
    assert len(units.unique()) == 16
    torch.testing.assert_close(student.classifier.weight, teacher.classifier.weight[:, units])


def test_fewer_heads_and_a_half_precision_teacher(teacher):
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
        ({"num_hidden_layers": 5, "init": "layers"}, "num_hidden_layers=5"),
        ({"hidden_size": 48, "init": "random"}, "hidden_size=48"),
        ({"intermediate_size": 0, "init": "random"}, "intermediate_size=0"),
        ({"num_attention_heads": 8}, "num_attention_heads=8"),
        ({"hidden_size": 16, "init": "layers"}, "hidden_size differs"),
        ({"hidden_size": 16}, "pass calibration_dataset="),
        ({"hidden_size": 16, "calibration_dataset": []}, "calibration_dataset holds no tokens"),
        ({"hidden_size": 16, "calibration_dataset": [{"text": "a"}]}, "input_ids"),
        ({"num_hidden_layers": 2, "layer_mapping": [3, 2]}, "increase"),
        ({"embedding_size": 25}, "embedding_size=25"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"embedding_size": 2}, "embedding_size=2 must lie between 3"),
        ({"embedding_size": 20, "hidden_size": 16}, "embedding_size=20 must lie"),
        ({"embedding_size": 8, "init": "layers"}, "embedding_size differs"),
        ({"embedding_size": 8}, "another embedding_size"),
        ({"num_hidden_layers": 2, "layer_mapping": [(1, 2)], "init": "layers"}, "each of the 2"),
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


def test_an_architecture_that_cannot_be_cut_names_those_that_can():
    teacher = build(AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=8))
    with pytest.raises(ValueError, match=r"distilbert.*init='layers'"):
        create_student(teacher, hidden_size=16, calibration_dataset=rows())


def test_tinybert4_has_the_sizes_of_the_paper():
    config = BertConfig(vocab_size=60)
    student = create_student(build(BertForSequenceClassification, config), **TINYBERT4, init="random")
    # 4 layers of 312/1200 (table 1 of the paper gives 14.5M with the full vocabulary of 30,522).
    assert sum(parameter.numel() for parameter in student.bert.parameters()) + (30522 - 60) * 312 == pytest.approx(
        14.35e6, rel=0.01
    )
