"""What must hold for every loss: neither padding, nor the split of a batch, nor the attention backend changes it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from conftest import bert_config, build, needs_accelerator, pad, rows
from datasets import Dataset
from short_runs import assert_same_run, distil
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from hf_tinybert.losses import DistillationLoss, HiddenLoss, PredictionLoss
from hf_tinybert.models.families import subclasses

LOSSES = [loss for loss in subclasses(DistillationLoss) if loss.__module__.startswith("hf_tinybert.")]
LOSSES = [loss for loss in LOSSES if hasattr(loss, "name")]


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
SEQUENCE_LOSSES = {
    "scores": [loss for loss in LOSSES if loss.reads == {"attentions"}],
    "values": [loss for loss in LOSSES if "values" in loss.reads],
    "states": [loss for loss in LOSSES if "hidden_states" in loss.reads],
    "logits": [loss for loss in LOSSES if loss.reads == {"logits"}],
    "labels": [loss for loss in LOSSES if loss.reads == {"loss"}],
}
# Losses that read the same are run together, so that nothing else is captured than what they read. Every other
# kind of head is run with all losses. Padding changes transformers' own label loss of spans.
CASES = [("sequence", losses) for losses in SEQUENCE_LOSSES]
CASES += [(head, "all") for head in HEADS if head != "sequence"] + [("span", "logits")]


class Case:
    """Trains copies of the same student on the same 8 rows, one step unless told otherwise.

    The weights make all losses pull equally hard at the student, so that none hides a fault of another.
    """

    def __init__(self, head: str, losses: str, folder):
        self.head, self.folder = HEADS[head], folder
        self.losses = SEQUENCE_LOSSES.get(losses, LOSSES)
        self.padding_counts = head == "span" and losses == "all"
        self.length = 12 if self.padding_counts else None
        self.student = build(self.head.model_class, bert_config(2, 16, **self.head.config), 2)
        self.teacher = build(self.head.model_class, bert_config(4, 32, **self.head.config), 1)
        self.weights = [1.0] * len(self.losses)
        if len(self.losses) > 1:
            (log,) = self.run(balance_losses=True)[1]
            self.weights = [log[f"{loss.name}_weight"] for loss in self.losses]
        self.expected = self.run()

    def run(self, prepare=lambda student, teacher: None, to=None, **changes):
        """Train; `prepare` changes the models before, `to` is the length that rows are padded to."""
        student, teacher = copy.deepcopy((self.student, self.teacher))
        prepare(student, teacher)
        losses = [loss(weight) for loss, weight in zip(self.losses, self.weights, strict=True)]
        collate = partial(self.head.collate, to=to or self.length)
        return distil(self.folder, student, teacher, losses, self.head.data(), data_collator=collate, **changes)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    return Case(*request.param, tmp_path_factory.mktemp("run"))


def test_every_loss_is_run_with_those_that_read_the_same():
    assert sorted(loss.name for losses in SEQUENCE_LOSSES.values() for loss in losses) == sorted(
        loss.name for loss in LOSSES
    )
    assert {HiddenLoss, PredictionLoss} < {*LOSSES}


def test_more_padding(case):
    if case.padding_counts:
        pytest.skip("padding changes transformers' own label loss of spans")
    assert_same_run(case.run(to=31), case.expected)


def test_no_padding_in_the_layers(case):
    if case.padding_counts:
        pytest.skip("padding changes transformers' own label loss of spans")
    assert_same_run(case.run(padding_free=True), case.expected)


@pytest.mark.parametrize(("batch", "accumulation"), [(3, 3), (1, 8)])
def test_gradient_accumulation(case, batch, accumulation):
    """Into micro-batches of unequal numbers of rows, and of single rows, which need no padding."""
    split = case.run(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert_same_run(split, case.expected)


def test_gradient_accumulation_without_labels(tmp_path, student, teacher):
    data, runs = rows(8).remove_columns("labels"), []
    for changes in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        runs.append(distil(tmp_path, copy.deepcopy(student), teacher, train_dataset=data, **changes))
    assert_same_run(*runs)


def test_sdpa_against_eager(case):
    def eager(student, teacher):
        student.set_attn_implementation("eager")
        teacher.set_attn_implementation("eager")

    assert_same_run(case.run(eager), case.expected)


def test_activation_checkpointing(case):
    assert_same_run(case.run(activation_checkpointing=True), case.expected)


@needs_accelerator
@pytest.mark.parametrize("padding_free", [False, True])
def test_accelerator_against_cpu(case, padding_free):
    if case.padding_counts and padding_free:
        pytest.skip("padding changes transformers' own label loss of spans")
    assert_same_run(case.run(use_cpu=False, padding_free=padding_free), case.expected, rtol=1e-3, atol=1e-5)


def test_bfloat16_is_close(case):
    _, (log,), (gradients,) = case.run(bf16=True)
    _, (expected_log,), (expected_gradients,) = case.expected
    assert log["loss"] == pytest.approx(expected_log["loss"], rel=0.03)
    gradient, expected = (torch.cat([g.flatten() for g in all_.values()]) for all_ in (gradients, expected_gradients))
    assert torch.nn.functional.cosine_similarity(gradient, expected, 0) > 0.99


def test_the_weighted_components_add_up(case):
    _, (log,), _ = case.expected
    components = [log[f"{loss.name}_loss"] for loss in case.losses]
    weighted = [weight * component for weight, component in zip(case.weights, components, strict=True)]
    assert log["loss"] == pytest.approx(sum(weighted), rel=1e-5)
