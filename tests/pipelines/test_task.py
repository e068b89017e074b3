"""Task distillation at toy size: what a run leaves behind, and that a killed one ends as if nothing had happened."""

import json
from dataclasses import replace
from functools import partial

import datasets
import pytest
import torch
from conftest import bert_config, build, word_tokenizer
from datasets import Dataset, DatasetDict
from short_runs import QUICK, SIZE, TWO_PHASES
from toy_runs import (
    HalfLabels,
    MappedState,
    SoftLabels,
    assert_same_weights,
    base,  # noqa: F401
    killed_at_step,
    killed_in,
    killed_while_saving,
    save_classifier,
    save_encoder,
    sentences,
)
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForMaskedLM, BertForSequenceClassification

import hf_tinybert.pipelines.task_rows
import hf_tinybert.pipelines.task_run
from hf_tinybert import (
    GLUE,
    HiddenLoss,
    MaskedWords,
    PredictionLoss,
    TaskLoss,
    TextClassification,
    task_distillation,
)
from hf_tinybert.lineage import Lineage

TASK = GLUE["sst2"]
ONE_PHASE = {"student": SIZE, "init": "random", **TWO_PHASES, "intermediate": None, **QUICK}


def augmentation(folder) -> MaskedWords:
    tokenizer = word_tokenizer(folder)
    masked_lm = build(BertForMaskedLM, bert_config(1, 16, vocab_size=len(tokenizer)))
    return MaskedWords(masked_lm, tokenizer, copies=1, batch_tokens=64)


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def log_of(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_from_an_encoder_to_a_student(base, tmp_path):  # noqa: F811
    data, variants = sentences(tmp_path), augmentation(tmp_path)
    chosen = {"student": SIZE, **TWO_PHASES, "augmentation": variants, **QUICK}
    run = partial(task_distillation, TASK, data, str(base), tmp_path / "out", **chosen)
    results = run()
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["seconds"]) == {"fine_tuning", "intermediate", "prediction"}
    assert results["rows"] > 25
    assert results["student"]["validation"]["score"] >= results["student_last"]["validation"]["score"]
    student, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out/student", output_loading_info=True
    )
    assert not any(loading.values())
    assert student.config.id2label == {0: "negative", 1: "positive"}
    lineage = Lineage.from_config(student.config)
    assert (lineage.teacher.name, lineage.teacher.finetuned_from.name) == ("./teacher", "./base")
    assert len(lineage.stages) == 2
    for stage in lineage.stages:
        assert (stage.data.name, stage.data.rows) == ("sst2", results["rows"])
        assert stage.augmentation == {"masked_lm": None, "masked_lm_revision": None} | variants.settings
    assert "copies 1, p 0.4" in (tmp_path / "out/student/README.md").read_text()
    assert not list((tmp_path / "out").rglob("checkpoint-*"))

    before = (tmp_path / "out/student/model.safetensors").stat().st_mtime_ns
    assert run() == results
    assert (tmp_path / "out/student/model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other \['phases'\]"):
        run(learning_rate=1e-3)


def test_phases_and_what_they_learn(base, tmp_path):  # noqa: F811
    """A teacher with a head is not fine-tuned, 0 epochs leave a phase out, labels need no teacher."""
    data = sentences(tmp_path)
    save_classifier(base)
    results = task_distillation(TASK, data, str(base), tmp_path / "logits", **ONE_PHASE)
    assert set(results["seconds"]) == {"prediction"}
    assert "prediction_loss" in log_of(tmp_path / "logits/student")[0]
    for name, labels in (("names", {"loss_type": ["task"]}), ("losses", {"losses": [TaskLoss()]})):
        task_distillation(TASK, data, str(base), tmp_path / name, **ONE_PHASE, prediction=labels)
        assert "task_loss" in log_of(tmp_path / name / "student")[0]
    assert_same_weights(load(tmp_path / "names/student"), load(tmp_path / "losses/student"))
    start = {**ONE_PHASE, "student": str(tmp_path / "names/student")}
    again = task_distillation(TASK, data, str(base), tmp_path / "again", **start)
    assert again["parameters"] == results["parameters"]


