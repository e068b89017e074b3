"""Extractive question answering as in SQuAD 1.1 and 2.0: windows of tokens, answers from logits, EM and F1."""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from transformers import AutoModelForQuestionAnswering, EvalPrediction, PreTrainedTokenizerBase

from .base import Task

OUTSIDE = (-1, -1)  # the offsets of a token that no answer may begin or end at
ANSWERS = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int64"))}


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Questions whose answer is a span of a context, in SQuAD's columns: `id`, `question`, `context`, `answers`.

    - `answerable`: whether every question has an answer (SQuAD 1.1); otherwise (2.0) the empty one is predicted where
      its score is above the best span's.
    - A context longer than `max_length` (384 tokens, question included) is read in windows that overlap by `stride`
      (128). `max_answer_length` (30 tokens) and `n_best` (20 starts and ends looked at) are the original BERT's.
    """

    auto_class: ClassVar[type] = AutoModelForQuestionAnswering
    evaluation_arguments: ClassVar[dict[str, Any]] = {"include_for_metrics": ["inputs"]}
    text: tuple[str, ...] = ("question", "context")
    selected_by: tuple[str, ...] = ("f1",)
    max_length: int = 384
    stride: int = 128
    answerable: bool = True
    max_answer_length: int = 30
    n_best: int = 20

    @property
    def columns(self) -> tuple[str, ...]:
        """What rows must have."""
        return ("id", *self.text, "answers")

    @property
    def head(self) -> dict[str, Any]:
        """Two logits a token: that of a start and that of an end."""
        return {"num_labels": 2}

    @property
    def augmented(self) -> tuple[str, ...]:
        """Contexts alone; answers that are still in them are found again by their text."""
        return self.text[1:]

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Windows: tokens, `start_positions` and `end_positions` (0, the first token, where the window has no answer),
        `row`, the question that it belongs to, and `offsets`, characters of the context, (−1, −1) elsewhere.

        Raises ValueError for a tokenizer without offsets (a slow one).
        """
        if not tokenizer.is_fast:
            raise ValueError("Question answering needs a fast tokenizer, which knows the characters of its tokens.")
        size = min(self.max_length, tokenizer.model_max_length)
        options = {"with_indices": True, "batched": True, "remove_columns": rows.column_names}
        encode = partial(_windows, tokenizer=tokenizer, text=self.text, max_length=size, stride=self.stride)
        return rows.map(encode, **options, desc=f"Tokenising {self.name}")

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
        """EM and F1 in percent for `Trainer(compute_metrics=...)`, of `tokens`, the windows of `rows`.

        Windows are found by their tokens, since Trainer may evaluate in another order: the prediction must hold its
        inputs (`include_for_metrics=["inputs"]`), or ValueError is raised.
        """
        windows = tokens["input_ids"]
        separator = windows[0][-1]  # what every window ends with, before the padding

        def score(prediction: EvalPrediction) -> dict[str, float]:
            if prediction.inputs is None:
                raise ValueError("Question answering is scored with include_for_metrics=['inputs'] in the arguments.")
            found = {_key(ids, separator): index for index, ids in enumerate(prediction.inputs)}
            order = [found[_key(ids, separator)] for ids in windows]
            start, end = (np.asarray(logits)[order] for logits in prediction.predictions[:2])
            answers = self.answers(rows, tokens, start, end)
            best = [candidates[0]["text"] if candidates else "" for candidates in answers]
            return self.scored(squad_scores(best, [answer["text"] for answer in rows["answers"]]))

        return score

    def answers(
        self, rows: datasets.Dataset, tokens: datasets.Dataset, start_logits: np.ndarray, end_logits: np.ndarray
    ) -> list[list[dict[str, Any]]]:
        """The `n_best` answers of each question, best first: `text`, `score` (sum of two logits), `start` (character).

        Logits are (number of windows, S). The empty answer, where questions may have none, is scored by the first
        token, in the window where that is lowest, as in BERT's code for SQuAD 2.0.
        """
        answers: list[list[dict[str, Any]]] = [[] for _ in range(len(rows))]
        empty = [float("inf")] * len(rows)
        contexts = rows[self.text[1]]
        for window, start, end in zip(
            tokens.select_columns(["row", "offsets"]), start_logits, end_logits, strict=True
        ):
            row, offsets = window["row"], np.asarray(window["offsets"])
            empty[row] = min(empty[row], float(start[0] + end[0]))
            for score, first, last in _best_spans(start, end, offsets, self.n_best, self.max_answer_length):
                text = contexts[row][offsets[first, 0] : offsets[last, 1]]
                answers[row].append({"text": text, "score": score, "start": int(offsets[first, 0])})
        if not self.answerable:
            for candidates, score in zip(answers, empty, strict=True):
                candidates.append({"text": "", "score": score, "start": -1})
        return [sorted(found, key=lambda answer: -answer["score"])[: self.n_best] for found in answers]


