"""Rows of a trainer that do not fit are refused before the first step, and what trains today still trains."""

import copy

import pytest
import torch
from conftest import bert_config, build, pad, rows, word_tokenizer
from datasets import Dataset
from head_kinds import KINDS, choices
from short_runs import arguments
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from hf_tinybert import DistillationTrainer, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.models.prediction_heads import prediction_head_of
from hf_tinybert.training.data_checks import check_labels

LABELLED = [PredictionLoss(), TaskLoss()]


def edited(column, value, row=3):
    data = [dict(each) for each in rows(8)]
    data[row][column] = value
    return Dataset.from_list(data)


def labelled(values) -> Dataset:
    return rows(len(values)).remove_columns("labels").add_column("labels", values)


@pytest.fixture
def train(tmp_path, student, teacher):
    padding = DataCollatorWithPadding(word_tokenizer(tmp_path))
    for model in (student, teacher):
        model.register_forward_pre_hook(lambda *_: pytest.fail("a model was run"))

    def run(dataset, losses=None, collator=padding, models=(student, teacher), **changes):
        evaluation = changes.pop("eval_dataset", None)
        trainer = DistillationTrainer(
            models[0],
            arguments(tmp_path, **changes),
            collator,
            dataset,
            evaluation,
            teacher_model=models[1],
            losses=copy.deepcopy(losses),
        )
        trainer.train()

    return run


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (edited("input_ids", None), "Row 3 of train_dataset: 'input_ids' is missing"),
        (edited("input_ids", [60, 5, 5]), "Row 3 of train_dataset: 'input_ids' holds 60"),
        (edited("labels", None), "Row 3 of train_dataset: 'labels' is missing"),
        (labelled(["a"] * 8), "'labels' is of type string"),
        (labelled([{"a": 1}] * 8), "'labels' is of type struct"),
        (Dataset.from_dict({"text": ["a"], "labels": [0]}), r"train_dataset has no column input_ids, only \['text'"),
        ([{"input_ids": [5] * 70, "labels": 0}], "Row 0 of train_dataset: 'input_ids' has 70 tokens"),
        (None, "train_dataset is missing or empty"),
        ([], "train_dataset is missing or empty"),
    ],
)
def test_rows_are_refused_before_a_model_runs(train, dataset, says):
    with pytest.raises(ValueError, match=says):
        train(dataset)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1, 2, 3], "Row 3 .*'labels' is 3, and the student has 3 labels, 0 to 2"),
        ([0, -1, 2, 1], "Row 1 .*'labels' is -1"),
        ([0.0, float("nan"), 1.0, 2.0], "Row 1 .*'labels' is nan"),
        ([0.0, float("inf"), 1.0, 2.0], "Row 1 .*'labels' is inf"),
        ([-100] * 4, "'labels' of train_dataset is -100 everywhere"),
    ],
)
def test_labels_have_to_be_those_of_the_head_if_they_are_read(train, labels, says):
    with pytest.raises(ValueError, match=says):
        train(labelled(labels), LABELLED)
    with pytest.raises(ValueError, match=says.replace("train_dataset", "eval_dataset")):
        train(rows(8), [PredictionLoss()], eval_dataset=labelled(labels), eval_strategy="epoch")
    with pytest.raises(ValueError, match=r"eval_dataset\['b'\]"):
        train(rows(8), eval_dataset={"a": rows(8), "b": labelled(labels)}, eval_strategy="epoch")


def test_labels_that_nobody_reads_may_be_anything(tmp_path, student, teacher):
    for labels in ([-1] * 8, [7] * 8):
        data = labelled(labels)
        trainer = DistillationTrainer(
            copy.deepcopy(student),
            arguments(tmp_path),
            DataCollatorWithPadding(word_tokenizer(tmp_path)),
            data,
            data,
            teacher_model=teacher,
            losses=[HiddenLoss()],
        )
        assert trainer.train().global_step == 1


def test_labels_of_tokens(train, tmp_path, token_student, token_teacher):
    models, collator = (token_student, token_teacher), DataCollatorForTokenClassification(word_tokenizer(tmp_path))
    data = [dict(row) for row in rows(8, token_labels=True)]
    data[5]["labels"] = data[5]["labels"][:-1]
    with pytest.raises(ValueError, match=r"Row 5 of train_dataset: 'labels' has \d+ labels for \d+ tokens"):
        train(Dataset.from_list(data), models=models, collator=collator)
    data[5]["labels"] = [3] * len(data[5]["input_ids"])
    with pytest.raises(ValueError, match=r"Row 5 .*'labels' is 3"):
        train(Dataset.from_list(data), LABELLED, collator, models)


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_every_kind_of_head_pass(name, tmp_path):
    kind, tokenizer = KINDS[name], word_tokenizer(tmp_path)
    model = build(kind.model_class, bert_config(1, 16, **kind.config))
    check_labels(kind.rows(tokenizer), prediction_head_of(model), model.config, "train_dataset", read=True)


def test_a_masked_language_model_without_masks_has_nothing_to_predict():
    model = build(BertForMaskedLM, bert_config(1, 16))
    data = Dataset.from_dict({"input_ids": [[5, 6]], "labels": [[-100, -100]]})
    with pytest.raises(ValueError, match="nothing to predict"):
        check_labels(data, prediction_head_of(model), model.config, "train_dataset", read=True)


def test_faults_of_choices(train):
    models = [build(BertForMultipleChoice, bert_config(layers, 16)) for layers in (1, 2)]
    data = [dict(row) for row in choices(8)]
    data[2]["input_ids"][1][0] = 60
    with pytest.raises(ValueError, match="Row 2 of train_dataset: 'input_ids' holds 60"):
        train(Dataset.from_list(data), models=models)


def test_rows_of_several_lengths_that_nothing_pads(train):
    with pytest.raises(ValueError, match=r"3 to 12 tokens and nothing pads them: pass processing_class"):
        train(rows(16), collator=None)


def test_a_teacher_with_fewer_positions(train, student):
    teacher = build(BertForSequenceClassification, bert_config(4, 32, max_position_embeddings=8), 1)
    with pytest.raises(ValueError, match="more than the 8 positions"):
        train(rows(16), models=(student, teacher))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda batch: {"input_ids": batch["input_ids"] + 50}, "'input_ids' of a batch holds"),
        (lambda batch: {"attention_mask": torch.ones(8, 1, 12, 12)}, "has the shape"),
        (lambda batch: {"token_type_ids": batch["input_ids"] * 0 + 2}, "'token_type_ids' of a batch holds 2"),
        (lambda batch: {name: batch[name].repeat(1, 9) for name in ("input_ids", "attention_mask")}, "64 positions"),
    ],
)
@pytest.mark.parametrize("losses", [None, [PredictionLoss()]], ids=["projections", "step"])
def test_what_a_collator_or_a_stream_makes_is_checked_as_a_batch(train, change, says, losses):
    def collate(features):
        batch = pad(features, to=12)
        return {**batch, **change(batch)}

    with pytest.raises(ValueError, match=says):
        train(rows(8), losses, collate)


def test_streams_are_not_read_ahead(train):
    def collate(features):
        return pad([{**feature, "attention_mask": [1] * 12} for feature in features], to=12)

    stream = edited("input_ids", [60]).to_iterable_dataset()
    with pytest.raises(ValueError, match="'input_ids' of a batch holds 60"):
        train(
            stream,
            [PredictionLoss()],
            lambda features: pad([{**f, "attention_mask": [1] * 12} for f in features], to=12),
        )
