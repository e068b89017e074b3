"""The lineage in a student's configuration: what training writes, what files keep, and what cannot be read."""

import copy
import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pad, rows
from datasets import Dataset, Features, Sequence, Value
from short_runs import arguments, distil
from transformers import AutoModelForSequenceClassification, BertConfig, TrainerCallback

from hf_tinybert import DistillationLoss, DistillationTrainer, HiddenLoss, PredictionLoss, RelationLoss, create_student
from hf_tinybert.lineage import (
    DataRecord,
    Lineage,
    LossRecord,
    ModelRecord,
    Stage,
    TeacherRecord,
    fingerprint,
    last_stage,
    recorded,
    resume,
)

TEACHER, COMMIT = "org/big-teacher", "0123456789abcdef0123456789abcdef01234567"
INTERMEDIATE = {"loss_type": ["attention", "hidden", "embedding"], "loss_weights": [1.0, 0.5, 2.0]}


@pytest.fixture
def hub_teacher(teacher):
    """The teacher as if it had been loaded from the Hub."""
    teacher.config.name_or_path, teacher.config._commit_hash = TEACHER, COMMIT
    return teacher


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The warnings of lineages that cannot be read; each is given once in a process."""
    logging.Logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if "is not a lineage" in record.getMessage()]


def initialised(teacher, **changes):
    size = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
    return create_student(teacher, **size | {"calibration_dataset": rows(40)} | changes)


def lineage_of(model) -> Lineage:
    return Lineage.from_config(model.config)


def stage(losses: list[LossRecord]) -> Stage:
    teacher = ModelRecord("./teacher", None, ModelRecord("org/base", COMMIT))
    return Stage(
        losses=losses,
        teachers=[TeacherRecord(teacher, 0.25, [[0, 0], [1, 2]]), TeacherRecord(ModelRecord(), 0.75, [])],
        teacher_logits="confidence",
        data=DataRecord("glue", "sst2", "train", 67349, "0123456789abcdef"),
        augmentation={"copies": 20, "p": 0.4},
        epochs=3,
        max_steps=None,
        learning_rate=3e-5,
        batch_size=32,
        seed=42,
        precision="bf16",
    )


def complete_lineage() -> Lineage:
    """A lineage without an empty field."""
    settings = {"heads": 12, "kinds": ["queries", "keys"], "deep": {"limit": float("inf")}, "none": None, "on": True}
    losses = [LossRecord("mine", 0.1, settings, "Somebody (2026).", "linear_decay", 1 / 3), LossRecord("other", 2)]
    teacher = ModelRecord(TEACHER, COMMIT)
    return Lineage(teacher, ModelRecord("./start"), ModelRecord("org/x"), "teacher", [2, 4], 300, [stage(losses)] * 2)


# ---- What training writes ----


def test_both_phases_are_recorded_and_survive_saving(hub_teacher, tmp_path):
    distil(tmp_path / "1", student := initialised(hub_teacher), hub_teacher, train_dataset=rows(8), **INTERMEDIATE)
    student.save_pretrained(tmp_path / "between")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "between")
    args = arguments(tmp_path / "2", loss_type=["prediction"], temperature=2.0, learning_rate=3e-5, seed=7)
    trainer = DistillationTrainer(student, args, pad, rows(12), teacher_model=hub_teacher)
    trainer.data_name, trainer.augmentation = "sst2", {"copies": 20, "p": 0.4}
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "2")
    written = json.loads((tmp_path / "2/config.json").read_text())["distillation"]
    assert written == loaded.config.distillation == student.config.distillation
    lineage = lineage_of(loaded)
    teacher = ModelRecord(TEACHER, COMMIT)
    first, second = lineage.stages
    assert lineage == Lineage(
        teacher=teacher, init="teacher", layers=[2, 4], calibration_rows=40, stages=[first, second]
    )
    assert {loss.name: loss.weight for loss in first.losses} == {"attention": 1.0, "hidden": 0.5, "embedding": 2.0}
    assert first.teachers == [TeacherRecord(teacher, 1.0, [[0, 0], [1, 2], [2, 4]])]
    assert second == Stage(
        losses=[LossRecord("prediction", 1.0, {"temperature": 2.0}, PredictionLoss.citation)],
        teachers=[TeacherRecord(teacher, 1.0, [])],
        teacher_logits="mean",
        data=DataRecord("sst2", rows=12, fingerprint=fingerprint(rows(12))),
        augmentation={"copies": 20, "p": 0.4},
        epochs=None,
        max_steps=1,
        learning_rate=3e-5,
        batch_size=8,
        seed=7,
        precision="fp32",
    )


@dataclass
class Options:
    limit: int


class Unreadable:
    def __repr__(self):
        raise RuntimeError("no text of this")


class SettingsLoss(DistillationLoss):
    """A user's loss with settings of all kinds."""

    name = "mine"
    reads = frozenset({"logits"})
    citation = "Somebody (2026)."

    def __init__(self, settings: dict):
        super().__init__(0.5)
        self._settings = settings

    @property
    def settings(self):
        return self._settings

    def forward(self, student, teacher, layer_mapping):
        return (student.logits - teacher.logits).square().mean(-1)


