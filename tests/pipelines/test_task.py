"""Whole runs at toy size: what they leave behind, and that a killed one ends as if nothing had happened."""

import json
import multiprocessing
import os
import signal

import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset
from short_runs import QUICK, SIZE
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    TrainerCallback,
)

import hf_tinybert.pipelines.task
from hf_tinybert import GLUE, Augmentation, DistillationTrainer, general_distillation, task_distillation
from hf_tinybert.pipelines.text import tokenize_text


@pytest.fixture
def base(tmp_path):
    """A pre-trained encoder with its tokenizer, no head."""
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "base")
    build(BertModel, bert_config(4, 32, dropout=0.1, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def augmentation(base):
    tokenizer = word_tokenizer(base)
    return Augmentation(
        build(BertForMaskedLM, bert_config(1, 16, vocab_size=len(tokenizer))), tokenizer, copies=1, batch_tokens=64
    )


def sentences(folder, count=20, regression=False):
    words = [w for w in WORDS if w.isalpha()]
    rows = {
        "sentence": [f"the {words[i % 2]} {words[2 + i % 5]} {words[i % 13]}" for i in range(count)],
        "label": [1.0 + i % 2 if regression else i % 2 for i in range(count)],
    }
    (folder / "sst2").mkdir(exist_ok=True)
    for split in ("train", "validation"):
        Dataset.from_dict(rows).to_parquet(folder / f"sst2/{split}.parquet")
    return GLUE["sst2"].load(folder)


def weights(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def assert_same_student(folder, expected):
    for name in ("student", "student_last"):
        ours, theirs = weights(folder / name), weights(expected / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        ours, theirs = (AutoConfig.from_pretrained(run / name).distillation for run in (folder, expected))
        assert ours == theirs


def test_from_an_encoder_to_a_student(base, augmentation, tmp_path):
    task, data = GLUE["sst2"], sentences(tmp_path)
    run = {"student": SIZE, "augmentation": augmentation, **QUICK}
    results = task_distillation(task, data, str(base), tmp_path / "out", **run)
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["seconds"]) == {"fine_tuning", "intermediate", "prediction"}
    assert results["rows"] > 25
    assert results["student"]["validation"]["score"] >= results["student_last"]["validation"]["score"]
    student, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out/student", output_loading_info=True
    )
    assert not any(loading.values())
    assert student.config.id2label == {0: "negative", 1: "positive"}
    lineage = student.config.distillation
    assert (lineage["teacher"], lineage["teacher_finetuned_from"]) == ("./teacher", "./base")
    for stage in lineage["stages"]:
        assert stage["data"]["name"] == "sst2"
        assert stage["data"]["rows"] == results["rows"]
        assert stage["augmentation"] == {"masked_lm": None, "masked_lm_revision": None} | augmentation.settings
    assert "copies 1, p 0.4" in (tmp_path / "out/student/README.md").read_text()
    assert not list((tmp_path / "out").rglob("checkpoint-*"))

    before = (tmp_path / "out/student/model.safetensors").stat().st_mtime_ns
    assert task_distillation(task, data, str(base), tmp_path / "out", **run) == results
    assert (tmp_path / "out/student/model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other \['steps'\]"):
        task_distillation(task, data, str(base), tmp_path / "out", **run, learning_rate=1e-3)


def test_steps_and_what_they_learn(base, tmp_path):
    """A teacher with a head is not fine-tuned, 0 epochs leave a step out, the label loss alone is plain Trainer."""
    data = sentences(tmp_path)
    teacher = build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **GLUE["sst2"].head))
    teacher.save_pretrained(base)
    run = {"student": SIZE, "init": "random", "intermediate": {"num_train_epochs": 0}, **QUICK}
    results = task_distillation(GLUE["sst2"], data, str(base), tmp_path / "logits", **run)
    assert set(results["seconds"]) == {"prediction"}
    log = json.loads((tmp_path / "logits/student/trainer_state.json").read_text())["log_history"]
    assert "prediction_loss" in log[0]
    task_distillation(GLUE["sst2"], data, str(base), tmp_path / "labels", **run, prediction={"loss_type": ["task"]})
    log = json.loads((tmp_path / "labels/student/trainer_state.json").read_text())["log_history"]
    assert "task_loss" not in log[0]
    start = {**run, "student": str(tmp_path / "labels/student")}
    again = task_distillation(GLUE["sst2"], data, str(base), tmp_path / "again", **start)
    assert again["parameters"] == results["parameters"]


def test_best_and_last_epoch_are_both_kept(base, tmp_path):
    data, task = sentences(tmp_path), GLUE["sst2"]
    build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **task.head)).save_pretrained(base)
    best = {"metric_for_best_model": "loss", "greater_is_better": True, "loss_type": ["task"], "num_train_epochs": 3}
    run = {"student": SIZE, "intermediate": {"num_train_epochs": 0}, "prediction": best, **QUICK}
    task_distillation(task, data, str(base), tmp_path / "out", **run)
    log = json.loads((tmp_path / "out/student/trainer_state.json").read_text())["log_history"]
    wanted = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert max(wanted) > wanted[-1] + 1e-6
    inputs = word_tokenizer(base)(data["validation"]["sentence"][:], padding=True, return_tensors="pt")
    inputs["labels"] = torch.tensor(data["validation"]["label"][:])
    for name, want in (("student", max(wanted)), ("student_last", wanted[-1])):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / name).eval()
        assert model(**inputs).loss.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("labels", [("positive", "negative"), ("a", "b", "c"), ("no", "yes")])
def test_a_teacher_of_other_labels_is_refused(base, tmp_path, labels):
    head = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **head)).save_pretrained(base)
    with pytest.raises(ValueError, match=r"The task's labels are .*, the teacher's"):
        task_distillation(GLUE["sst2"], sentences(tmp_path), str(base), tmp_path / "out", student=SIZE, **QUICK)