def test_a_phase_has_teachers_and_rows_of_its_own(base, tmp_path):  # noqa: F811
    data = sentences(tmp_path)
    save_classifier(tmp_path / "classifier")
    word_tokenizer(tmp_path).save_pretrained(tmp_path / "classifier")
    task_distillation(
        TASK,
        data,
        str(tmp_path / "classifier"),
        tmp_path / "out",
        student=SIZE,
        augmentation=augmentation(tmp_path),
        intermediate={"teacher": [str(base), str(tmp_path / "classifier")]},
        labels={"num_train_epochs": 0},
        **QUICK,
    )
    first, second = Lineage.from_config(load(tmp_path / "out/student").config).stages
    assert [teacher.model.name for teacher in first.teachers] == ["./teacher_intermediate", "./classifier"]
    assert [teacher.model.name for teacher in second.teachers] == ["./classifier"]
    assert first.augmentation is None
    assert first.data.rows == len(data["train"]) < second.data.rows


@pytest.mark.parametrize(
    ("chosen", "losses", "augmented"),
    [
        ({}, ["hidden", "embedding"], False),
        ({"intermediate": {"loss_type": ["attention"]}}, ["attention"], False),
        ({"intermediate": {"augmented": True}}, ["hidden", "embedding"], True),
    ],
)
def test_a_student_of_less_than_half_the_width_learns_layers_first(
    base,  # noqa: F811
    tmp_path,
    chosen,
    losses,
    augmented,
    monkeypatch,
):
    merged, create_student = [], hf_tinybert.pipelines.task_run.create_student

    def record(*args, merge_layers, **kwargs):
        merged.append(merge_layers)
        return create_student(*args, merge_layers=merge_layers, **kwargs)

    monkeypatch.setattr(hf_tinybert.pipelines.task_run, "create_student", record)
    data, narrow = sentences(tmp_path), SIZE | {"hidden_size": 12}
    save_classifier(base)
    quick = {name: value for name, value in QUICK.items() if name != "num_train_epochs"} | {"max_steps": 2}
    task_distillation(TASK, data, str(base), tmp_path / "out", student=narrow, **quick, **chosen)
    stages = Lineage.from_config(load(tmp_path / "out/student").config).stages
    assert [[loss.name for loss in stage.losses] for stage in stages] == [
        losses,
        ["prediction"],
        ["task", "prediction"],
    ]
    assert (stages[0].augmentation is not None) == augmented
    assert (stages[0].data.rows > len(data["train"])) == augmented
    settings = json.loads((tmp_path / "out/settings.json").read_text())["phases"]["intermediate"]
    assert (settings["num_train_epochs"], settings["learning_rate"]) == (50, 4e-4)  # the defaults
    assert merged == ["attention" not in losses]  # an attention loss compares heads of one layer each


def test_best_and_last_epoch_are_both_saved(base, tmp_path):  # noqa: F811
    data = sentences(tmp_path)
    save_classifier(base)
    best = {"metric_for_best_model": "loss", "greater_is_better": True, "loss_type": ["task"], "num_train_epochs": 3}
    task_distillation(TASK, data, str(base), tmp_path / "out", **ONE_PHASE | {"init": "teacher"}, prediction=best)
    losses = [entry["eval_loss"] for entry in log_of(tmp_path / "out/student") if "eval_loss" in entry]
    assert max(losses) > losses[-1] + 1e-6
    inputs = word_tokenizer(base)(data["validation"]["sentence"][:], padding=True, return_tensors="pt")
    inputs["labels"] = torch.tensor(data["validation"]["label"][:])
    for name, loss in (("student", max(losses)), ("student_last", losses[-1])):
        assert load(tmp_path / "out" / name).eval()(**inputs).loss.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("rate", "kept"), [(1.0, True), (1e-4, False)])
def test_the_student_before_the_labels_phase_is_a_candidate(base, tmp_path, rate, kept):  # noqa: F811
    data = sentences(tmp_path)
    save_classifier(base)
    labels = {"learning_rate": rate, "metric_for_best_model": "loss", "greater_is_better": False}
    chosen = {"student": SIZE, "augmentation": None, "labels": labels, **QUICK}

    def run(output_dir):
        return task_distillation(TASK, data, str(base), tmp_path / output_dir, **chosen)

    killed_at_step(lambda: run("killed"), "killed/student", 5)
    results = run("out")
    assert run("killed")["student"] == results["student"]
    losses = [entry["eval_loss"] for entry in log_of(tmp_path / "out/student") if "eval_loss" in entry]
    assert len(losses) == 1 + QUICK["num_train_epochs"]
    assert (losses[0] == min(losses)) == kept
    for name in ("out", "killed"):
        before, student = (load(tmp_path / name / phase).state_dict() for phase in ("prediction", "student"))
        assert all(torch.equal(before[key], student[key]) for key in before) == kept
    assert f"| loss | {min(losses):.4f} |" in (tmp_path / "out/student/README.md").read_text()


