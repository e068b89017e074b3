"""What every task is: columns of text and labels, the head that it needs, how rows are tokenised, collated, scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..models.checks import check_label_names
from ..models.loading import from_pretrained, load_config


@dataclass(frozen=True)
class Task:
    """What kinds of tasks share; each gives its `auto_class`, `columns`, `tokenize` and `compute_metrics`.

    - `text`: columns of text. `labels`: class names in the order of their ids; () where the head has no classes.
    - `selected_by`: the metrics whose mean, `score`, selects the model.
    - `validation`: names of the validation splits, the one that selects first.
    - `source`: the Hub id of its data, and `config` the configuration there.
    """

    name: str
    text: tuple[str, ...]
    labels: tuple[str, ...] = ()
    selected_by: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    source: str | None = None
    config: str | None = None

    auto_class: ClassVar[type]
    evaluation_arguments: ClassVar[dict[str, Any]] = {}  # Trainer's, that `scorer` needs

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

    def check_labels(self, name_or_path: str | Path) -> None:
        """Raise ValueError where a model, by Hub id or folder, has a head with other labels than the task."""
        config = load_config(name_or_path)
        suffix = self.auto_class.__name__.removeprefix("AutoModel")
        if "id2label" in self.head and any(name.endswith(suffix) for name in config.architectures or ()):
            check_label_names(self.head["id2label"], config.id2label, "task")

    def load_model(self, name_or_path: str | Path) -> tuple[PreTrainedModel, bool]:
        """The model of a Hub id or folder, and whether its head is new and untrained; `check_labels`."""
        self.check_labels(name_or_path)
        model, loading = from_pretrained(self.auto_class, name_or_path, **self.head, output_loading_info=True)
        return model, bool(loading["missing_keys"])

    def load(self, source: str | Path | None = None) -> datasets.DatasetDict:
        """The splits with labels, from a Hub id (default `source`) or a folder that has one folder a task, in the
        Hub's columns.

        Raises ValueError where a split, a column or a label is not as the task has it.
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
            data = datasets.load_dataset(str(source), self.config)
        data = datasets.DatasetDict({split: data[split] for split in splits})
        self.check(data)
        return data

    def check(self, data: datasets.DatasetDict) -> None:
        """Raise ValueError where a split is empty or lacks a column; subclasses look at its labels too."""
        for split, rows in data.items():
            missing = set(self.columns) - set(rows.column_names)
            if missing or not len(rows):
                where = f"{self.name}/{split}"
                raise ValueError(f"{where} needs rows with {[*self.columns]}; it lacks {missing or 'rows'}.")

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens and labels, unpadded; cached by `datasets`."""
        raise NotImplementedError

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Any]]:
        """Pads rows of `tokenize` to a batch."""
        return DataCollatorWithPadding(tokenizer)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """For `Trainer(compute_metrics=...)`: every metric, and `score`, by which the model is selected."""
        raise NotImplementedError

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
        """`compute_metrics` on `tokens`, which are `rows` tokenised, for tasks that look at these."""
        return self.compute_metrics

    def scored(self, values: dict[str, float]) -> dict[str, float]:
        """`values` and the mean of those that select as `score`."""
        return values | {"score": float(np.mean([values[name] for name in self.selected_by]))}


def select_columns(data: datasets.DatasetDict, splits: Sequence[str], columns: Sequence[str]) -> datasets.DatasetDict:
    """These columns of these splits. Raises ValueError where one is missing."""
    if missing := [split for split in splits if split not in data]:
        raise ValueError(f"The data has no split {missing}, only {list(data)}: name one with validation=.")
    present = data["train"].column_names
    if missing := [name for name in columns if name not in present]:
        raise ValueError(f"The data has no column {missing}, only {present}: name the columns of the task.")
    return datasets.DatasetDict({split: data[split].select_columns([*columns]) for split in splits})


def check_label_ids(rows: datasets.Dataset, column: str, labels: tuple[str, ...], where: str) -> None:
    """Raise ValueError where a column of label ids, or of lists of them, is not that of `labels`."""
    feature = rows.features[column]
    lists = isinstance(feature, datasets.List)
    names = getattr(feature.feature if lists else feature, "names", None)
    if names and tuple(names) != labels:
        raise ValueError(f"{where} names its labels {names}, the task {list(labels)}, in this order.")
    values = {value for values in rows[column] for value in values} if lists else rows.unique(column)
    if unknown := set(values) - set(range(len(labels))):
        raise ValueError(
            f"{where} has the labels {sorted(unknown, key=str)} beside those of the task, 0 to {len(labels) - 1}: use "
            "a split that is labelled (the test splits of GLUE are not)."
        )
