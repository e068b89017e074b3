"""Tasks, among them the nine of GLUE: columns, labels, metrics; how each is loaded, tokenised and scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .compatibility import check_label_names
from .loading import from_pretrained, load_config
from .metrics import F1, Accuracy, MatthewsCorrelation, Pearson, Spearman


@dataclass(frozen=True)
class Task:
    """A sentence or sentence-pair task.

    - `text`: the one or two columns of text. `labels`: class names in the order of the label ids; () for regression.
    - `metrics`: `evaluate.Metric` classes; the model is selected by the mean of those named in `selected_by`.
    - `max_length`: tokens; default the paper's 64 for sentences and 128 for pairs.
    - `validation`: names of the validation splits, the one that selects first.
    """

    name: str
    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[type, ...] = (Accuracy,)
    selected_by: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_length: int | None = None

    def __post_init__(self):
        if self.max_length is None:
            object.__setattr__(self, "max_length", 64 * len(self.text))

    @classmethod
    def of(
        cls,
        data: datasets.DatasetDict,
        text: Sequence[str] = ("text",),
        label: str = "label",
        validation: str = "validation",
        max_length: int | None = None,
    ) -> tuple["Task", datasets.DatasetDict]:
        """The task of any data set with a `train` and a `validation` split, and its rows in that task's columns.

        Classes are those of a ClassLabel column, the sorted values of a column of strings, or numbers without names;
        floats make it a regression, scored by its correlations. Raises ValueError for a split or a column it lacks.
        """
        splits = ("train", validation)
        if missing := [split for split in splits if split not in data]:
            raise ValueError(f"The data has no split {missing}, only {list(data)}: name one with validation=.")
        columns = data["train"].column_names
        if missing := [name for name in (*text, label) if name not in columns]:
            raise ValueError(f"The data has no column {missing}, only {columns}: name them with text= and label=.")
        data = datasets.DatasetDict({split: data[split].select_columns([*text, label]) for split in splits})
        data = data if label == "label" else data.rename_column(label, "label")
        feature = data["train"].features["label"]
        if not isinstance(feature, datasets.ClassLabel) and feature.dtype.startswith("float"):
            kind = {"labels": (), "metrics": (Pearson, Spearman), "selected_by": (Pearson.name, Spearman.name)}
        else:
            if not isinstance(feature, datasets.ClassLabel):
                values = sorted(data["train"].unique("label"))
                names = values if feature.dtype == "string" else [f"LABEL_{index}" for index in range(1 + values[-1])]
                data = data.cast_column("label", datasets.ClassLabel(names=names))
            kind = {"labels": tuple(data["train"].features["label"].names)}
        task = cls("task", tuple(text), **kind, validation=(validation,), max_length=max_length)
        for split, rows in data.items():
            task._check(rows, split)
        return task, data

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def head(self) -> dict:
        """What `AutoModelForSequenceClassification.from_pretrained` needs to make a head for the task."""
        if self.regression:
            return {"num_labels": 1, "problem_type": "regression"}
        return {"id2label": dict(enumerate(self.labels)), "label2id": {n: i for i, n in enumerate(self.labels)}}

    def check_labels(self, name_or_path: str | Path) -> None:
        """Raise ValueError where a model, by Hub id or folder, has a head with other labels than the task."""
        config = load_config(name_or_path)
        if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
            check_label_names(dict(enumerate(self.labels or ["LABEL_0"])), config.id2label, "task")

    def load_model(self, name_or_path: str | Path) -> tuple[PreTrainedModel, bool]:
        """The sequence classifier of a Hub id or folder, and whether its head is new and untrained; `check_labels`."""
        self.check_labels(name_or_path)
        model, loading = from_pretrained(
            AutoModelForSequenceClassification, name_or_path, **self.head, output_loading_info=True
        )
        return model, bool(loading["missing_keys"])

    def load(self, source: str | Path = "nyu-mll/glue") -> datasets.DatasetDict:
        """The splits with labels, from a Hub id or from a folder that has one folder a task, in the Hub's columns.

        Raises ValueError where a split, a column or a label is not as the task has it.
        """
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
            data = datasets.load_dataset(str(source), self.name)
        data = datasets.DatasetDict({split: data[split] for split in splits})
        for split, rows in data.items():
            self._check(rows, split)
        return data

    def _check(self, rows: datasets.Dataset, split: str) -> None:
        where = f"{self.name}/{split}"
        missing = {*self.text, "label"} - set(rows.column_names)
        if missing or not len(rows):
            raise ValueError(f"{where} needs rows with {[*self.text, 'label']}; it lacks {missing or 'rows'}.")
        if self.regression:
            return
        names = getattr(rows.features["label"], "names", None)
        if names and tuple(names) != self.labels:
            raise ValueError(f"{where} names its labels {names}, the task {list(self.labels)}, in this order.")
        unknown = set(rows.unique("label")) - set(range(len(self.labels)))
        if unknown:
            raise ValueError(
                f"{where} has the labels {sorted(unknown, key=str)} beside those of the task, 0 to "
                f"{len(self.labels) - 1}: use a split that is labelled (the test splits of GLUE are not)."
            )

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens and `labels`, cut to `max_length`, unpadded; cached by `datasets`."""

        def encode(batch):
            encoded = tokenizer(*(batch[name] for name in self.text), truncation=True, max_length=self.max_length)
            return {**encoded, "labels": [float(y) if self.regression else y for y in batch["label"]]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """For `Trainer(compute_metrics=...)`: every metric, and the mean of those that select as `score`."""
        logits = prediction.predictions
        predictions = np.squeeze(logits, -1) if self.regression else logits.argmax(-1)
        values: dict[str, float] = {}
        for metric in self.metrics:
            values |= metric(keep_in_memory=True).compute(predictions=predictions, references=prediction.label_ids)
        return values | {"score": float(np.mean([values[name] for name in self.selected_by]))}


ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
GLUE = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), (MatthewsCorrelation,), ("matthews_correlation",)),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("mrpc", PAIR, ("not_equivalent", "equivalent"), (Accuracy, F1)),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), (Accuracy, F1)),
        Task("stsb", PAIR, (), (Pearson, Spearman), ("pearson", "spearman")),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation=("validation_matched", "validation_mismatched"),
        ),
        Task("qnli", ("question", "sentence"), ENTAILMENT),
        Task("rte", PAIR, ENTAILMENT),
        Task("wnli", PAIR, ("not_entailment", "entailment")),
    )
}
