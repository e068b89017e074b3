"""Which students are pushed: those that reach the quality threshold, measured on the teacher."""

# ruff: noqa: F401, F811 (pytest finds the fixtures of pushing.py by their names)

import copy
import errno
import os

import numpy as np
import pytest
import torch
from conftest import rows
from pushing import STEPS, PushByPush, logits, make_trainer, messages
from transformers import AutoModelForSequenceClassification

from hf_tinybert.training.quality_threshold import measure_threshold
from hf_tinybert.whole_files import DiskError


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def make_threshold_trainer(make_trainer, teacher):
    """A function that builds trainers with a quality threshold; the teacher is always right on the evaluation rows."""
    data = rows(32, seed=1)
    labels = logits(teacher, data).argmax(-1).tolist()
    data = data.remove_columns("labels").add_column("labels", labels)

    def make_threshold_trainer(trainer_arguments=None, **changes):
        evaluation = {"eval_dataset": data, "compute_metrics": accuracy}
        threshold = {"metric_for_best_model": "accuracy", "push_to_hub_min_retained": 0.9}
        return make_trainer(trainer_arguments=evaluation | (trainer_arguments or {}), **threshold | changes)

    return make_threshold_trainer


@pytest.mark.parametrize("metric", ["eval_accuracy", "loss"])
def test_a_student_below_the_threshold_stays_on_disk(hub, make_threshold_trainer, student, teacher, tmp_path, metric):
    trainer = make_threshold_trainer(metric_for_best_model=metric)
    data, labels = trainer.eval_dataset, torch.tensor(trainer.eval_dataset["labels"])
    name = metric.removeprefix("eval_")
    scores = []
    for model in (student, teacher):
        predicted = logits(model, data)
        loss = torch.nn.functional.cross_entropy(predicted, labels).item()
        scores.append(loss if name == "loss" else (predicted.argmax(-1) == labels).float().mean().item())
    share = scores[1] / scores[0] if name == "loss" else scores[0] / scores[1]
    with pytest.raises(ValueError, match="It is not pushed") as raised:
        trainer.push_to_hub()
    assert str(raised.value) == (
        f"The student's eval_{name} is {scores[0]:.4g} and the teacher's {scores[1]:.4g}: {share:.1%} retained, under "
        f"push_to_hub_min_retained=0.9. It is not pushed; it is in {tmp_path / 'out'}."
    )
    assert hub.model("user/out").messages == ["initial commit"]
    assert hub.count("POST", "/repos/create") == 1
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(saved), logits(student), rtol=0, atol=0)
    make_threshold_trainer(metric_for_best_model=metric, push_to_hub_min_retained=share - 1e-3).push_to_hub()
    assert hub.model("user/out").messages[-1] == "End of training"


def test_pushes_begin_when_the_newest_evaluation_reaches_the_threshold(hub, make_threshold_trainer, messages):
    scores = iter([0.8, 0.5, 0.71, 0.73, 0.73])  # teacher, three evaluations, the one before the last push
    trainer = make_threshold_trainer(
        {"compute_metrics": lambda prediction: {"accuracy": next(scores)}},
        eval_strategy="steps",
        eval_steps=1,
        hub_strategy="every_save",
        **{**STEPS, "max_steps": 3},
    )
    trainer.add_callback(PushByPush(trainer))
    trainer.train()
    skipped = [message for message in messages("INFO") if message.endswith("This checkpoint is not pushed.")]
    assert len(skipped) == 2
    assert skipped[0].startswith("The student's eval_accuracy is 0.5 and the teacher's 0.8: 62.5% retained")
    assert hub.model("user/out").messages == ["initial commit", "Training in progress, step 3"]
    trainer.push_to_hub()
    assert hub.model("user/out").messages[-1] == "End of training"


