"""GLUE's tasks from local files in the Hub's columns, and the task of any data set."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset, DatasetDict, List, load_dataset
from short_runs import QUICK, SIZE
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertModel, EvalPrediction

from hf_tinybert import GLUE, TextClassification, task_distillation


def write(folder, task, splits=None, **changes):
    """Two rows a split in the task's columns."""
    label = [0.5, 4.0] if task.regression else [0, 1]
    for split in splits or ("train", *task.validation):
        (folder / task.name).mkdir(parents=True, exist_ok=True)
        columns = {name: ["a good film", "the film was bad"] for name in task.text} | {"label": label} | changes
        Dataset.from_dict(columns).to_parquet(folder / task.name / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("name", GLUE)
def test_each_task_from_files(tmp_path, name):
    task = GLUE[name]
    data = task.load(write(tmp_path, task))
    assert list(data) == ["train", *task.validation]
    rows = task.tokenize(data["train"], word_tokenizer(tmp_path))
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert rows["labels"][:] == ([0.5, 4.0] if task.regression else [0, 1])
    assert sum(rows[1]["token_type_ids"]) == (5 if len(task.text) == 2 else 0)
    logits = np.array([[0.2], [0.7]]) if task.regression else np.array([[2.0, 1.0], [0.0, 3.0]])
    scores = task.compute_metrics(EvalPrediction(logits, np.array(rows["labels"])))
    assert scores["score"] == pytest.approx(1.0)
    assert len(scores) == 1 + len(task.metrics)


def test_the_score_is_the_mean_of_what_selects():
    logits, labels = np.array([[1.0], [2.0], [4.0], [3.9]]), np.array([1.0, 3.0, 2.0, 5.0])
    scores = GLUE["stsb"].compute_metrics(EvalPrediction(logits, labels))
    assert scores["score"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)
    assert GLUE["mrpc"].selected_by == ("accuracy",)


def test_what_is_wrong_with_the_files_is_said(tmp_path):
    task = GLUE["sst2"]
    with pytest.raises(ValueError, match="no folder 'sst2'"):
        task.load(tmp_path)
    with pytest.raises(ValueError, match=r"no \['validation'\].parquet"):
        task.load(write(tmp_path / "a", task, splits=["train"]))
    with pytest.raises(ValueError, match=r"lacks \{'sentence'\}"):
        task.load(write(tmp_path / "b", replace(task, text=("text",))))
    with pytest.raises(ValueError, match=r"labels \[-1\]"):
        task.load(write(tmp_path / "c", task, label=[-1, 1]))


def test_labels_in_another_order_are_refused(tmp_path):
    task = GLUE["rte"]
    write(tmp_path, task)
    rows = Dataset.from_parquet(str(tmp_path / "rte/train.parquet"))
    rows.cast_column("label", ClassLabel(names=["not_entailment", "entailment"])).to_parquet(
        tmp_path / "rte/train.parquet"
    )
    with pytest.raises(ValueError, match="names its labels"):
        task.load(tmp_path)


def splits(labels: list, feature=None) -> DatasetDict:
    rows = Dataset.from_dict({"review": ["a", "b", "c", "d"], "stars": labels, "more": [0] * 4})
    rows = rows.cast_column("stars", feature) if feature else rows
    return DatasetDict(train=rows, validation=rows)


@pytest.mark.parametrize(
    ("labels", "feature", "want", "ids"),
    [
        ([1, 0, 1, 0], ClassLabel(names=["bad", "good"]), ("bad", "good"), [1, 0, 1, 0]),
        (["good", "bad", "good", "bad"], None, ("bad", "good"), [1, 0, 1, 0]),
        ([0, 2, 1, 2], None, ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 2, 1, 2]),
        ([0.5, 1.0, 2.0, 5.0], None, (), [0.5, 1.0, 2.0, 5.0]),
    ],
)
def test_the_task_of_any_data_set(labels, feature, want, ids):
    task, data = TextClassification.from_dataset(splits(labels, feature), ["review"], label="stars", max_length=200)
    assert (task.text, task.labels, task.max_length, task.validation) == (("review",), want, 200, ("validation",))
    assert task.regression == (not want)
    assert data["train"].column_names == ["review", "label"]
    assert data["validation"]["label"][:] == ids


@pytest.mark.parametrize(
    ("arrow_type", "values", "names"),
    [
        (pa.string(), ["no", "yes"], ("no", "yes")),
        (pa.large_string(), ["no", "yes"], ("no", "yes")),
        (pa.string_view(), ["no", "yes"], ("no", "yes")),
        (pa.bool_(), [False, True], ("False", "True")),
        (pa.int8(), [0, 1], ("LABEL_0", "LABEL_1")),
        (pa.uint64(), [0, 1], ("LABEL_0", "LABEL_1")),
    ],
    ids=str,
)
def test_labels_of_every_width_that_arrow_has(arrow_type, values, names):
    table = pa.table({"text": ["a", "b"] * 2, "label": pa.array(values * 2, arrow_type)})
    task, data = TextClassification.from_dataset(DatasetDict(dict.fromkeys(("train", "validation"), Dataset(table))))
    assert task.labels == names
    assert data["train"]["label"][:] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (["no", None, "yes"], ["no"], "Row 1 of split 'train' has no 'label'"),
        (["no", "yes"], ["perhaps"], r"Split 'validation' has the labels \['perhaps'\]"),
        ([0, -1], [0], "'label' has the label -1"),
        ([{"a": 1}, {"a": 2}], [{"a": 1}], "give strings, booleans, integers, or floats"),
    ],
    ids=["missing", "unknown", "negative", "struct"],
)
def test_labels_that_are_no_classes_are_refused(train, validation, message):
    splits = {"train": train, "validation": validation}
    rows = {name: Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}) for name, labels in splits.items()}
    with pytest.raises(ValueError, match=message):
        TextClassification.from_dataset(DatasetDict(rows))


