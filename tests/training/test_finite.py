"""A value that is not finite stops training before it reaches the student, and the message says which."""

from pathlib import Path

import pytest
import torch
from conftest import bert_config, build, pad, rows
from safetensors.torch import load_file
from short_runs import distil, launch
from transformers import BertForSequenceClassification, TrainerCallback

from hf_tinybert import DistillationLoss, HiddenLoss, PredictionLoss, TaskLoss

NAN = float("nan")
MARK = 49  # a token that only the rows of a later step have


def marked_rows(count=8, row=5):
    """Rows of which one begins with the token `MARK`."""
    data = rows(count)
    ids = [[token if token != MARK else 1 for token in tokens] for tokens in data["input_ids"]]
    ids[row][0] = MARK
    return data.remove_columns("input_ids").add_column("input_ids", ids)


class BreaksAtMark(TrainerCallback):
    """Once training has begun, a part of the teacher returns `value` in batches with the token `MARK`."""

    def __init__(self, teacher, part, value=NAN):
        self.teacher, self.part, self.value = teacher, part, value

    def on_train_begin(self, args, state, control, **kwargs):
        self.teacher.get_input_embeddings().register_forward_pre_hook(self._look)
        self.teacher.get_submodule(self.part).register_forward_hook(self._break)

    def _look(self, module, args):
        self.hit = (args[0] == MARK).any()

    def _break(self, module, args, output):
        return output * self.value if self.hit else output


def is_finite(student):
    return all(value.isfinite().all() for value in student.state_dict().values())


SHORT = {"max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("losses", "path", "named"),
    [
        ([PredictionLoss()], "classifier", "prediction_loss is not finite because logits of the teacher"),
        ([HiddenLoss()], "bert.encoder.layer.1.output", "hidden_loss is not finite because hidden state 2 of the"),
    ],
)
def test_a_teacher_that_fails_in_a_later_batch(tmp_path, student, teacher, losses, path, named, accumulation):
    step = 3 if accumulation == 1 else 2
    options = SHORT | {"callbacks": [BreaksAtMark(teacher, path)]}
    options |= {"max_steps": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    with pytest.raises(ValueError, match=rf"before optimizer step {step}: {named}.*step {step - 1} left them"):
        distil(tmp_path, student, teacher, losses, marked_rows(row=4), **options)
    checkpoint = load_file(tmp_path / f"checkpoint-{step - 1}/model.safetensors")
    assert all(torch.equal(value, checkpoint[name]) for name, value in student.state_dict().items())
    assert is_finite(student)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_batch_runs_again_where_losses_are_read_once_a_step(tmp_path, student, teacher, monkeypatch):
    """On an accelerator a look at each micro-batch would mean waiting for it."""
    monkeypatch.setattr("hf_tinybert.training.finite.is_near", lambda losses: False)
    options = SHORT | {"callbacks": [BreaksAtMark(teacher, "classifier")]}
    with pytest.raises(ValueError, match="step 3: prediction_loss is not finite because logits of the teacher"):
        distil(tmp_path, student, teacher, [PredictionLoss()], marked_rows(row=4), **options)


def test_which_of_several_teachers(tmp_path, student, teacher):
    other = build(BertForSequenceClassification, bert_config(3, 32), 7)
    options = SHORT | {"callbacks": [BreaksAtMark(other, "classifier", float("inf"))]}
    with pytest.raises(ValueError, match="step 3: prediction_loss is not finite because logits of the teacher 2 of 2"):
        distil(tmp_path, student, [teacher, other], [PredictionLoss()], marked_rows(row=4), **options)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_cached_logits(tmp_path, student, teacher, with_teacher):
    logits = teacher(**{name: values for name, values in pad(rows(8)).items() if name != "labels"}).logits.tolist()
    logits[5][1] = NAN
    data = rows(8).add_column("teacher_logits", logits)
    with pytest.raises(ValueError, match="step 3: prediction_loss is not finite because the column teacher_logits"):
        distil(tmp_path, student, teacher if with_teacher else None, [PredictionLoss()], data, **SHORT)


def test_labels(tmp_path):
    models = [build(BertForSequenceClassification, bert_config(2, 16, num_labels=1), seed) for seed in (1, 2)]
    labels = [1.0, 2.0, 3.0, 4.0, NAN, 5.0, 6.0, 7.0]
    data = rows(8).remove_columns("labels").add_column("labels", labels)
    with pytest.raises(ValueError, match="step 3: task_loss is not finite while the teacher's values are finite"):
        distil(tmp_path, *models, [PredictionLoss(), TaskLoss()], data, **SHORT)
    assert is_finite(models[0])


class Root(DistillationLoss):
    """Finite with a gradient that is not, at 0."""

    name = "root"
    reads = frozenset({"logits"})

    def forward(self, student, teacher, layer_mapping):
        return (student.logits.sum(1) * 0).sqrt()


def test_a_gradient_of_a_finite_loss(tmp_path, student, teacher):
    with pytest.raises(ValueError, match=r"step 1: the gradient of '.*' is not finite although every loss is"):
        distil(tmp_path, student, teacher, [Root()])
    assert is_finite(student)


class Scaled(TrainerCallback):
    """Counts the steps that the scaler left out."""

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.skipped = getattr(self, "skipped", 0) + optimizer.step_was_skipped


def test_an_overflow_that_a_loss_scaler_handles(tmp_path, student, teacher, monkeypatch):
    """Accelerate makes a scaler on accelerators alone."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-36)
    monkeypatch.setattr("accelerate.Accelerator.scaler", scaler, raising=False)
    monkeypatch.setattr(
        "accelerate.Accelerator.__setattr__",
        lambda self, name, value: None if name == "scaler" else object.__setattr__(self, name, value),
    )
    callback = Scaled()
    distil(tmp_path, student, teacher, callbacks=[callback], max_steps=3)
    assert callback.skipped == 1
    assert is_finite(student)


@pytest.mark.slow
def test_all_processes_stop(tmp_path):
    launch(Path(__file__).parent / "failing_process.py", 2, "--folder", tmp_path)
    messages = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert all("before optimizer step 2" in message for message in messages)
    assert sum("logits of the teacher" in message for message in messages) == 1
    assert sum("of another process" in message for message in messages) == 1
