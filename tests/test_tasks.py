"""GLUE's tasks from local files in the Hub's columns."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import word_tokenizer
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import EvalPrediction

from hf_tinybert import GLUE, Task


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
    task, data = Task.of(splits(labels, feature), ["review"], label="stars", max_length=200)
    assert (task.text, task.labels, task.max_length, task.validation) == (("review",), want, 200, ("validation",))
    assert task.regression == (not want)
    assert data["train"].column_names == ["review", "label"]
    assert data["validation"]["label"][:] == ids


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
        Task.of(splits([0, 1, 0, 1]), **{"text": ["review"], "label": "stars", **options})
