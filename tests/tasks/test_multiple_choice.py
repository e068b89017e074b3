"""Choices: nested rows, what is wrong with the data, and a whole run."""

import json

import numpy as np
import pytest
import torch
from conftest import bert_config, build, word_tokenizer
from datasets import Dataset, DatasetDict
from short_runs import QUICK, SIZE, distil
from transformers import AutoModelForMultipleChoice, BertForMultipleChoice, BertModel, EvalPrediction

from hf_tinybert import SWAG, MultipleChoice, cache_logits, create_student, task_distillation


def swag(count=24) -> DatasetDict:
    """The right ending is the one that has the word of the context."""
    adjectives = ["good", "bad", "dull", "bright"]
    rows = {"sent1": [f"the film is {adjectives[i % 4]}" for i in range(count)], "sent2": ["the book was"] * count}
    for choice in range(4):
        rows[f"ending{choice}"] = [f"{'very ' * (i % 3)}{adjectives[(i // 4 + choice) % 4]}" for i in range(count)]
    rows["label"] = [(i % 4 - i // 4) % 4 for i in range(count)]
    rows = Dataset.from_dict(rows)
    return DatasetDict(train=rows, validation=rows)


@pytest.fixture
def base(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "base")
    build(BertModel, bert_config(4, 32, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_every_ending_is_read_beside_the_context(tmp_path):
    data, tokenizer = swag()["train"], word_tokenizer(tmp_path)
    rows = SWAG.tokenize(data, tokenizer)
    assert rows["labels"][:] == data["label"][:]
    for row, tokens in zip(data, rows, strict=True):
        for choice in range(4):
            expected = tokenizer(row["sent1"], f"{row['sent2']} {row[f'ending{choice}']}")
            assert all(tokens[name][choice] == values for name, values in expected.items())
    batch = SWAG.collator(tokenizer)([rows[i] for i in range(3)])
    assert batch["input_ids"].shape[:2] == (3, 4)
    assert batch["labels"].tolist() == rows["labels"][:3]


def test_choices_in_a_list(tmp_path):
    rows = swag()["train"]
    choices = [[row[f"ending{i}"] for i in range(4)] for row in rows]
    lists = Dataset.from_dict({"question": rows["sent1"][:], "choices": choices, "answer": rows["label"][:]})
    task, data = MultipleChoice.from_dataset(
        DatasetDict(train=lists, dev=lists), ["question"], label="answer", validation="dev"
    )
    columns = MultipleChoice("x", ("sent1",), endings=SWAG.endings)
    tokenizer = word_tokenizer(tmp_path)
    assert task.tokenize(data["dev"], tokenizer)[:] == columns.tokenize(rows, tokenizer)[:]


def test_accuracy_is_of_the_likeliest_ending():
    logits = np.array([[0.1, 2.0, 0.3, 0.0], [1.0, 0.0, 3.0, 0.0]])
    scores = SWAG.compute_metrics(EvalPrediction(logits, np.array([1, 0])))
    assert scores == {"accuracy": 0.5, "score": 0.5}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": [0, 4]}, r"labels \[4\]: give the number of the right ending, 0 to 3"),
        ({"label": ["A", "B"]}, "labels"),
        ({"choices": [["a", "b", "c", "d"], ["a", "b"]]}, r"rows of \[2, 4\] endings"),
        ({"text": ["context"]}, "no column"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(changes, says):
    rows = {"question": ["a", "b"], "choices": [["a", "b", "c", "d"]] * 2, "label": [0, 3]} | changes
    rows = Dataset.from_dict({name: values for name, values in rows.items() if name != "text"})
    with pytest.raises(ValueError, match=says):
        MultipleChoice.from_dataset(DatasetDict(train=rows, validation=rows), changes.get("text", ["question"]))


def test_a_student_is_initialised_from_the_teacher_on_all_choices(tmp_path):
    """Nested calibration rows give the same student as their choices one by one."""
    tokenizer = word_tokenizer(tmp_path)
    teacher = build(BertForMultipleChoice, bert_config(4, 32, vocab_size=len(tokenizer)))
    rows = SWAG.tokenize(swag()["train"], tokenizer).remove_columns("labels")
    flat = [dict(zip(row, choice, strict=True)) for row in rows for choice in zip(*row.values(), strict=True)]
    students = [
        create_student(teacher, **SIZE, calibration_dataset=calibration_dataset, processing_class=tokenizer)
        for calibration_dataset in (rows, flat)
    ]
    nested_weights, flat_weights = (student.state_dict() for student in students)
    assert all(torch.equal(nested_weights[name], value) for name, value in flat_weights.items())


def test_cached_logits_teach_as_live_ones(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    teacher = build(BertForMultipleChoice, bert_config(4, 32, vocab_size=len(tokenizer)), 1).eval()
    student = build(BertForMultipleChoice, bert_config(2, 16, vocab_size=len(tokenizer)), 2)
    rows, collate = SWAG.tokenize(swag(8)["train"], tokenizer), SWAG.collator(tokenizer)
    cached = cache_logits(teacher, rows, tokenizer, data_collator=collate, batch_size=3)
    losses = []
    for data in (rows, cached):
        _, (log,), _ = distil(tmp_path, student, teacher, None, data, collate, loss_type=["prediction"], max_steps=1)
        losses.append(log["prediction_loss"])
        student = build(BertForMultipleChoice, bert_config(2, 16, vocab_size=len(tokenizer)), 2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_from_an_encoder_to_a_student(base, tmp_path, caplog):
    fast = {"fine_tuning": {"num_train_epochs": 8, "learning_rate": 2e-3}, "intermediate": {}}
    results = task_distillation(SWAG, swag(48), str(base), tmp_path / "out", student=SIZE, **fast, **QUICK)
    assert results["teacher"]["validation"]["accuracy"] > 0.5  # by chance 0.25
    assert set(results["student"]["validation"]) == {"accuracy", "score"}
    assert (
        "Teacher activations are not cached: that takes rows of one sequence, not of several choices." in caplog.text
    )
    _, loading = AutoModelForMultipleChoice.from_pretrained(tmp_path / "out/student", output_loading_info=True)
    assert not any(loading.values())
    log = json.loads((tmp_path / "out/prediction/trainer_state.json").read_text())["log_history"]
    losses = [entry["prediction_loss"] for entry in log if "prediction_loss" in entry]
    assert losses[-1] < losses[0]
