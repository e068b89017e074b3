"""Classification, regression and multi-label classification of sentences and pairs; the nine tasks of GLUE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from transformers import AutoModelForSequenceClassification, EvalPrediction, PreTrainedTokenizerBase

from .base import Task, as_class_labels, check_label_ids, select_columns
from .column_checks import check_column, check_scores
from .labels import align_labels, as_class_label_lists
from .metrics import F1, METRICS, Accuracy, MatthewsCorrelation, MicroF1, Pearson, Spearman, metric_scores

FLOATS = ("float16", "float32", "float64")
MAX_LENGTH = 256


@dataclass(frozen=True)
class TextClassification(Task):
    """A sentence or sentence-pair task.

    Attributes:
        text: The one or two columns of text.
        labels: The class names in the order of the label ids; () for regression.
        metrics: `evaluate.Metric` classes. The model is selected by the mean of those named in `selected_by`.
        max_length: Tokens of a row, at most; default 256, for GLUE's tasks the paper's: 64 for a sentence, 128 for a
            pair.
        multi_label: Whether a row may have any number of the labels; its `label` is then a list of ids.
    """

    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    metrics: tuple[type[evaluate.Metric], ...] = (Accuracy,)
    max_length: int | None = None
    multi_label: bool = False

    def __post_init__(self):
        if self.max_length is None:
            object.__setattr__(self, "max_length", MAX_LENGTH)

    @classmethod
    def from_dataset(
        cls,
        data: datasets.DatasetDict,
        text: Sequence[str] = ("text",),
        label: str = "label",
        validation: str = "validation",
        max_length: int | None = None,
        labels: Sequence[str] | None = None,
    ) -> tuple["TextClassification", datasets.DatasetDict]:
        """The task of any data set.

        A column of ClassLabels, of strings (classes: the sorted values of `train`), of booleans or of integers
        (classes without names) makes a classification, one of lists of ClassLabels, strings or integers a multi-label
        task, which micro-F1 scores, and one of floats a regression, which correlations score.

        Args:
            data: Splits `train` and `validation`.
            text: The one or two columns of text.
            label: The column of labels.
            validation: The name of the validation split.
            max_length: Tokens of a row, at most; default 256.
            labels: The class names in the order of their ids, such as those of a trained teacher (`head_labels`), to
                which the labels of the rows are matched (`align_labels`); default those of the rows.

        Returns:
            The task and its rows, in the columns of the task.

        Raises:
            ValueError: If a split or a column is missing, a label is missing or of another type, or a split has labels
                that `train` or `labels` has not.
        """
        data = select_columns(data, ("train", validation), (*text, label))
        data = data if label == "label" else data.rename_column(label, "label")
        task = cls("task", tuple(text), validation=(validation,), max_length=max_length)
        feature = data["train"].features["label"]
        if isinstance(feature, datasets.Value) and feature.dtype in FLOATS:
            if labels is not None and len(labels) > 1:
                raise ValueError(
                    f"'{label}' holds floating-point numbers, which are scores, but the model's prediction head has "
                    f"labels {[*labels]}: give the rows names or integers, or pass a model without a prediction head."
                )
            task = task.as_regression()
        else:
            lists = isinstance(feature, datasets.List | datasets.LargeList)
            if lists:
                data = as_class_label_lists(data, "label")
                task = task.as_multi_label()
            elif not isinstance(feature, datasets.ClassLabel):
                data = as_class_labels(data, "label")
            data = data if labels is None else align_labels(data, "label", labels)
            feature = data["train"].features["label"]
            task = replace(task, labels=tuple((feature.feature if lists else feature).names))
        task.check(data)
        return task, data

    def as_regression(self) -> "TextClassification":
        """The task with real numbers as labels, which correlations score."""
        return replace(self, labels=(), metrics=(Pearson, Spearman), selected_by=(Pearson.name, Spearman.name))

    def as_multi_label(self) -> "TextClassification":
        """The task with any number of labels a row, which micro-F1 scores."""
        return replace(self, multi_label=True, metrics=(MicroF1,), selected_by=(MicroF1.name,))

    @property
    def regression(self) -> bool:
        """Whether the labels are real numbers."""
        return not self.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return (*self.text, "label")

    @property
    def head(self) -> dict[str, Any]:
        """What `auto_class.from_pretrained` needs to make a head for the task."""
        if self.regression:
            return {"num_labels": 1, "problem_type": "regression", "id2label": {0: "LABEL_0"}}
        return super().head | ({"problem_type": "multi_label_classification"} if self.multi_label else {})

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`, which here also raises ValueError for labels that are not the task's."""
        super().check(data)
        for split, rows in data.items():
            if self.regression:
                check_scores(rows, "label", f"{self.name}/{split}")
            else:
                check_column(rows, "label", f"{self.name}/{split}", levels=int(self.multi_label))
                check_label_ids(rows, "label", self.labels, f"{self.name}/{split}")

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens and, if the rows have them, `labels`; truncated to `max_length`, unpadded. `datasets` caches them."""

        def label(value):
            if self.multi_label:
                return [float(index in value) for index in range(len(self.labels))]
            return float(value) if self.regression else value

        def encode(batch):
            encoded = tokenizer(*(batch[name] for name in self.text), truncation=True, max_length=self.max_length)
            return {**encoded, "labels": [label(value) for value in batch["label"]]} if "label" in batch else encoded

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of its kind of labels."""
        if self.multi_label or self.regression:
            kind = "several labels" if self.multi_label else "scores"
        else:
            kind = "two classes" if len(self.labels) == 2 else "classes"
        return tuple(metric.name for metric in METRICS if kind in metric.kinds)

    def select_by(self, *metrics: str) -> "TextClassification":
        """`Task.select_by`; metrics that are not computed yet are added."""
        task = super().select_by(*metrics)
        added = tuple(metric for metric in METRICS if metric.name in metrics and metric not in self.metrics)
        return replace(task, metrics=(*self.metrics, *added))

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Every metric, and `score`, which selects the model. Several labels are predicted above a logit of 0."""
        logits = prediction.predictions
        if self.multi_label:
            predictions = (logits > 0).astype(int)
        else:
            predictions = np.squeeze(logits, -1) if self.regression else logits.argmax(-1)
        values: dict[str, float] = {}
        for metric in self.metrics:
            values |= metric_scores(metric, predictions, prediction.label_ids)
        return self.scored(values)


ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
GLUE = {
    task.name: replace(task, source="nyu-mll/glue", config=task.name, max_length=64 * len(task.text))
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
"""The tasks of GLUE by name: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte and wnli."""