def test_every_setting_of_every_loss_is_recorded_whatever_it_is(teacher, student, tmp_path):
    weight = torch.ones(3, requires_grad=True)
    settings = {
        "heads": np.int64(12),
        "share": np.float32(0.5),
        "on": True,
        "none": None,
        "pair": (1, [2, {"deep": 0.1}]),
        3: Options(limit=7),
        "kinds": {"b", "a"},
        "tensor": weight * 2,
        "huge": torch.arange(1000.0),
        "dtype": torch.bfloat16,
        "function": pad,
        "class": torch.nn.GELU,
        "path": Path("a/b"),
        "unreadable": Unreadable(),
    }
    losses = [SettingsLoss(settings), RelationLoss(2.0, relation_heads=2)]
    distil(tmp_path, student, teacher, losses, loss_schedules=["linear_decay", "constant"])
    student.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert loaded.config.distillation == student.config.distillation
    mine, relation = lineage_of(loaded).stages[0].losses
    texts = {name: mine.settings[name] for name in ("tensor", "huge", "unreadable")}
    assert mine == LossRecord(
        name="mine",
        weight=0.5,
        settings={
            "heads": 12,
            "share": 0.5,
            "on": True,
            "none": None,
            "pair": [1, [2, {"deep": 0.1}]],
            "3": {"limit": 7},
            "kinds": ["a", "b"],
            "dtype": "torch.bfloat16",
            "function": "pad",
            "class": "GELU",
            "path": repr(Path("a/b")),
            **texts,
        },
        citation="Somebody (2026).",
        schedule="linear_decay",
    )
    assert texts["tensor"] == "tensor([2., 2., 2.], grad_fn=<MulBackward0>)"
    assert len(texts["huge"]) <= 200
    assert "Unreadable" in texts["unreadable"]
    assert relation == LossRecord("relation", 2.0, losses[1].settings, RelationLoss.citation)


def test_an_exception_restores_the_lineage(teacher, student, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    unreadable = copy.deepcopy(student)
    unreadable.config.distillation = {"stages": "of another package"}
    for model in (initialised(teacher), student, unreadable):
        before = copy.deepcopy(model.config.to_dict())
        with pytest.raises(KeyboardInterrupt):
            distil(tmp_path, model, teacher, callbacks=[Stop()])
        assert model.config.to_dict() == before | {"use_cache": False, "problem_type": "single_label_classification"}


def test_training_twice_has_two_stages(teacher, student, tmp_path):
    trainer, _, _ = distil(tmp_path, student, teacher)
    trainer.train()
    assert len(lineage_of(student).stages) == 2


def test_each_student_of_model_init_has_one_stage(teacher, tmp_path):
    def new_student():
        return initialised(teacher, init="random")

    trainer = DistillationTrainer(
        None, arguments(tmp_path), pad, rows(8), model_init=new_student, teacher_model=teacher
    )
    for _ in range(2):
        trainer.train()
        assert len(lineage_of(trainer.model).stages) == 1
    assert lineage_of(trainer.model).init == "random"
    assert lineage_of(trainer.model).layers is None


def test_a_teacher_that_is_a_student_keeps_its_lineage_to_itself(teacher, tmp_path):
    assistant = initialised(teacher, num_hidden_layers=3, hidden_size=32, intermediate_size=64)
    distil(tmp_path, assistant, teacher)
    assistant.save_pretrained(tmp_path / "assistant")
    assistant = AutoModelForSequenceClassification.from_pretrained(tmp_path / "assistant")
    student = initialised(assistant, num_hidden_layers=1)
    assert lineage_of(student) == Lineage(
        teacher=ModelRecord("./assistant"), init="teacher", layers=[3], calibration_rows=40
    )
    assert len(lineage_of(assistant).stages) == 1


def test_the_recorded_batch_size_is_the_one_that_fitted_into_memory(teacher, student, tmp_path):
    class OutOfMemory(TrainerCallback):
        attempts = 0

        def on_step_begin(self, args, state, control, **kwargs):
            self.attempts += 1
            if self.attempts == 1:
                raise RuntimeError("CUDA out of memory.")

    changes = {"auto_find_batch_size": True, "gradient_accumulation_steps": 3}
    trainer, _, _ = distil(tmp_path, student, teacher, callbacks=[OutOfMemory()], **changes)
    assert trainer.state.train_batch_size < 8
    assert [stage.batch_size for stage in lineage_of(student).stages] == [3 * trainer.state.train_batch_size]


# ---- Checkpoints ----


@pytest.mark.parametrize("from_checkpoint", [False, True], ids=["student made anew", "student of the checkpoint"])
def test_resumed_training_is_one_stage(teacher, tmp_path, from_checkpoint):
    settings = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, **INTERMEDIATE}
    distil(tmp_path, initialised(teacher), teacher, max_steps=1, **settings)
    checkpoint = tmp_path / "checkpoint-1"
    assert len(json.loads((checkpoint / "config.json").read_text())["distillation"]["stages"]) == 1
    # pipelines start from random weights if a checkpoint has the weights
    student = initialised(teacher, init="random")
    if from_checkpoint:
        student = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    args = arguments(tmp_path, max_steps=2, **settings)
    trainer = DistillationTrainer(student, args, pad, rows(8), teacher_model=teacher)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert [stage.max_steps for stage in lineage_of(student).stages] == [2]
    assert lineage_of(student).init == "teacher"


