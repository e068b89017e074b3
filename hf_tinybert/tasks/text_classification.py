"""Sentences and pairs of them, classified, scored or given several labels; among them the nine tasks of GLUE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, EvalPrediction, PreTrainedTokenizerBase

from .base import Task, check_label_ids, select_columns
from .metrics import F1, Accuracy, MatthewsCorrelation, MicroF1, Pearson, Spearman


@dataclass(frozen=True)
class TextClassification(Task):
    """A sentence or sentence-pair task.

    - `text`: the one or two columns of text. `labels`: class names in the order of the label ids; () for regression.
    - `multi_label`: whether a row may have any number of the labels; its `label` is then a list of ids.
    - `metrics`: `evaluate.Metric` classes; the model is selected by the mean of those named in `selected_by`.
    - `max_length`: tokens; default the paper's 64 for sentences and 128 for pairs.
    """

    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    metrics: tuple[type, ...] = (Accuracy,)
    max_length: int | None = None
    multi_label: bool = False

    def __post_init__(self):
        if self.max_length is None:
            object.__setattr__(self, "max_length", 64 * len(self.text))

    @classmethod
    def from_dataset(
        cls,
        data: datasets.DatasetDict,
        text: Sequence[str] = ("text",),
        label: str = "label",
        validation: str = "validation",
        max_length: int | None = None,
    ) -> tuple["TextClassification", datasets.DatasetDict]:
        """The task of any data set with a `train` and a `validation` split, and its rows in that task's columns.

        Classes are those of a ClassLabel column, the sorted values of a column of strings, or numbers without names;
        lists of ClassLabels make it a multi-label task, scored by micro-F1, floats a regression, scored by its
        correlations. Raises ValueError for a split or a column it lacks.
        """
        data = select_columns(data, ("train", validation), (*text, label))
        data = data if label == "label" else data.rename_column(label, "label")
        feature = data["train"].features["label"]
        if isinstance(feature, datasets.List):
            metrics = {"metrics": (MicroF1,), "selected_by": (MicroF1.name,)}
            kind = {"labels": tuple(feature.feature.names), "multi_label": True, **metrics}
        elif not isinstance(feature, datasets.ClassLabel) and feature.dtype.startswith("float"):
            kind = {"labels": (), "metrics": (Pearson, Spearman), "selected_by": (Pearson.name, Spearman.name)}
        else:
            if not isinstance(feature, datasets.ClassLabel):
                values = sorted(data["train"].unique("label"))
                names = values if feature.dtype == "string" else [f"LABEL_{index}" for index in range(1 + values[-1])]
                data = data.cast_column("label", datasets.ClassLabel(names=names))
            kind = {"labels": tuple(data["train"].features["label"].names)}
        task = cls("task", tuple(text), **kind, validation=(validation,), max_length=max_length)
        task.check(data)
        return task, data

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """What rows must have."""
        return (*self.text, "label")

    @property
    def head(self) -> dict[str, Any]:
        """What `AutoModelForSequenceClassification.from_pretrained` needs to make a head for the task."""
        if self.regression:
            return {"num_labels": 1, "problem_type": "regression", "id2label": {0: "LABEL_0"}}
        return super().head | ({"problem_type": "multi_label_classification"} if self.multi_label else {})

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`; also raises ValueError for labels that are not the task's."""
        super().check(data)
        if not self.regression:
            for split, rows in data.items():
                check_label_ids(rows, "label", self.labels, f"{self.name}/{split}")

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens and `labels`, cut to `max_length`, unpadded; cached by `datasets`."""

        def label(value):
            if self.multi_label:
                return [float(index in value) for index in range(len(self.labels))]
            return float(value) if self.regression else value

        def encode(batch):
            encoded = tokenizer(*(batch[name] for name in self.text), truncation=True, max_length=self.max_length)
            return {**encoded, "labels": [label(value) for value in batch["label"]]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Every metric, and the mean of those that select as `score`; several labels are taken above a logit of 0."""
        logits = prediction.predictions
        if self.multi_label:
            predictions = (logits > 0).astype(int)
        else:
            predictions = np.squeeze(logits, -1) if self.regression else logits.argmax(-1)
        values: dict[str, float] = {}
        for metric in self.metrics:
            values |= metric(keep_in_memory=True).compute(predictions=predictions, references=prediction.label_ids)
        return self.scored(values)


ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
GLUE = {
    task.name: replace(task, source="nyu-mll/glue", config=task.name)
    for task in (
        TextClassification(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            metrics=(MatthewsCorrelation,),
            selected_by=("matthews_correlation",),
        ),
        TextClassification("sst2", ("sentence",), ("negative", "positive")),
        TextClassification("mrpc", PAIR, ("not_equivalent", "equivalent"), metrics=(Accuracy, F1)),
        TextClassification("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), metrics=(Accuracy, F1)),
        TextClassification("stsb", PAIR, metrics=(Pearson, Spearman), selected_by=("pearson", "spearman")),
        TextClassification(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation=("validation_matched", "validation_mismatched"),
        ),
        TextClassification("qnli", ("question", "sentence"), ENTAILMENT),
        TextClassification("rte", PAIR, ENTAILMENT),
        TextClassification("wnli", PAIR, ("not_entailment", "entailment")),
    )
}
