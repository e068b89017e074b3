"""Token classification as in CoNLL-2003: words and their tags, a tag predicted at the first sub-word of each."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import datasets
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from .base import Task, check_label_ids, select_columns
from .metrics import entities, entity_scores

CHUNKS = ("B-", "I-", "E-", "L-", "S-", "U-")


@dataclass(frozen=True)
class TokenClassification(Task):
    """Words with a tag each: entities (IOB1, IOB2, IOBES) or parts of speech.

    - `text`: the column of words; `tags`: the column of their label ids; `labels`: the tags' names.
    - The model is selected by the F1 of entities, or by accuracy where the tags are none (`selected_by`).
    - `max_length` (512 tokens): what is longer is cut; the entities there count as missed.
    """

    auto_class: ClassVar[type] = AutoModelForTokenClassification
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
    ) -> tuple["TokenClassification", datasets.DatasetDict]:
        """The task of any data set with a `train` and `validation` splits, and its rows in that task's columns.

        The tags' names are those of lists of ClassLabels, or the sorted values of lists of strings in `train`. Raises
        ValueError for a split or a column it lacks, or tags without names.
        """
        validation = (validation,) if isinstance(validation, str) else tuple(validation)
        data = select_columns(data, ("train", *validation), (tokens, tags))
        column = data["train"].features[tags]
        feature = column.feature if isinstance(column, datasets.List) else None
        if feature == datasets.Value("string"):
            feature = datasets.ClassLabel(names=sorted({tag for row in data["train"][tags] for tag in row}))
            # shuffled rows are slices of one row each, which a cast takes minutes for
            data = data.flatten_indices().cast_column(tags, datasets.List(feature))
        if not isinstance(feature, datasets.ClassLabel):
            raise ValueError(f"'{tags}' is {column}: tags have to be lists of strings or of ClassLabels.")
        options = {"validation": validation, "tags": tags, "max_length": max_length}
        task = cls("task", (tokens,), tuple(feature.names), **options)
        task.check(data)
        return task, data

    @property
    def chunked(self) -> bool:
        """Whether the tags mark entities."""
        return all(label == "O" or label.startswith(CHUNKS) for label in self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """What rows must have."""
        return (*self.text, self.tags)

    @property
    def augmented(self) -> tuple[str, ...]:
        """None: raises ValueError, as replaced words might be entities of another kind."""
        raise ValueError("Tagged words are not augmented: leave augmentation out.")

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`; also raises ValueError for tags that are not the task's, or not one a word."""
        super().check(data)
        for split, rows in data.items():
            check_label_ids(rows, self.tags, self.labels, f"{self.name}/{split}")
            for index, (words, tags) in enumerate(zip(rows[self.text[0]], rows[self.tags], strict=True)):
                if len(words) != len(tags):
                    raise ValueError(
                        f"Row {index} of {self.name}/{split} has {len(words)} words and {len(tags)} tags."
                    )

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Tokens of the words joined by spaces, and `labels`: −100 but at the first token of a word; unpadded.

        Raises ValueError for a tokenizer without offsets (a slow one).
        """
        if not tokenizer.is_fast:
            raise ValueError("Token classification needs a fast tokenizer, which knows the characters of its tokens.")
        options = {"truncation": True, "max_length": min(self.max_length, tokenizer.model_max_length)}

        def encode(batch):
            # not is_split_into_words, which makes tokens without a leading space of RoBERTa's words
            texts = [" ".join(words) for words in batch[self.text[0]]]
            encoded = tokenizer(texts, return_offsets_mapping=True, **options)
            columns = batch[self.text[0]], batch[self.tags], encoded.pop("offset_mapping")
            return {**encoded, "labels": [list(_align(*row)) for row in zip(*columns, strict=True)]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenising {self.name}")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict[str, Any]]:
        """Pads tokens, and labels with −100."""
        return DataCollatorForTokenClassification(tokenizer)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy over words, precision, recall and F1 of entities where tags mark such, and `score`."""
        return self._scores(prediction)

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
        """`compute_metrics` with the entities that `max_length` has cut off counted as missed."""
        count = sum(len(entities([self.labels[tag] for tag in tags])) for tags in rows[self.tags])
        return lambda prediction: self._scores(prediction, count)

    def _scores(self, prediction: EvalPrediction, count: int | None = None) -> dict[str, float]:
        predicted, wanted = prediction.predictions.argmax(-1), prediction.label_ids
        values = {"accuracy": float((predicted == wanted)[wanted != -100].mean())}
        if self.chunked:
            tags = [
                [[self.labels[tag] for tag in row[of != -100]] for row, of in zip(ids, wanted, strict=True)]
                for ids in (predicted, wanted)
            ]
            values |= entity_scores(*tags, count)
        return self.scored(values)


def _align(words: Sequence[str], tags: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Iterator[int]:
    """For each token of `words` joined by spaces: the tag of the word that begins there, else −100."""
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    before = -1
    for start, end in offsets:
        # by its last character, as the first may be the space before; special tokens have none
        word = bisect_right(starts, end - 1) - 1 if end > start else before
        yield tags[word] if word > before else -100
        before = max(before, word)


def read_conll(path: str | Path) -> datasets.Dataset:
    """A CoNLL file, "word ... tag" a line and blank lines between sentences, as rows of `tokens` and `ner_tags`."""
    rows, words = [], []
    for line in [*Path(path).read_text(encoding="utf8").split("\n"), ""]:
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            words.append((fields[0], fields[-1]))
        elif words:
            rows.append([list(column) for column in zip(*words, strict=True)])
            words = []
    strings = datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": strings, "ner_tags": strings})
    return datasets.Dataset.from_dict(dict(zip(features, zip(*rows, strict=True), strict=True)), features=features)
