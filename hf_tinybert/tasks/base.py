"""What every task is: columns of text and labels, the prediction head, tokenisation, collation and metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from huggingface_hub.errors import HFValidationError
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..models.checks import check_label_names
from ..models.loading import from_pretrained, load_config
from .column_checks import check_texts
from .labels import numbered_labels


class ExampleScorer:
    """A `compute_metrics` for Trainer whose metrics follow from numbers that each example has by itself.

    A bootstrap interval then scores every example once, and resamples the numbers. A subclass gives `score_examples`
    and `summarise`.
    """

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of all examples."""
        return self.summarise(self.score_examples(prediction))

    def score_examples(self, prediction: EvalPrediction) -> np.ndarray:
        """(examples, K): K numbers of each example. An example is what is resampled, for instance a question."""
        raise NotImplementedError

    def summarise(self, examples: np.ndarray) -> dict[str, float]:
        """The metrics of examples, which are rows of what `score_examples` returned, repetitions included."""
        raise NotImplementedError


@dataclass(frozen=True)
class Task:
    """What all kinds of tasks share. A kind is a subclass with its `auto_class`, `columns`, `tokenize` and
    `compute_metrics`.

    Attributes:
        name: The name in messages, folders and results.
        text: The columns of text.
        labels: The class names in the order of their ids; () if the head has no classes.
        selected_by: The metrics whose mean, `score`, selects the model.
        validation: The names of the validation splits; the first one selects the model.
        source: The Hub id of the data; default None, no data of its own.
        config: The configuration of the data on the Hub.
        auto_class: The class that loads a model with a head for the task.
        evaluation_arguments: Arguments of Trainer that `scorer` needs.
        text_levels: 0 if a column of text holds strings, 1 if it holds lists of strings.
    """

    name: str
    text: tuple[str, ...]
    labels: tuple[str, ...] = ()
    selected_by: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    source: str | None = None
    config: str | None = None

    auto_class: ClassVar[type]
    evaluation_arguments: ClassVar[dict[str, Any]] = {}
    text_levels: ClassVar[int] = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        raise NotImplementedError

    @property
    def augmented(self) -> tuple[str, ...]:
        """The columns in which augmentation replaces words."""
        return self.text

    @property
    def head(self) -> dict[str, Any]:
        """What `auto_class.from_pretrained` needs to make a head for the task."""
        if not self.labels:
            return {}
        return {"id2label": dict(enumerate(self.labels)), "label2id": {n: i for i, n in enumerate(self.labels)}}

    @classmethod
    def head_labels(cls, name_or_path: str | Path) -> tuple[str, ...] | None:
        """The labels of a model's head for this kind of task in the order of their ids; None if it has no such head.

        Args:
            name_or_path: A Hub id or folder.
        """
        config = load_config(name_or_path)
        suffix = cls.auto_class.__name__.removeprefix("AutoModel")
        if not any(name.endswith(suffix) for name in config.architectures or ()):
            return None
        return tuple(name for _, name in sorted(config.id2label.items()))

    def check_labels(self, name_or_path: str | Path) -> None:
        """Check that the head of a model, if it has one for this kind of task, has the labels of the task.

        Args:
            name_or_path: A Hub id or folder.

        Raises:
            ValueError: If the labels differ.
        """
        if "id2label" in self.head and (labels := self.head_labels(name_or_path)) is not None:
            check_label_names(self.head["id2label"], dict(enumerate(labels)), "task")

    def load_model(self, name_or_path: str | Path) -> tuple[PreTrainedModel, bool]:
        """Load a model with a head for the task.

        Args:
            name_or_path: A Hub id or folder.

        Returns:
            The model, and whether its head is new and untrained.

        Raises:
            ValueError: If the model has a head with other labels.
        """
        self.check_labels(name_or_path)
        model, loading = from_pretrained(self.auto_class, name_or_path, **self.head, output_loading_info=True)
        return model, bool(loading["missing_keys"])

    def load(self, source: str | Path | None = None) -> datasets.DatasetDict:
        """Load the splits that have labels, in the columns of the Hub's data set.

        Args:
            source: A Hub id, or a folder that holds one folder of parquet files for each task; default the Hub id of
                the task.

        Raises:
            ValueError: If a split, a column or a label is missing or not the task's.
            FileNotFoundError: If there is no such data, here or on the Hub.
        """
        source = source or self.source
        if source is None:
            raise ValueError(f"Task {self.name} knows no data of its own: say which Hub id or folder.")
        local = Path(source) / self.name
        if Path(source).is_dir() and not local.is_dir():
            raise ValueError(f"{source} has no folder '{self.name}': put the task's parquet files there.")
        splits = ("train", *self.validation)
        if local.is_dir():  # by name, as `validation_matched` is a split of its own
            files = {split: [str(path) for path in sorted(local.glob(f"{split}[.-]*parquet"))] for split in splits}
            if missing := [split for split in splits if not files[split]]:
                raise ValueError(f"{local} has no {missing}.parquet, only {sorted(p.name for p in local.iterdir())}.")
            data = datasets.load_dataset("parquet", data_files=files)
        else:
            data = _from_hub(str(source), self.config)
        data = datasets.DatasetDict({split: data[split] for split in splits})
        self.check(data)
        return data

    def check(self, data: datasets.DatasetDict) -> None:
        """Check that no split is empty, lacks a column or has rows without a text; subclasses check the labels too.

        Raises:
            ValueError: If one is or does.
        """
        for split, rows in data.items():
            missing = set(self.columns) - set(rows.column_names)
            if missing or not len(rows):
                where = f"{self.name}/{split}"
                raise ValueError(f"{where} needs rows with {[*self.columns]}; it lacks {missing or 'rows'}.")
            check_texts(rows, self.text, f"{self.name}/{split}", self.text_levels)

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """The tokens and labels of `rows`, unpadded. `datasets` caches them."""
        raise NotImplementedError

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Any]]:
        """The function that pads rows of `tokenize` to a batch."""
        return DataCollatorWithPadding(tokenizer)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that can select the model."""
        raise NotImplementedError

    def select_by(self, *metrics: str) -> "Task":
        """The task whose model is selected by the mean of other metrics.

        Args:
            metrics: Some of `metric_names`.

        Raises:
            ValueError: If one of them is not.
        """
        if unknown := [name for name in metrics if name not in self.metric_names]:
            raise ValueError(f"{self.name} is not scored by {unknown}: choose of {', '.join(self.metric_names)}.")
        return replace(self, selected_by=metrics)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """For `Trainer(compute_metrics=...)`: every metric, and `score`, which selects the model."""
        raise NotImplementedError

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
        """The `compute_metrics` of one data set; it is an `ExampleScorer` in some kinds of tasks.

        Args:
            rows: Rows of the task.
            tokens: `rows` after `tokenize`.
        """
        return self.compute_metrics

    def scored(self, values: dict[str, float]) -> dict[str, float]:
        """`values` and, as `score`, the mean of the metrics that select the model."""
        return values | {"score": float(np.mean([values[name] for name in self.selected_by]))}


def _from_hub(name: str, config: str | None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, config)
    except (FileNotFoundError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"Cannot load '{name}', neither a folder here nor from the Hub: {reason}") from error


def select_columns(data: datasets.DatasetDict, splits: Sequence[str], columns: Sequence[str]) -> datasets.DatasetDict:
    """These columns of these splits.

    Raises:
        TypeError: If the data is not a `DatasetDict` of data sets.
        ValueError: If a split or a column is missing.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"The data is {type(data).__name__}: pass a DatasetDict, as data.train_test_split(0.1) makes.")
    if missing := [split for split in splits if split not in data]:
        raise ValueError(f"The data has no split {missing}, only {list(data)}: name one with validation=.")
    if wrong := [split for split in splits if not isinstance(data[split], datasets.Dataset)]:
        kind = type(data[wrong[0]]).__name__
        raise TypeError(
            f"Split '{wrong[0]}' is {kind}: make a data set of it, for example by Dataset.from_list(rows)."
        )
    if repeated := {name for name in columns if [*columns].count(name) > 1}:
        raise ValueError(f"{sorted(repeated)} is named twice: a column is either text or labels.")
    present = data["train"].column_names
    if missing := [name for name in columns if name not in present]:
        raise ValueError(f"The data has no column {missing}, only {present}: name the columns of the task.")
    return datasets.DatasetDict({split: data[split].select_columns([*columns]) for split in splits})


