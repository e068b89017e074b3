"""Whole runs with transfer rows, with and without labels, with and without a teacher, and the baseline beside them."""

import json
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset, DatasetDict
from short_runs import QUICK as TWO_EPOCHS
from short_runs import SIZE
from toy_runs import (
    assert_same_weights,
    base,  # noqa: F401
    killed_at_step,
    save_classifier,
    sentences,
)
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_tinybert import GLUE, TokenClassification, UnlabelledText, task_distillation
from hf_tinybert.lineage import Lineage

TASK = GLUE["sst2"]
NO_PHASE = {"num_train_epochs": 0}
QUICK = TWO_EPOCHS | {"num_train_epochs": 1}


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def more_texts(count: int = 30) -> Dataset:
    return Dataset.from_dict(
        {"sentence": [" ".join(WORDS[(i * j + i // 13) % 13] for j in range(1, 3 + i % 5)) for i in range(count)]}
    )


@pytest.fixture
def teacher(base):  # noqa: F811
    save_classifier(base)
    return str(base)


def logits_of(folder, texts) -> torch.Tensor:
    inputs = word_tokenizer(Path(folder))(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return load(folder).eval()(**inputs).logits


def test_the_default_recipe_with_transfer_rows_and_the_baseline(teacher, tmp_path):
    data, rows = sentences(tmp_path), more_texts()
    run = partial(task_distillation, TASK, data, teacher, student=SIZE, **QUICK)
    weights = {"loss_weights": [1.0, 0.5]}
    results = run(tmp_path / "out", transfer=rows, compare="labels", labels=weights)
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["seconds"]) == ["baseline", "prediction", "labels"]
    assert results["transfer"]["rows"] + results["transfer"]["duplicates"] == len(rows)
    student = load(tmp_path / "out/student")
    assert student.config.hidden_dropout_prob == 0
    prediction, labels = Lineage.from_config(student.config).stages
    plain = len(data["train"]) + results["transfer"]["rows"]
    assert 5 * plain < prediction.data.rows == results["rows"] <= 11 * plain
    assert prediction.augmentation["method"] == "random_words"
    assert ([loss.name for loss in prediction.losses], prediction.teachers[0].model.name) == (["prediction"], "./base")
    assert [(loss.name, loss.weight) for loss in labels.losses] == [("task", 1.0), ("prediction", 0.5)]
    assert (labels.data.rows, labels.augmentation) == (len(data["train"]), None)
    assert labels.teachers[0].model.name == "./base"

    alone = run(tmp_path / "alone", transfer=rows, prediction=NO_PHASE)
    assert results["baseline"] == alone["student"]
    assert_same_weights(load(tmp_path / "out/baseline"), load(tmp_path / "alone/student"))


def test_without_variants_the_teacher_labels_a_labelled_row_once(teacher, tmp_path, monkeypatch):
    forward, read = BertForSequenceClassification.forward, []

    @wraps(forward)
    def counting(model, *inputs, **columns):
        if model.config.hidden_size == 32:  # the teacher's
            read.append(len(columns["input_ids"]))
        return forward(model, *inputs, **columns)

    def rows_read(folder, labels) -> int:
        """The rows that the teacher reads in a whole run."""
        folder.mkdir()
        read.clear()
        run = partial(task_distillation, TASK, sentences(folder), teacher, folder / "out", student=SIZE, **QUICK)
        # "auto" also reads first batches in bfloat16, where the CPU multiplies it
        run(transfer=more_texts(), augmentation=None, labels=labels, teacher_dtype="float32")
        return sum(read)

    monkeypatch.setattr(BertForSequenceClassification, "forward", counting)
    first_batch = QUICK["per_device_train_batch_size"]  # of each phase, whose cached logits the trainer checks
    assert rows_read(tmp_path / "both", {}) == rows_read(tmp_path / "logits", NO_PHASE) + first_batch


def test_text_alone(teacher, tmp_path):
    """The score is the agreement on held-out rows, which the student is not trained on."""
    rows, task = more_texts(), UnlabelledText.from_teacher(teacher, ("sentence",))
    assert task.labels == ("negative", "positive")
    chosen = {"student": SIZE, "transfer": rows, "teacher_dtype": "float32", **QUICK}
    results = task_distillation(task, None, teacher, tmp_path / "out", **chosen)
    assert results["teacher"]["validation"] == {"agreement": 1.0, "kl": pytest.approx(0, abs=1e-6), "score": 1.0}
    (stage,) = Lineage.from_config(load(tmp_path / "out/student").config).stages
    assert results["transfer"]["rows"] < stage.data.rows
    different = list(dict.fromkeys(rows["sentence"][:]))
    held_out = len(different) - results["transfer"]["rows"]
    assert held_out == len(different) // 2  # 50 rows, or half of them

    logits = [logits_of(folder, different) for folder in (teacher, tmp_path / "out/student")]
    same = (logits[0].argmax(-1) == logits[1].argmax(-1)).float()
    agreement = results["student"]["validation"]["agreement"] * held_out
    assert agreement == pytest.approx(round(agreement))
    assert 0 <= same.sum() - agreement <= len(different) - held_out
    assert "| agreement |" in (tmp_path / "out/student/README.md").read_text()


def test_a_killed_run_on_a_stream_ends_with_the_same_student(teacher, tmp_path):
    task, stream = UnlabelledText.from_teacher(teacher, ("sentence",)), more_texts().to_iterable_dataset()
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    run = partial(task_distillation, task, None, teacher, student=SIZE, transfer=stream, **steps, **QUICK)
    results = run(tmp_path / "whole")
    killed_at_step(lambda: run(tmp_path / "out"), "student", 5)
    assert run(tmp_path / "out")["student"] == results["student"]
    assert_same_weights(load(tmp_path / "out/student"), load(tmp_path / "whole/student"))


def test_soft_labels_of_another_model_need_no_teacher(teacher, tmp_path):
    rows = more_texts()
    probabilities = logits_of(teacher, rows["sentence"][:]).softmax(-1).tolist()
    named = [dict(zip(TASK.labels, row, strict=True)) for row in probabilities]
    arguments = {"student": teacher, **QUICK}
    soft = task_distillation(
        TASK, None, None, tmp_path / "out", transfer=rows.add_column("teacher_probabilities", named), **arguments
    )
    assert "teacher" not in soft
    assert set(soft["parameters"]) == {"student"}
    # a student that starts as the model that labelled the rows agrees with it from the start
    assert soft["student"]["validation"]["agreement"] == 1
    log = json.loads((tmp_path / "out/student/trainer_state.json").read_text())["log_history"]
    entropy = -(torch.tensor(probabilities).log() * torch.tensor(probabilities)).sum(-1).mean().item()
    assert log[0]["prediction_loss"] == pytest.approx(entropy, rel=0.1)


def test_a_teacher_beside_soft_labels_makes_the_student_alone(teacher, tmp_path):
    """The rows are labelled already, so that it labels none."""
    rows = more_texts()
    soft = rows.add_column("teacher_logits", [[2.0, -2.0]] * len(rows))
    results = task_distillation(TASK, None, teacher, tmp_path / "out", student=SIZE, transfer=soft, **QUICK)
    assert results["rows"] == results["transfer"]["rows"]
    assert Lineage.from_config(load(tmp_path / "out/student").config).calibration_rows == results["rows"]
    assert results["teacher"]["validation"]["kl"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}],
    ids=["score", "labels"],
)
def test_pairs_of_text_for_other_heads(base, tmp_path, head):  # noqa: F811
    build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **head)).save_pretrained(base)
    texts = more_texts()["sentence"][:]
    rows = Dataset.from_dict({"a": texts, "b": texts[::-1]})
    task = UnlabelledText.from_teacher(base, ("a", "b"))
    results = task_distillation(task, None, str(base), tmp_path / "out", student=SIZE, transfer=rows, **QUICK)
    name = "rmse" if head["num_labels"] == 1 else "kl"
    assert results["teacher"]["validation"] == {
        "agreement": pytest.approx(1),
        name: pytest.approx(0, abs=1e-3),
        "score": pytest.approx(1),
    }
    assert results["student"]["validation"][name] > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer": None}, "nothing to train on"),
        ({"data": "train"}, "no split .'validation'., only .'train'."),
        ({"compare": "labels"}, "compare='labels' needs labels"),
        ({"compare": "nothing"}, "compare='nothing' is unknown"),
        ({"augmentation": "random"}, "augmentation='random' is unknown"),
        ({"teacher": None}, "needs a teacher"),
        ({"teacher": None, "student": "name", "transfer": None, "data": "rows"}, "There is no teacher"),
        ({"teacher": "encoder"}, "no prediction head for the task"),
        ({"task": "tokens"}, "TokenClassification takes no transfer data"),
        ({"prediction": NO_PHASE}, "last phase selects and saves"),
        ({"prediction": {"loss_type": ["prediction", "task"]}}, "reads labels"),
        ({"teacher": None, "student": "name"}, "column teacher_probabilities"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(base, tmp_path, change, message):  # noqa: F811
    arguments = {"task": TASK, "data": None, "teacher": str(base), "student": SIZE, "transfer": more_texts(), **QUICK}
    if change.get("teacher") != "encoder":
        save_classifier(base)
    rows = sentences(tmp_path)
    names = {"rows": rows, "train": DatasetDict(train=rows["train"]), "encoder": str(base)}
    change = {key: names.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    if change.get("task") == "tokens":
        change["task"] = TokenClassification("tags", ("tokens",), ("O",))
    with pytest.raises(ValueError, match=message):
        task_distillation(output_dir=tmp_path / "out", **arguments | change)
    assert not (tmp_path / "out/student").exists()
