"""Token classification as in CoNLL-2003: words with tags; the tag of a word is predicted at its first token."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from ..models.row_checks import blocks
from .base import ExampleScorer, Task, check_label_ids, select_columns
from .column_checks import check_column
from .labels import align_labels, as_class_label_lists
from .metrics import entities, entity_counts, entity_rates

CHUNKS = ("B-", "I-", "E-", "L-", "S-", "U-")


@dataclass(frozen=True)
class TokenClassification(Task):
    """A tag for each word: entities (IOB1, IOB2, IOBES) or parts of speech.

    Attributes:
        text: The column of words, lists of strings.
        labels: The names of the tags in the order of their ids.
        selected_by: The metrics that select the model; default the F1 of entities, or accuracy if the tags mark none.
        tags: The column of tags, lists of ids.
        max_length: Tokens of a row, at most (default 512). Longer rows are truncated; `scorer` counts the entities
            that this removes as missed.
    """

    auto_class: ClassVar[type] = AutoModelForTokenClassification
    text_levels: ClassVar[int] = 1
    text: tuple[str, ...] = ("tokens",)
    selected_by: tuple[str, ...] | None = None
    tags: str = "ner_tags"
    max_length: int = 512

    def __post_init__(self):
        if self.selected_by is None:
            object.__setattr__(self, "selected_by", ("f1",) if self.chunked else ("accuracy",))

    @classmethod
    def from_dataset(
        cls,
        data: datasets.DatasetDict,
        tokens: str = "tokens",
        tags: str = "ner_tags",
        validation: str | Sequence[str] = "validation",
        max_length: int = 512,
        labels: Sequence[str] | None = None,
    ) -> tuple["TokenClassification", datasets.DatasetDict]:
        """The task of any data set.

        The names of the tags are those of lists of ClassLabels, or the sorted values of lists of strings in `train`.

        Args:
            data: Splits `train` and `validation`.
            tokens: The column of words.
            tags: The column of tags.
            validation: The name, or names, of the validation splits.
            max_length: Tokens of a row, at most.
            labels: The names of the tags in the order of their ids, such as those of a trained teacher
                (`head_labels`), to which the tags of the rows are matched; default those of the rows.

        Returns:
            The task and its rows, in the columns of the task.

        Raises:
            ValueError: If a split or a column is missing, or the tags have no names or others than `labels`.
        """
        validation = (validation,) if isinstance(validation, str) else tuple(validation)
        data = select_columns(data, ("train", *validation), (tokens, tags))
        for split, rows in data.items():
            check_column(rows, tags, f"split '{split}'", kind="a list of strings or of ClassLabels", levels=1)
        column = data["train"].features[tags]
        feature = column.feature if isinstance(column, datasets.List | datasets.LargeList) else None
        strings = isinstance(feature, datasets.Value) and "string" in feature.dtype
        numbers = isinstance(feature, datasets.Value) and "int" in feature.dtype and labels is not None
        if not (isinstance(feature, datasets.ClassLabel) or strings or numbers):
            raise ValueError(f"'{tags}' is {column}: tags have to be lists of strings or of ClassLabels.")
        data = as_class_label_lists(data, tags)
        data = data if labels is None else align_labels(data, tags, labels)
        labels = tuple(data["train"].features[tags].feature.names)
        task = cls("task", (tokens,), labels, validation=validation, tags=tags, max_length=max_length)
        task.check(data)
        return task, data

    @property
    def chunked(self) -> bool:
        """Whether the tags mark entities."""
        return all(label == "O" or label.startswith(CHUNKS) for label in self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return (*self.text, self.tags)

    @property
    def augmented(self) -> tuple[str, ...]:
        """Raises ValueError: a replaced word might be an entity of another kind."""
        raise ValueError("Tagged words are not augmented: leave augmentation out.")

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`, which here also raises ValueError for other tags, or not one tag for each word."""
        super().check(data)
        for split, rows in data.items():
            check_column(rows, self.tags, f"{self.name}/{split}", kind="a list of strings or of ClassLabels", levels=1)
            check_label_ids(rows, self.tags, self.labels, f"{self.name}/{split}")
            for start, table in blocks(rows, self.columns, every=True):
                words, tags = (pc.list_value_length(table[name]).to_numpy() for name in self.columns)
                if len(wrong := np.flatnonzero(words != tags)):
                    row = wrong[0]
                    raise ValueError(
                        f"Row {start + row} of {self.name}/{split} has {words[row]} words and {tags[row]} tags."
                    )

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens of the words joined by spaces, and `labels`, unpadded: a word's tag at its first token, else −100.

        Raises:
            ValueError: For a slow tokenizer, which has no offsets.
        """
        if not tokenizer.is_fast:
            raise ValueError("Token classification needs a fast tokenizer, which knows the characters of its tokens.")
        max_length = min(self.max_length, tokenizer.model_max_length)

        def encode(batch):
            # not is_split_into_words, which makes tokens without a leading space of RoBERTa's words
            texts = [" ".join(words) for words in batch[self.text[0]]]
            encoded = tokenizer(texts, return_offsets_mapping=True, truncation=True, max_length=max_length)
            rows = zip(batch[self.text[0]], batch[self.tags], encoded.pop("offset_mapping"), strict=True)
            return {**encoded, "labels": [list(_align(*row)) for row in rows]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Any]]:
        """The function that pads tokens, and labels with −100."""
        return DataCollatorForTokenClassification(tokenizer)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Accuracy over words, and the rates of entities if the tags mark some."""
        return ("accuracy", "precision", "recall", "f1") if self.chunked else ("accuracy",)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy over words, then precision, recall and F1 of entities if the tags mark some, and `score`."""
        return TagScorer(self)(prediction)

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> "TagScorer":
        """`compute_metrics` that counts the entities which `max_length` has removed as missed.

        Args:
            rows: Rows of the task.
            tokens: `rows` after `tokenize`.
        """
        there, left = (
            sum(len(entities(self.tag_names(tags))) for tags in column)
            for column in (rows[self.tags], tokens["labels"])
        )
        return TagScorer(self, there - left)

    def tag_names(self, ids: Sequence[int]) -> list[str]:
        """The names of a sequence of tags, without those that are −100."""
        return [self.labels[index] for index in ids if index != -100]


@dataclass(frozen=True)
class TagScorer(ExampleScorer):
    """The metrics of a `TokenClassification`, from counts of each sentence.

    Attributes:
        task: The task.
        missed: The number of entities that are not in the rows since `max_length` has removed them.
    """

    task: TokenClassification
    missed: int = 0

    def score_examples(self, prediction: EvalPrediction) -> np.ndarray:
        """(rows, 5): correct words, words, then correct, predicted and reference entities of each row."""
        predicted, wanted = prediction.predictions.argmax(-1), prediction.label_ids
        real = wanted != -100
        counts = np.zeros((len(wanted), 5), dtype=int)
        counts[:, 0], counts[:, 1] = ((predicted == wanted) & real).sum(-1), real.sum(-1)
        if self.task.chunked:
            for row, words in enumerate(real):
                tags = (self.task.tag_names(ids[row, words]) for ids in (predicted, wanted))
                counts[row, 2:] = entity_counts(*tags)
        return counts

    def summarise(self, examples: np.ndarray) -> dict[str, float]:
        """Accuracy, and precision, recall and F1 of entities, of the sums of the counts."""
        correct, words, *entity_sums = examples.sum(0)
        values = {"accuracy": float(correct / words)}
        if self.task.chunked:
            right, predicted, wanted = entity_sums
            values |= entity_rates(right, predicted, wanted + self.missed)
        return self.task.scored(values)


def _align(words: Sequence[str], tags: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The labels of the tokens of `words` joined by spaces: the tag of the word that begins there, else −100."""
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    before = -1
    for start, end in offsets:
        # by its last character, as the first may be the space before; special tokens have none
        word = bisect_right(starts, end - 1) - 1 if end > start else before
        yield tags[word] if word > before else -100
        before = max(before, word)


def read_conll(path: str | Path) -> datasets.Dataset:
    """Read a CoNLL file: a line for each word, which comes first, its tag last; blank lines between sentences.

    Args:
        path: The file.

    Returns:
        Rows of `tokens` and `ner_tags`, lists of strings.
    """
    rows, words = [], []
    for line in [*Path(path).read_text(encoding="utf8").split("\n"), ""]:
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            words.append((fields[0], fields[-1]))
        elif words:
            tokens, tags = zip(*words, strict=True)
            rows.append({"tokens": list(tokens), "ner_tags": list(tags)})
            words = []
    strings = datasets.List(datasets.Value("string"))
    return datasets.Dataset.from_list(rows, features=datasets.Features(tokens=strings, ner_tags=strings))