def _key(ids: Sequence[int], separator: int) -> bytes:
    """The same for the same tokens, however padded."""
    ids = np.asarray(ids, "i8")
    return ids[: 1 + np.flatnonzero(ids == separator)[-1]].tobytes()


def _windows(batch, indices, tokenizer, text, max_length: int, stride: int) -> dict[str, list]:
    questions = [question.lstrip() for question in batch[text[0]]]  # some begin with many spaces, which only take room
    encoded = tokenizer(
        questions,
        batch[text[1]],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    sources, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    columns: dict[str, list] = {"start_positions": [], "end_positions": [], "row": [], "offsets": []}
    for index, (source, spans) in enumerate(zip(sources, offsets, strict=True)):
        inside = np.asarray([part == 1 for part in encoded.sequence_ids(index)])
        spans = np.where(inside[:, None], np.asarray(spans), OUTSIDE)
        first, last = _answer_tokens(batch["answers"][source], batch[text[1]][source], spans)
        values = (first, last, indices[source], spans.tolist())
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return {**encoded, **columns}


def _answer_tokens(answers: Mapping[str, Sequence], context: str, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of the first answer; (0, 0) where there is none, or not wholly in this window."""
    if not answers["text"]:
        return 0, 0
    text, start = answers["text"][0], answers["answer_start"][0]
    if context[start : start + len(text)] != text:  # words before it were replaced (augmentation)
        start = context.find(text)
    end = start + len(text)
    inside = offsets[:, 0] >= 0
    if start < 0 or not inside.any() or offsets[inside][0, 0] > start or offsets[inside][-1, 1] < end:
        return 0, 0
    tokens = np.flatnonzero(inside & (offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (0, 0)


def _best_spans(start, end, offsets, n_best: int, max_length: int) -> list[tuple[float, int, int]]:
    """(score, first, last token) of the valid spans among the `n_best` starts and ends, best first."""
    start, end = (np.where(offsets[:, 0] >= 0, logits[: len(offsets)], -np.inf) for logits in (start, end))
    firsts, lasts = (np.argsort(-logits)[:n_best] for logits in (start, end))
    scores = start[firsts][:, None] + end[lasts]
    length = lasts - firsts[:, None] + 1
    scores[(length < 1) | (length > max_length)] = -np.inf
    order = np.argsort(-scores, axis=None)[:n_best]
    spans = [(scores[i, j], firsts[i], lasts[j]) for i, j in zip(*np.unravel_index(order, scores.shape), strict=True)]
    return [(float(score), int(first), int(last)) for score, first, last in spans if np.isfinite(score)]


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous spaces (official SQuAD evaluation)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the bags of words after `normalize_answer`; where either is empty, 1 if both are, else 0."""
    ours, theirs = (normalize_answer(text).split() for text in (prediction, answer))
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` in percent, the best over the answers of each question; none means the empty answer.

    Rajpurkar et al. (2016), section 6.1, and the official evaluation scripts of SQuAD 1.1 and 2.0.
    """
    golds = [[gold for gold in golds if normalize_answer(gold)] or [""] for golds in answers]
    return {
        name: 100 * float(np.mean([max(map(partial(value, ours), theirs)) for ours, theirs in pairs]))
        for name, value in (("exact_match", exact_match), ("f1", token_f1))
        for pairs in [list(zip(predictions, golds, strict=True))]
    }


def read_squad(path: str | Path) -> datasets.Dataset:
    """SQuAD's JSON file (1.1 or 2.0) as rows of `id`, `question`, `context`, `answers`."""
    rows = [
        {
            "id": question["id"],
            "question": question["question"],
            "context": paragraph["context"],
            "answers": {key: [answer[key] for answer in question["answers"]] for key in ANSWERS},
        }
        for article in json.loads(Path(path).read_text(encoding="utf8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    features = {name: datasets.Value("string") for name in ("id", "question", "context")} | {"answers": ANSWERS}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


SQUAD = QuestionAnswering("squad", source="rajpurkar/squad")
SQUAD_V2 = QuestionAnswering("squad_v2", answerable=False, source="rajpurkar/squad_v2")