@pytest.mark.parametrize("labels", [("positive", "negative"), ("a", "b", "c")])
def test_a_teacher_of_other_labels_is_refused(base, tmp_path, labels):  # noqa: F811
    head = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **head)).save_pretrained(base)
    with pytest.raises(ValueError, match=r"The task's labels are .*, the teacher's"):
        task_distillation(TASK, sentences(tmp_path), str(base), tmp_path / "out", student=SIZE, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": {"num_train_epochs": 0}}, "last phase selects and saves"),
        ({"losses": [PredictionLoss()]}, "losses belong to a phase"),
        ({"intermediate": {"losses": []}}, "losses of intermediate is empty"),
        ({"prediction": {"losses": [PredictionLoss(), PredictionLoss()]}}, "same name"),
        ({"intermediate": {"loss_type": ["hiden"]}}, "loss_type"),
        ({"intermediate": "layers"}, "intermediate='layers' is unknown"),
        ({"student": SIZE | {"hidden_size": 18}}, "hidden_size=18 is not a multiple"),
        ({"student": SIZE | {"num_hidden_layers": 9}}, "num_hidden_layers=9 must lie"),
        ({"student": SIZE | {"dropout": 2}}, "dropout=2"),
        ({"student": SIZE | {"layers": 3}}, "unknown sizes \\['layers'\\]"),
        ({"init": "layers"}, "init='layers' copies whole layers"),
        ({"init": "techer"}, "init='techer' is unknown"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_trained(base, tmp_path, arguments, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        task_distillation(
            TASK,
            sentences(tmp_path),
            str(base),
            tmp_path / "out",
            **{"student": SIZE, **QUICK, **TWO_PHASES} | arguments,
        )
    assert not (tmp_path / "out").exists()


def test_losses_of_a_users_own_decide_by_what_they_read(base, tmp_path, monkeypatch):  # noqa: F811
    """Whatever their names, logits are cached, and a phase whose losses read labels alone has no teacher."""
    cached, cache_logits = [], hf_tinybert.pipelines.task_rows.cache_logits
    monkeypatch.setattr(
        hf_tinybert.pipelines.task_rows,
        "cache_logits",
        lambda *args, **how: cached.append(1) or cache_logits(*args, **how),
    )
    data = sentences(tmp_path)
    save_classifier(base)
    run = partial(task_distillation, TASK, data, str(base), **ONE_PHASE)
    run(tmp_path / "names")
    assert len(cached) == 1
    run(tmp_path / "logits", prediction={"losses": [SoftLabels()]})
    assert len(cached) == 2
    assert "soft_labels_loss" in log_of(tmp_path / "logits/student")[0]
    assert_same_weights(load(tmp_path / "logits/student"), load(tmp_path / "names/student"))

    run(tmp_path / "labels", prediction={"losses": [HalfLabels()]})
    assert len(cached) == 2
    assert "half_labels_loss" in log_of(tmp_path / "labels/student")[0]
    (stage,) = Lineage.from_config(load(tmp_path / "labels/student").config).stages
    assert stage.teachers == []


def test_epochs_follow_from_the_classes_and_the_rate_of_a_teacher_from_its_width(base, tmp_path):  # noqa: F811
    """2,000 rows of 20 classes, one training step of each model."""
    rows = sentences(tmp_path)["train"]
    train = Dataset.from_dict({"text": rows["sentence"][:] * 100, "label": [f"class {i % 20}" for i in range(2000)]})
    data = DatasetDict(train=train, validation=train.select(range(20)))
    task, data = TextClassification.from_dataset(data)
    chosen = {"student": SIZE, "init": "random", "augmentation": None, "prediction": {"num_train_epochs": 0}}
    quick = {name: value for name, value in QUICK.items() if name != "num_train_epochs"} | {"max_steps": 1}
    task_distillation(task, data, str(base), tmp_path / "out", **chosen, **quick)
    phases = json.loads((tmp_path / "out/settings.json").read_text())["phases"]
    assert [phases[name]["num_train_epochs"] for name in ("fine_tuning", "labels")] == [10, 10]  # of 2 classes: 3, 8
    assert phases["fine_tuning"]["learning_rate"] == pytest.approx(5e-5 * 768 / 32)


def test_losses_of_a_users_own_are_recorded(base, tmp_path):  # noqa: F811
    """Another class, weight or setting is another run."""
    save_classifier(base)
    chosen = {"student": SIZE, **QUICK, "augmentation": None, "labels": {"num_train_epochs": 0}}
    run = partial(task_distillation, TASK, sentences(tmp_path), str(base), tmp_path / "out", **chosen)
    loss = MappedState(0.5)
    run(intermediate={"losses": [loss]})
    assert torch.equal(loss.map, MappedState().map)  # a copy was trained
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["phases"]["intermediate"]["losses"] == [
        {"class": "MappedState", "name": "mapped_state", "weight": 0.5, "settings": {"power": 2.0}}
    ]
    run(intermediate={"losses": [MappedState(0.5)]})

    class Other(MappedState):
        pass

    for other in (MappedState(1.0), MappedState(0.5, power=1), Other(0.5)):
        with pytest.raises(ValueError, match=r"other \['phases'\]"):
            run(intermediate={"losses": [other]})


def long_run(folder, output_dir):
    """A run with checkpoints in between, on a loss of a user's own and on one with projections."""
    return task_distillation(
        TASK,
        sentences(folder),
        str(folder / "base"),
        folder / output_dir,
        student=SIZE | {"dropout": 0.1},
        augmentation=augmentation(folder),
        intermediate={"losses": [MappedState(), HiddenLoss()], "augmented": True},
        labels={"num_train_epochs": 0},
        save_strategy="steps",
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        **QUICK,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the results of a run that is not killed."""
    folder = tmp_path_factory.mktemp("whole")
    save_encoder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        results = long_run(folder, "out")
    return folder / "out", results


KILLS = {
    "in the fine-tuning": lambda run: killed_at_step(run, "teacher", 3),
    "in the augmentation": lambda run: killed_in(run, MaskedWords, "variants"),
    "in the intermediate phase": lambda run: killed_at_step(run, "intermediate", 5),
    "in the prediction phase": lambda run: killed_at_step(run, "student", 4),
    "while saving": killed_while_saving,
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_ends_with_the_same_student(base, tmp_path, whole, kill, monkeypatch):  # noqa: F811
    KILLS[kill](lambda: long_run(tmp_path, "out"))
    assert not (tmp_path / "out/results.json").exists()
    starts, create_student = [], hf_tinybert.pipelines.task_run.create_student

    def record(*args, init, **kwargs):
        starts.append(init)
        return create_student(*args, init=init, **kwargs)

    monkeypatch.setattr(hf_tinybert.pipelines.task_run, "create_student", record)
    results = long_run(tmp_path, "out")
    # a student that has begun to learn is not initialised from the teacher again
    assert starts == ["random" if kill in ("in the intermediate phase", "in the prediction phase") else "teacher"]
    expected_folder, expected = whole
    assert results["student"] == expected["student"]
    for name in ("student", "student_last"):
        assert_same_weights(load(tmp_path / "out" / name), load(expected_folder / name))
        lineages = [AutoConfig.from_pretrained(run / name).distillation for run in (tmp_path / "out", expected_folder)]
        assert lineages[0] == lineages[1]


@pytest.mark.parametrize(("max_length", "share"), [(6, None), (4, "100%")])
def test_rows_that_are_cut_are_reported_before_any_training(base, tmp_path, caplog, max_length, share):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text("{}")  # of another run: nothing is trained
    task = replace(GLUE["sst2"], max_length=max_length)
    with pytest.raises(ValueError, match="holds a run with other"):
        task_distillation(task, sentences(tmp_path), base, tmp_path / "out", student=SIZE)
    warning = f"{share} of the rows reach {max_length} tokens"
    assert (warning in caplog.text) == (share is not None)