def test_a_resumed_stage_keeps_the_factors_that_balanced_its_losses(tmp_path):
    interrupted = complete_lineage()
    saved, config = BertConfig(), BertConfig()
    interrupted.write(saved)
    saved.save_pretrained(tmp_path)
    with recorded(config, stage([LossRecord("mine", 0.2), LossRecord("new", 1.0)])):
        resume(config, tmp_path)
        assert last_stage(config) == stage([LossRecord("mine", 0.2, factor=1 / 3), LossRecord("new", 1.0)])
        assert Lineage.from_config(config).stages[:-1] == interrupted.stages[:-1]
        assert Lineage.from_config(config).teacher == interrupted.teacher


@pytest.mark.parametrize("distillation", [None, {"stages": []}, {"stages": [3]}])
def test_a_checkpoint_without_a_stage_leaves_the_lineage_alone(tmp_path, distillation):
    config = BertConfig(name_or_path="./start")
    BertConfig(distillation=distillation).save_pretrained(tmp_path / "checkpoint")
    with recorded(config, present := stage([LossRecord("mine", 0.2)])):
        for folder in ("checkpoint", "missing"):
            resume(config, tmp_path / folder)
            assert Lineage.from_config(config) == Lineage(start=ModelRecord("./start"), stages=[present])


# ---- Reading ----


def test_a_lineage_is_the_same_after_saving_and_loading(tmp_path):
    config = BertConfig()
    complete_lineage().write(config)
    assert config.distillation == asdict(complete_lineage())
    config.save_pretrained(tmp_path)
    loaded = BertConfig.from_pretrained(tmp_path)
    assert loaded.distillation == config.distillation
    assert Lineage.from_config(loaded) == complete_lineage()


def test_keys_of_another_version_are_left_out_and_missing_ones_have_their_default():
    config = BertConfig()
    complete_lineage().write(config)
    values = config.distillation
    (loss, _), first = values["stages"][0]["losses"], values["stages"][0]
    for record in (values, values["teacher"], first, first["data"], first["teachers"][0], loss):
        record["added_later"] = {"some": "thing"}
    assert Lineage.from_config(config) == complete_lineage()
    del loss["factor"], loss["schedule"], loss["citation"], first["data"]["rows"], values["calibration_rows"]
    lineage = Lineage.from_config(config)
    assert lineage.calibration_rows is lineage.stages[0].data.rows is None
    assert lineage.stages[0].losses[0] == LossRecord("mine", 0.1, loss["settings"])


OLD_FORMAT = {
    "teacher": TEACHER,
    "teacher_revision": COMMIT,
    "init": "teacher",
    "layers": [2, 4],
    "sample": 40,
    "stages": [{"losses": {"prediction": 1.0}, "layer_mapping": [], "teacher": TEACHER, "temperature": 2.0}],
}