def test_no_checkpoint_is_pushed_before_the_first_evaluation(hub, make_threshold_trainer, messages):
    trainer = make_threshold_trainer(hub_strategy="every_save", **STEPS)
    trainer.train()
    assert messages("INFO").count("There is no eval_accuracy yet. This checkpoint is not pushed.") == 2
    assert hub.model("user/out").messages == ["initial commit"]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_threshold_is_measured_on_the_best_of_several_teachers(make_threshold_trainer, teacher, metric):
    worse = copy.deepcopy(teacher)
    with torch.no_grad():
        worse.classifier.weight.zero_()  # the same answer for every row
    trainer = make_threshold_trainer(push_to_hub=False, metric_for_best_model=metric)
    alone, below = (measure_threshold(trainer, [model]).teacher_score for model in (teacher, worse))
    assert (alone > below) == (metric == "accuracy")
    for teachers in ([teacher, worse], [worse, teacher]):
        assert measure_threshold(trainer, teachers).teacher_score == pytest.approx(alone)


def test_measuring_the_teacher_changes_nothing_else(hub, make_threshold_trainer, teacher, student):
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    before, trained = logits(teacher), []
    for share in (None, 0.9):
        models = {"model": copy.deepcopy(student), "teacher_model": copy.deepcopy(teacher)}
        trainer = make_threshold_trainer(models, push_to_hub_min_retained=share, push_to_hub=False, bf16=True)
        torch.testing.assert_close(logits(models["teacher_model"]), before, rtol=0, atol=0)  # without autocast
        trainer.train()
        trained.append(trainer.model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert not all(torch.equal(trained[0][name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("trainer_arguments", "changes", "message"),
    [
        ({"teacher_model": None}, {}, "pass teacher_model too"),
        ({"eval_dataset": None}, {}, "pass eval_dataset too"),
        ({"compute_metrics": None}, {}, "pass compute_metrics too"),
        ({}, {"metric_for_best_model": None}, "needs metric_for_best_model"),
        ({}, {"metric_for_best_model": "f1"}, "'f1' is None for the teacher.*teacher_accuracy"),
        ({"compute_metrics": lambda prediction: {"accuracy": 0.0}}, {}, "is 0.0 for the teacher"),
        ({}, {"push_to_hub_min_retained": 0.0}, "above 0, e.g. 0.95"),
    ],
)
def test_a_threshold_that_cannot_be_measured_is_refused(
    hub, make_threshold_trainer, trainer_arguments, changes, message
):
    with pytest.raises(ValueError, match=message):
        make_threshold_trainer(trainer_arguments, **changes)


def test_a_score_that_is_no_number_does_not_reach_the_threshold(hub, make_threshold_trainer):
    scores = iter([0.8, np.nan])
    trainer = make_threshold_trainer({"compute_metrics": lambda prediction: {"accuracy": next(scores)}})
    with pytest.raises(ValueError, match="nan"):
        trainer.push_to_hub()


def test_a_disk_without_room_for_a_push_does_not_stop_training(hub, make_trainer, messages, monkeypatch, tmp_path):
    """Trainer copies the files of a checkpoint before it pushes them."""
    monkeypatch.setattr("shutil.copy", full_disk)
    trainer = make_trainer(hub_strategy="every_save", **STEPS)
    trainer.train()
    warnings = [message for message in messages() if message.startswith("This checkpoint is not pushed. Cannot write")]
    assert len(warnings) == 2
    assert f"{tmp_path / 'out'}: the disk is full. Free space there" in warnings[0]
    assert warnings[0].endswith("Training goes on.")
    trainer.push_to_hub()
    assert hub.model("user/out").messages == ["initial commit", "End of training"]


def test_a_disk_without_room_for_the_student(hub, make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.model), "save_pretrained", full_disk)
    with pytest.raises(
        DiskError, match=rf"^Cannot write to {tmp_path / 'out'}: the disk is full\. .*is not saved yet"
    ):
        trainer.push_to_hub()
    assert hub.model("user/out").messages == ["initial commit"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
