"""A checkpoint of another training is refused before anything is trained, and one of the same training is not."""

import copy
import shutil

import pytest
import torch
from conftest import bert_config, build, pad, rows
from short_runs import arguments
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_tinybert import DistillationTrainer, PredictionLoss, TaskLoss

SAVED = {"save_strategy": "steps", "save_steps": 1}
PHASES = {
    "intermediate": {"loss_type": ["attention", "hidden"]},
    "prediction": {"loss_type": ["prediction"]},
    "plain": None,
}


def trainer_of(folder, student, teacher, changes, **options):
    args = arguments(folder, **SAVED | {"max_steps": 2} | (changes or {}))
    return DistillationTrainer(
        student, args, pad, rows(8), teacher_model=None if changes is None else teacher, **options
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, _models):
    """A folder of checkpoints for each phase, of copies of the same student."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, changes in PHASES.items():
        trainer_of(folder / name, *map(copy.deepcopy, (_models["student"], _models["teacher"])), changes).train()
    return folder


def test_phases_refuse_the_checkpoints_of_each_other(checkpoints, student, teacher):
    messages = {
        ("intermediate", "prediction"): r"losses \['attention', 'hidden'\], and this one has \['prediction'\]",
        ("prediction", "intermediate"): r"losses \['prediction'\], and this one has \['attention', 'hidden'\]",
        ("plain", "prediction"): r"without distillation, and this one has the losses \['prediction'\]",
        ("plain", "intermediate"): "without distillation",
        ("intermediate", "plain"): r"a distillation on the losses \['attention', 'hidden'\], and this training has",
        ("prediction", "plain"): "a distillation on the losses",
    }
    for (written, resumed), message in messages.items():
        model = copy.deepcopy(student)
        files = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
        # with the output_dir of the other phase, as a script would that forgot to change it
        trainer = trainer_of(checkpoints / written, model, teacher, PHASES[resumed])
        for checkpoint in (True, str(checkpoints / written / "checkpoint-1")):
            with pytest.raises(ValueError, match=message):
                trainer.train(resume_from_checkpoint=checkpoint)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), student.parameters(), strict=True))
        assert getattr(model.config, "distillation", None) is None
        assert files == {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_phase_after_another_one_in_the_same_process(tmp_path, student, teacher):
    """The record of the first phase is already in the student's configuration."""
    trainer_of(tmp_path / "first", student, teacher, PHASES["prediction"]).train()
    with pytest.raises(ValueError, match="a distillation on the losses"):
        trainer_of(tmp_path / "first", student, teacher, None).train(resume_from_checkpoint=True)
    plain = Trainer(student, TrainingArguments(str(tmp_path / "second"), **QUIET), pad, rows(8))
    plain.train()
    again = trainer_of(tmp_path / "second", student, teacher, None)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2


QUIET = SAVED | {"max_steps": 2, "per_device_train_batch_size": 8, "report_to": [], "disable_tqdm": True}
QUIET |= {"use_cpu": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_mapping": "top"}, r"on the pairs \[\[1, 2\], \[2, 4\]\].*has \[\[1, 3\], \[2, 4\]\]"),
        ({"loss_type": ["hidden", "attention"]}, r"and this one has \['hidden', 'attention'\]"),
        ({"attention_heads": "mean"}, "heads=equal in the attention loss, and here it is mean"),
        ({"teachers": 2}, "with 1 teachers, and this one has 2"),
        ({"student": 3}, "num_hidden_layers=2, and this one has num_hidden_layers=3"),
    ],
    ids=["layers", "order", "settings", "teachers", "student"],
)
def test_what_is_another_training(tmp_path, checkpoints, student, teacher, change, message):
    other = [teacher, build(BertForSequenceClassification, bert_config(4, 32), 9)]
    models = {
        "teachers": [student, other],
        "student": [build(BertForSequenceClassification, bert_config(3, 16)), teacher],
    }
    model, teachers = models.get(next(iter(change)), [student, teacher])
    changes = PHASES["intermediate"] | (change if next(iter(change)) not in models else {})
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model, teachers, changes).train(str(checkpoints / "intermediate/checkpoint-2"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"max_steps": 4}, marks=pytest.mark.slow),
        {"per_device_train_batch_size": 4, "max_steps": 4},
        pytest.param({"max_steps": -1, "num_train_epochs": 3}, marks=pytest.mark.slow),
        {"learning_rate": 0.01, "loss_weights": [1.0, 2.0], "max_steps": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_the_same_training(tmp_path, checkpoints, student, teacher, change):
    trainer = trainer_of(tmp_path, student, teacher, PHASES["intermediate"] | change)
    trainer.train(resume_from_checkpoint=str(checkpoints / "intermediate/checkpoint-2"))
    assert trainer.state.global_step > 2
    assert len(student.config.distillation["stages"]) == 1


@pytest.mark.slow
def test_a_checkpoint_with_the_model_alone_is_known_by_its_lineage(tmp_path, student, teacher):
    options = {"save_only_model": True}
    trainer_of(tmp_path, copy.deepcopy(student), teacher, PHASES["prediction"] | options).train()
    with pytest.raises(ValueError, match=r"losses \['prediction'\], and this one has \['attention', 'hidden'\]"):
        trainer_of(tmp_path, student, teacher, PHASES["intermediate"]).train(resume_from_checkpoint=True)
    trainer = trainer_of(tmp_path, student, teacher, PHASES["prediction"] | {"max_steps": 3})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_a_record_that_cannot_be_read_stops_nothing(tmp_path, checkpoints, student, teacher):
    shutil.copytree(checkpoints / "prediction/checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2/distillation_stage.json").write_text('{"losses": 3')
    trainer = trainer_of(tmp_path, student, teacher, PHASES["prediction"] | {"max_steps": 3})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_a_folder_that_is_not_there_is_trainers_error(tmp_path, student, teacher):
    trainer = trainer_of(tmp_path / "none", student, teacher, PHASES["prediction"])
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "missing"))


@pytest.mark.slow
def test_the_label_loss_alone_is_a_distillation_too(tmp_path, student):
    trainer = trainer_of(tmp_path, student, None, None, losses=[TaskLoss()])
    trainer.train()
    teacher, losses = build(BertForSequenceClassification, bert_config(4, 32), 9), [TaskLoss(), PredictionLoss()]
    other = DistillationTrainer(student, trainer.args, pad, rows(8), teacher_model=teacher, losses=losses)
    with pytest.raises(ValueError, match=r"losses \['task'\], and this one has \['task', 'prediction'\]"):
        other.train(resume_from_checkpoint=True)