def test_training_starts_a_lineage_if_it_cannot_read_the_old_one(teacher, student, tmp_path, warnings):
    student.config.distillation = copy.deepcopy(OLD_FORMAT)
    teacher.config.distillation = copy.deepcopy(OLD_FORMAT)
    student.config.name_or_path = str(tmp_path / "student")
    trainer, _, _ = distil(tmp_path, student, teacher, [HiddenLoss()])
    trainer.create_model_card()
    lineage = lineage_of(student)
    assert lineage == Lineage(start=ModelRecord("./student"), stages=lineage.stages)
    assert [loss.name for loss in lineage.stages[0].losses] == ["hidden"]
    assert lineage.stages[0].teachers[0].model == ModelRecord()
    assert len(warnings()) == 1
    assert "It started from `./student` (a local folder)." in (tmp_path / "README.md").read_text()


def with_stage(**changes) -> dict:
    return {"stages": [asdict(stage([])) | changes]}


@pytest.mark.parametrize(
    "distillation",
    [
        "a text",
        ["a list"],
        7,
        {"stages": None},
        {"stages": [{}]},
        {"layers": [2, "4"]},
        {"teacher": {"name": 3}},
        with_stage(losses=[{"name": "mine", "weight": "0.1"}]),
        with_stage(losses=[{"weight": 0.1}]),
        with_stage(teachers=[{"model": {}, "weight": 1.0, "layer_mapping": [1, 2]}]),
        with_stage(data={"rows": "many"}),
    ],
)
def test_what_is_no_lineage_counts_as_none_with_one_warning(distillation, warnings):
    config = BertConfig(distillation=distillation)
    for _ in range(2):
        assert Lineage.from_config(config) is None
    assert len(warnings()) == 1


def test_no_lineage_is_none_without_a_warning(warnings):
    for config in (BertConfig(), BertConfig(distillation=None), BertConfig(distillation={})):
        assert Lineage.from_config(config) is None
    assert not warnings()


# ---- Models and data ----


def test_hub_ids_are_those_of_all_teachers_each_once():
    local = ModelRecord("./teacher", None, ModelRecord("org/base", COMMIT))
    lineage = complete_lineage()
    assert lineage.hub_ids == [TEACHER, "org/base"]
    assert Lineage(teacher=local, finetuned_from=ModelRecord("org/x")).hub_ids == ["org/base"]
    assert Lineage(start=ModelRecord("org/start")).hub_ids == []


def test_the_fingerprint_depends_on_tokens_and_labels_alone():
    data = rows(16)
    same = fingerprint(data)
    columns = {name: data[name][:] for name in data.column_names}
    assert re.fullmatch("[0-9a-f]{16}", same)
    assert fingerprint(Dataset.from_dict(columns)) == same
    assert fingerprint(data.add_column("teacher_logits", [[0.0]] * 16)) == same
    assert fingerprint(rows(32).select(range(32)).shard(1, 0)) == fingerprint(rows(32))
    assert fingerprint(data.select(range(4, 16)).select(range(2))) == fingerprint(data.select([4, 5]))
    shifted = copy.deepcopy(columns["input_ids"])
    shifted[0], shifted[1] = shifted[0] + shifted[1][:1], shifted[1][1:]  # the same tokens in rows of other lengths
    others = [
        data.select(range(15)),
        data.select([1, 0, *range(2, 16)]),
        Dataset.from_dict({**columns, "labels": [*columns["labels"][:-1], 9]}),
        Dataset.from_dict({**columns, "input_ids": shifted}),
        Dataset.from_dict({**columns, "labels": [str(label) for label in columns["labels"]]}),
        Dataset.from_dict({**columns, "labels": ["a"] * 16}),
        Dataset.from_dict({**columns, "labels": [{"name": "a", "score": 1.0}] * 16}),
    ]
    assert len({same, *map(fingerprint, others)}) == 8
    assert fingerprint(data.rename_column("input_ids", "ids")) is None


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_rows_of_a_fixed_length_have_the_fingerprint_of_the_same_rows(kind):
    tokens = {"input_ids": [[1, 2, 3], [4, 5, 6]], "labels": [0, 1]}
    fixed = Features({"input_ids": Sequence(Value(kind), length=3), "labels": Value(kind)})
    assert fingerprint(Dataset.from_dict(tokens, features=fixed)) == fingerprint(Dataset.from_dict(tokens))


def test_the_record_of_data_without_rows_of_its_own():
    assert DataRecord.from_rows(None) == DataRecord()
    assert DataRecord.from_rows(rows(4).to_iterable_dataset(), "tweets") == DataRecord("tweets")
    assert DataRecord.from_rows({"matched": rows(4), "mismatched": rows(4)}, "mnli") == DataRecord("mnli")