class Stop(TrainerCallback):
    """SIGKILL in a step of the run, after its checkpoint or in the middle of writing one."""

    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.folder) and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(run, folder, step):
    """Do `run` in a process that dies by SIGKILL in `folder` at `step`; "writing" is while a checkpoint is written."""

    def target():
        if folder == "augmentation":
            hf_tinybert.pipelines.task.Augmentation.variants = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        elif folder == "writing":
            DistillationTrainer._save_optimizer_and_scheduler = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        else:
            callback, plain = Stop(folder, step), DistillationTrainer.__init__

            def with_callback(self, *args, **kwargs):
                plain(self, *args, **kwargs)
                self.add_callback(callback)

            DistillationTrainer.__init__ = with_callback
        run()

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("folder", "step"),
    [("teacher", 3), ("augmentation", 0), ("intermediate", 5), ("student", 4), ("writing", 0)],
)
def test_a_killed_task_distillation_goes_on(base, augmentation, tmp_path, folder, step, monkeypatch):
    data = sentences(tmp_path)
    often = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps"}

    def run(output_dir="out"):
        options = {"student": SIZE, "augmentation": augmentation, **QUICK, **often}
        return task_distillation(GLUE["sst2"], data, str(base), tmp_path / output_dir, **options)

    killed(run, folder, step)
    assert not (tmp_path / "out/results.json").exists()
    starts, create_student = [], hf_tinybert.pipelines.task.create_student

    def record(*args, init, **kwargs):
        starts.append(init)
        return create_student(*args, init=init, **kwargs)

    monkeypatch.setattr(hf_tinybert.pipelines.task, "create_student", record)
    results, expected = run(), run("whole")
    # a student that has begun to learn is not cut again
    assert starts == ["random" if folder in ("intermediate", "student") else "teacher", "teacher"]
    assert results["student"] == expected["student"]
    assert_same_student(tmp_path / "out", tmp_path / "whole")


def texts(count=30):
    return Dataset.from_dict({"text": [" ".join(WORDS[(i * j) % 13] for j in range(i % 7)) for i in range(count)]})


def test_packing_keeps_every_token_once(base):
    tokenizer = word_tokenizer(base)
    data = texts()
    rows = tokenize_text(data, tokenizer, max_length=10)
    pieces = [ids for row in rows["input_ids"] for ids in row[1:-1]]
    wanted = [id for row in tokenizer(data["text"][:], add_special_tokens=False)["input_ids"] for id in [*row, 3]]
    assert pieces == wanted[:-1]
    assert all(len(row) == 10 for row in rows["input_ids"][:-1])
    assert {(row[0], row[-1]) for row in rows["input_ids"]} == {(2, 3)}
    whole = tokenize_text(data, tokenizer, max_length=6, packed=False)
    assert len(whole) == len(data)
    assert max(map(len, whole["input_ids"])) == 6
    streamed = tokenize_text(data.to_iterable_dataset(), tokenizer, max_length=10)
    assert [row["input_ids"] for row in streamed] == rows["input_ids"][:]
    with pytest.raises(ValueError, match="no column 'content'"):
        tokenize_text(data, tokenizer, "content")


def test_general_distillation_then_the_task(base, tmp_path):
    run = {"student": SIZE, "max_length": 12, "calibration_rows": 8, **QUICK}
    student = general_distillation(texts(), str(base), tmp_path / "general", **run)
    assert type(student) is BertModel
    log = json.loads((tmp_path / "general/trainer_state.json").read_text())["log_history"]
    assert {"attention_loss", "hidden_loss", "embedding_loss"} <= set(log[0])
    assert "prediction_loss" not in log[0]
    results = task_distillation(
        GLUE["sst2"], sentences(tmp_path), str(base), tmp_path / "task", student=tmp_path / "general", **QUICK
    )
    assert results["parameters"]["student"] < results["parameters"]["teacher"]


def test_general_distillation_of_a_masked_language_model(base, tmp_path):
    data, run = texts(), {"student": SIZE, "max_length": 12, "mlm_probability": 0.3, **QUICK}
    run["loss_type"] = ["attention", "hidden", "embedding", "prediction"]
    with pytest.raises(ValueError, match="no masked language model, it lacks"):
        general_distillation(data, str(base), tmp_path / "headless", **run)
    teacher = build(BertForMaskedLM, bert_config(4, 32, vocab_size=20)).eval()
    teacher.save_pretrained(base)
    general_distillation(data, str(base), tmp_path / "out", **run)
    student, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert student.config.hidden_size == 16
    log = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert {f"{name}_loss" for name in run["loss_type"]} <= set(log[0])

    # the head is cut along with the rest: words that the teacher names are the student's from the start
    start = general_distillation(data, str(base), tmp_path / "start", **run | {"learning_rate": 0.0, "max_steps": 1})
    ids = torch.randint(5, 20, (32, 10), generator=torch.Generator().manual_seed(0))
    found = [model.eval()(input_ids=ids).logits.argmax(-1) for model in (teacher, start)]
    assert (found[0] == found[1]).float().mean() > 0.5


@pytest.mark.parametrize("streamed", [False, True])
def test_a_killed_general_distillation_goes_on(base, tmp_path, streamed):
    data = texts().to_iterable_dataset(num_shards=2) if streamed else texts()

    def run(output_dir="out"):
        options = {"student": SIZE, "max_length": 12, "calibration_rows": 8, **QUICK, "save_steps": 2, "max_steps": 6}
        return general_distillation(data, str(base), tmp_path / output_dir, **options).state_dict()

    killed(run, "out", 5)
    ours, theirs = run(), run("whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
