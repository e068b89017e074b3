"""What must hold for every loss: neither padding, nor the split of a batch, nor the attention backend changes it."""

import copy
from functools import partial

import pytest
import torch
from conftest import pad, rows
from training import assert_same_run, distil

import hf_tinybert.losses
from hf_tinybert import DistillationLoss

LOSSES = [
    loss
    for loss in map(partial(getattr, hf_tinybert.losses), hf_tinybert.losses.__all__)
    if isinstance(loss, type) and issubclass(loss, DistillationLoss) and loss is not DistillationLoss
]


def all_losses():
    return [loss(weight=0.5 + i) for i, loss in enumerate(LOSSES)]


@pytest.fixture(params=[*LOSSES, all_losses], ids=lambda loss: loss.__name__)
def make_losses(request):
    return all_losses if request.param is all_losses else lambda: [request.param(weight=0.7)]


@pytest.fixture(params=["sequence", "token"])
def run(request, make_losses, tmp_path, student, teacher, token_student, token_teacher):
    """Trains copies of the same student on the same 8 rows."""
    tokens = request.param == "token"
    models = (token_student, token_teacher) if tokens else (student, teacher)
    data = rows(8, token_labels=tokens)

    def train(prepare=lambda student, teacher: None, **changes):
        pair = copy.deepcopy(models)
        prepare(*pair)
        return distil(tmp_path, *pair, make_losses(), data, **changes)

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
        "TaskLoss",
    }


def test_more_padding(run):
    assert_same_run(run(data_collator=partial(pad, to=31)), run())


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 4), (4, 2), (1, 8), (3, 3)])
def test_gradient_accumulation(run, batch, accumulation):
    split = run(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert_same_run(split, run())


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
