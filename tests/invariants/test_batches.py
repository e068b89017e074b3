"""What must hold for every loss: neither padding, nor the split of a batch, nor the attention backend changes it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from conftest import bert_config, build, pad, rows
from datasets import Dataset
from short_runs import assert_same_run, distil
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import hf_tinybert.losses
from hf_tinybert import DistillationLoss, HiddenLoss, PredictionLoss

LOSSES = [
    loss
    for loss in map(partial(getattr, hf_tinybert.losses), hf_tinybert.losses.__all__)
    if isinstance(loss, type) and issubclass(loss, DistillationLoss) and loss is not DistillationLoss
]


def all_losses():
    return [loss(weight=0.5 + i) for i, loss in enumerate(LOSSES)]


def span_rows() -> Dataset:
    data = rows(8).remove_columns("labels")
    lengths = [len(ids) for ids in data["input_ids"]]
    data = data.add_column("start_positions", [index % length for index, length in enumerate(lengths)])
    return data.add_column("end_positions", [length - 1 for length in lengths])


def masked_rows() -> Dataset:
    """Every third token is to be predicted, from another offset in each row; in the shortest ones none."""

    def mask(row, index):
        ids = row["input_ids"]
        return {"labels": [token if (i + index) % 3 == 2 else -100 for i, token in enumerate(ids)]}

    return rows(8).map(mask, with_indices=True)


def multi_label_rows() -> Dataset:
    labels = [[float(label == c or c == 2) for c in range(3)] for label in rows(8)["labels"]]
    return rows(8).remove_columns("labels").add_column("labels", labels)


def choice_rows() -> Dataset:
    """Three choices of unequal length a row."""
    choices = rows(24)
    nested = {name: [choices[name][i : i + 3] for i in range(0, 24, 3)] for name in ("input_ids", "attention_mask")}
    return Dataset.from_dict(nested | {"labels": rows(8)["labels"]})


def stack_labels(features, to=None):
    batch = pad([{name: row[name] for name in row if name != "labels"} for row in features], to)
    return batch | {"labels": torch.tensor([row["labels"] for row in features])}


def pad_choices(features, to=None):
    names = ("input_ids", "attention_mask")
    flat = [{name: row[name][i] for name in names} for row in features for i in range(3)]
    batch = {name: values.view(len(features), 3, -1) for name, values in pad(flat, to).items()}
    return batch | {"labels": torch.tensor([row["labels"] for row in features])}


@dataclass(frozen=True)
class Head:
    """A kind of head: its class, rows for it, what collates them, changes of its config."""

    model_class: type
    data: Callable[[], Dataset]
    collate: Callable = pad
    config: Mapping = field(default_factory=dict)


SPAN = {"id2label": {0: "start", 1: "end"}, "label2id": {"start": 0, "end": 1}}
HEADS = {
    "sequence": Head(BertForSequenceClassification, partial(rows, 8)),
    "token": Head(BertForTokenClassification, partial(rows, 8, token_labels=True)),
    "span": Head(BertForQuestionAnswering, span_rows, config=SPAN),
    "multi_label": Head(
        BertForSequenceClassification, multi_label_rows, stack_labels, {"problem_type": "multi_label_classification"}
    ),
    "choice": Head(BertForMultipleChoice, choice_rows, pad_choices),
    "masked_lm": Head(BertForMaskedLM, masked_rows),
}
# losses on layers are the same under every head, but that an encoder has to be given choices one by one
PRODUCT = [(head, loss) for head in ("sequence", "token") for loss in LOSSES]
PRODUCT += [(head, PredictionLoss) for head in [*HEADS][2:]] + [("choice", HiddenLoss)]
PRODUCT += [(head, all_losses) for head in HEADS]
SPAN_LABELS = ("span", all_losses)  # transformers' label loss of spans is a softmax over padding too


@pytest.fixture(params=PRODUCT, ids=lambda pair: f"{pair[0]}-{pair[1].__name__}")
def head_and_loss(request):
    return request.param


@pytest.fixture
def make_losses(head_and_loss):
    _, loss = head_and_loss
    return all_losses if loss is all_losses else lambda: [loss(weight=0.7)]


@pytest.fixture
def run(head_and_loss, make_losses, tmp_path):
    """Trains copies of the same student on the same 8 rows."""
    head = HEADS[head_and_loss[0]]
    student = build(head.model_class, bert_config(2, 16, **head.config), 2)
    teacher = build(head.model_class, bert_config(4, 32, **head.config), 1)

    def train(prepare=lambda student, teacher: None, to=None, **changes):
        pair = copy.deepcopy((student, teacher))
        prepare(*pair)
        collate = partial(head.collate, to=to)
        return distil(tmp_path, *pair, make_losses(), head.data(), data_collator=collate, **changes)

    return train


def test_every_loss_is_here():
    assert {loss.__name__ for loss in LOSSES} == {
        "AttentionKLLoss",
        "AttentionLoss",
        "CosineLoss",
        "EmbeddingLoss",
        "HiddenLoss",
        "MiniLMLoss",
        "PatienceLoss",
        "PredictionLoss",
        "RelationLoss",
        "SentenceLoss",
        "TaskLoss",
    }


def test_more_padding(run, head_and_loss):
    if head_and_loss == SPAN_LABELS:
        pytest.skip("the label loss is transformers' own, which padding changes")
    assert_same_run(run(to=31), run())


def test_no_padding_in_the_layers(run, head_and_loss):
    if head_and_loss == SPAN_LABELS:
        pytest.skip("the label loss is transformers' own, which padding changes")
    assert_same_run(run(padding_free=True), run())


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 4), (4, 2), (1, 8), (3, 3)])
def test_gradient_accumulation(run, head_and_loss, batch, accumulation):
    to = 12 if head_and_loss == SPAN_LABELS else None
    split = run(to=to, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert_same_run(split, run(to=to))


def test_gradient_accumulation_without_labels(tmp_path, student, teacher):
    data, runs = rows(8).remove_columns("labels"), []
    for changes in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        runs.append(distil(tmp_path, copy.deepcopy(student), teacher, train_dataset=data, **changes))
    assert_same_run(*runs)


def test_sdpa_against_eager(run):
    def eager(student, teacher):
        student.set_attn_implementation("eager")
        teacher.set_attn_implementation("eager")

    assert_same_run(run(eager), run())


def test_activation_checkpointing(run):
    assert_same_run(run(activation_checkpointing=True), run())


def test_bfloat16_is_close(run):
    result, expected = run(bf16=True), run()
    assert result[1][0]["loss"] == pytest.approx(expected[1][0]["loss"], rel=0.03)
    gradient, want = (torch.cat([g.flatten() for g in steps[0].values()]) for _, _, steps in (result, expected))
    assert torch.nn.functional.cosine_similarity(gradient, want, 0) > 0.99


def test_the_weighted_components_add_up(run, make_losses):
    _, (log,), _ = run()
    assert log["loss"] == pytest.approx(
        sum(loss.weight * log[f"{loss.name}_loss"] for loss in make_losses()), rel=1e-5
    )