def as_class_labels(data: datasets.DatasetDict, column: str) -> datasets.DatasetDict:
    """A column of strings, booleans or integers, of any width that Arrow has, as ClassLabels.

    Args:
        data: The splits.
        column: The name of the column. The classes are those of `train`: sorted strings, `False` and `True`, or
            `LABEL_0` to the largest integer.

    Raises:
        ValueError: If the column has another type, if a label is missing or negative, or if a split has a string that
            `train` has not.
    """
    feature = data["train"].features[column]
    dtype = str(getattr(feature, "dtype", feature))  # string, large_string or string_view, by what wrote the file
    if not isinstance(feature, datasets.Value) or not ("string" in dtype or "int" in dtype or dtype == "bool"):
        raise ValueError(f"'{column}' is of type {dtype}: give strings, booleans, integers, or floats to regress.")
    values = {split: set(rows.unique(column)) for split, rows in data.items()}
    for split, labels in values.items():
        if None in labels:
            row = data[split][column].index(None)
            raise ValueError(f"Row {row} of split '{split}' has no '{column}': remove rows without a label.")
    if dtype == "bool":
        names = ["False", "True"]
    elif "int" in dtype:
        names = numbered_labels(values["train"], column)
    else:
        names = sorted(values["train"])
        for split, labels in values.items():
            if unknown := sorted(labels - set(names)):
                raise ValueError(f"Split '{split}' has the labels {unknown}, which train has not.")
    plain = datasets.Value("string" if "string" in dtype else "int64")
    return data.cast_column(column, plain).cast_column(column, datasets.ClassLabel(names=names))


def check_label_ids(rows: datasets.Dataset, column: str, labels: tuple[str, ...], where: str) -> None:
    """Check that a column of label ids, or of lists of them, has no other names and ids than `labels`.

    Args:
        rows: Rows of a split.
        column: The name of the column.
        labels: The class names in the order of their ids.
        where: What messages call the split.

    Raises:
        ValueError: If the column has others.
    """
    feature = rows.features[column]
    lists = isinstance(feature, datasets.List)
    names = getattr(feature.feature if lists else feature, "names", None)
    if names and tuple(names) != labels:
        raise ValueError(
            f"{where} names its labels {names}, the task {list(labels)}, in this order: make the task of these rows "
            "(from_dataset), with labels= in the order of the task, or of the teacher's head (head_labels)."
        )
    values = {value for values in rows[column] for value in values} if lists else rows.unique(column)
    if unknown := set(values) - set(range(len(labels))):
        raise ValueError(
            f"{where} has the labels {sorted(unknown, key=str)} beside those of the task, 0 to {len(labels) - 1}: use "
            "a split that is labelled (the test splits of GLUE are not)."
        )