def test_a_csv_file_with_text_labels(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\na fine film,good\ndull,bad\n", encoding="utf8")
    task, data = TextClassification.from_dataset(load_dataset(str(tmp_path)))
    assert task.labels == ("bad", "good")
    assert data["train"]["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": ["title"]}, "title"),
        ({"label": "score"}, "score"),
        ({"validation": "test"}, "test"),
    ],
)
def test_the_task_of_a_data_set_that_lacks_something(options, says):
    with pytest.raises(ValueError, match=says):
        TextClassification.from_dataset(splits([0, 1, 0, 1]), **{"text": ["review"], "label": "stars", **options})


FLAGS = ("has good", "has bad", "has film")


def flagged(count=32, names=FLAGS) -> DatasetDict:
    """Texts with any number of the labels: the words that they have."""
    texts = [" ".join(WORDS[(i // 2**c) % 2 * 4 + c] for c in range(3)) for i in range(count)]
    labels = [[c for c in range(3) if WORDS[c] in text.split()] for text in texts]
    rows = Dataset.from_dict({"text": texts, "label": labels}).cast_column(
        "label", List(ClassLabel(names=list(names)))
    )
    return DatasetDict(train=rows, validation=rows)


def test_several_labels_a_row(tmp_path):
    task, data = TextClassification.from_dataset(flagged())
    assert (task.multi_label, task.labels, task.selected_by) == (True, FLAGS, ("micro_f1",))
    assert task.head["problem_type"] == "multi_label_classification"
    rows = task.tokenize(data["train"], word_tokenizer(tmp_path))
    assert rows["labels"][:] == [[float(c in ids) for c in range(3)] for ids in data["train"]["label"]]
    assert {len(ids) for ids in data["train"]["label"]} == {0, 1, 2, 3}
    logits = np.random.default_rng(0).normal(size=(32, 3))
    labels = np.array(rows["labels"][:])
    scores = task.compute_metrics(EvalPrediction(logits, labels))
    assert scores["score"] == scores["micro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    collated = task.collator(word_tokenizer(tmp_path))([rows[i] for i in range(4)])
    assert collated["labels"].tolist() == rows["labels"][:4]


def test_several_labels_of_another_model_or_split_are_refused(tmp_path):
    task, data = TextClassification.from_dataset(flagged())
    other, other_data = TextClassification.from_dataset(flagged(names=FLAGS[::-1]))
    build(BertForSequenceClassification, bert_config(1, 16, **other.head)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The task's labels are"):
        task.check_labels(tmp_path)
    with pytest.raises(ValueError, match="names its labels"):
        task.check(DatasetDict(train=data["train"], validation=other_data["train"]))


def test_several_labels_from_an_encoder_to_a_student(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "base")
    build(BertModel, bert_config(4, 32, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "base")
    task, data = TextClassification.from_dataset(flagged())
    long = {"num_train_epochs": 10, "learning_rate": 3e-3}
    run = {"student": SIZE, "init": "random", "fine_tuning": long, "prediction": long, **QUICK}
    results = task_distillation(task, data, str(tmp_path / "base"), tmp_path / "out", **run)
    assert results["teacher"]["validation"]["micro_f1"] > 0.95
    student, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out/student", output_loading_info=True
    )
    assert not any(loading.values())
    assert student.config.problem_type == "multi_label_classification"
    assert tuple(student.config.id2label.values()) == FLAGS
    log = json.loads((tmp_path / "out/prediction/trainer_state.json").read_text())["log_history"]
    losses = [entry["prediction_loss"] for entry in log if "prediction_loss" in entry]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])  # of the last and the first epoch
    assert results["student"]["validation"]["micro_f1"] > 0.95


@pytest.mark.parametrize(
    ("labels", "multi_label", "fits", "does_not"),
    [
        (("no", "yes"), False, ("accuracy", "f1", "macro_f1", "matthews_correlation"), "pearson"),
        (("a", "b", "c"), False, ("accuracy", "macro_f1", "matthews_correlation"), "f1"),
        (("a", "b", "c"), True, ("micro_f1", "macro_f1"), "accuracy"),
        ((), False, ("pearson", "spearman"), "accuracy"),
    ],
)
def test_metrics_fit_the_labels(labels, multi_label, fits, does_not):
    task = TextClassification("task", ("text",), labels, multi_label=multi_label)
    assert sorted(task.metric_names) == sorted(fits)
    assert task.select_by(*fits).selected_by == fits
    with pytest.raises(ValueError, match=f"is not scored by .'{does_not}'.: choose of "):
        task.select_by(does_not)
