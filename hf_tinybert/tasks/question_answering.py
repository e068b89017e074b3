"""Extractive question answering as in SQuAD 1.1 and 2.0: windows of tokens, answers from logits, EM and F1."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import datasets
import numpy as np
from transformers import AutoModelForQuestionAnswering, EvalPrediction, PreTrainedTokenizerBase

from .base import ExampleScorer, Task, select_columns
from .column_checks import check_answers
from .row_order import INPUTS, row_order
from .squad_format import ANSWERS, answer_lists

OUTSIDE = (-1, -1)  # the offsets of a token at which no answer begins or ends


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Questions whose answer is a span of a context, in SQuAD's columns: `id`, `question`, `context`, `answers`.

    A question with a long context becomes several rows of tokens, windows that overlap. The defaults are those of the
    original BERT.

    Attributes:
        text: The columns of the question and the context.
        max_length: Tokens of a window, question included (default 384).
        stride: Tokens that neighbouring windows share (default 128).
        answerable: Whether every question has an answer (SQuAD 1.1, default). Otherwise (SQuAD 2.0) the empty answer
            is predicted if its score is above that of the best span.
        max_answer_length: Tokens of a predicted answer, at most (default 30).
        n_best: The number of starts, ends and answers that are considered (default 20).
    """

    auto_class: ClassVar[type] = AutoModelForQuestionAnswering
    evaluation_arguments: ClassVar[dict[str, Any]] = INPUTS
    text: tuple[str, ...] = ("question", "context")
    selected_by: tuple[str, ...] = ("f1",)
    max_length: int = 384
    stride: int = 128
    answerable: bool = True
    max_answer_length: int = 30
    n_best: int = 20

    @classmethod
    def from_dataset(
        cls,
        data: datasets.DatasetDict,
        text: Sequence[str] = ("question", "context"),
        answers: str = "answers",
        validation: str = "validation",
        max_length: int = 384,
    ) -> tuple["QuestionAnswering", datasets.DatasetDict]:
        """The task of any data set with SQuAD's columns; questions without an answer make it one of SQuAD 2.0.

        Args:
            data: Splits `train` and `validation`.
            text: The columns of the question and the context.
            answers: The column of the answers of a question: `text` and `answer_start` as two lists, a list of
                answers that have both, or one answer. The column `id` may be missing.
            validation: The name of the validation split.
            max_length: Tokens of a window, question included. Windows share at most a third of it.

        Returns:
            The task and its rows, in the columns of the task.

        Raises:
            ValueError: If a split or a column is missing, or for answers of another form.
        """
        if len(text) != 2:
            raise ValueError(f"Question answering reads a question and a context: name two columns, not {[*text]}.")
        data = select_columns(data, ("train", validation), (*text, answers))
        data = data if answers == "answers" else data.rename_column(answers, "answers")
        feature = data["train"].features["answers"]
        parts = getattr(feature, "feature", feature)  # of one answer, if the answers are a list
        if not isinstance(parts, dict) or not {*ANSWERS} <= {*parts}:
            raise ValueError(f"'{answers}' is {feature}: give the text and the answer_start of each answer.")

        def squad(row: dict[str, Any], index: int) -> dict[str, Any]:
            return {"id": str(index), "answers": answer_lists(row["answers"])}

        features = datasets.Features({"id": datasets.Value("string"), **data["train"].features, "answers": ANSWERS})
        data = data.map(squad, with_indices=True, features=features, desc="Reading answers")
        answerable = all(answer["text"] for rows in data.values() for answer in rows["answers"][:])
        task = cls(
            "task",
            tuple(text),
            validation=(validation,),
            max_length=max_length,
            stride=min(cls.stride, max_length // 3),
            answerable=answerable,
        )
        task.check(data)
        return task, data

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return ("id", *self.text, "answers")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Exact match and F1."""
        return ("exact_match", "f1")

    @property
    def head(self) -> dict[str, Any]:
        """Two logits for each token, of a start and of an end."""
        return {"num_labels": 2}

    @property
    def augmented(self) -> tuple[str, ...]:
        """The context alone. `tokenize` finds an answer that is still in it by its text."""
        return self.text[1:]

    def check(self, data: datasets.DatasetDict) -> None:
        """`Task.check`, which here also raises ValueError for answers of another form."""
        super().check(data)
        for split, rows in data.items():
            check_answers(rows, "answers", self.text[1], f"{self.name}/{split}")

    def tokenize(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """The windows of all questions, unpadded.

        Returns:
            Tokens; `start_positions` and `end_positions`, 0 if the answer is not in the window; `row`, the index of
            the question; `offsets`, the characters of the context that each token covers, (−1, −1) for other tokens.

        Raises:
            ValueError: For a slow tokenizer, which has no offsets.
        """
        if not tokenizer.is_fast:
            raise ValueError("Question answering needs a fast tokenizer, which knows the characters of its tokens.")
        size = min(self.max_length, tokenizer.model_max_length)
        return rows.map(
            partial(_windows, tokenizer=tokenizer, text=self.text, max_length=size, stride=self.stride),
            with_indices=True,
            batched=True,
            remove_columns=rows.column_names,
            desc=f"Tokenising {self.name}",
        )

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> "SpanScorer":
        """Exact match and F1 in percent, for `Trainer(compute_metrics=...)` with `evaluation_arguments`.

        Args:
            rows: Rows of the task.
            tokens: `rows` after `tokenize`, the windows.
        """
        return SpanScorer(self, rows, tokens)

    def answers(
        self, rows: datasets.Dataset, tokens: datasets.Dataset, start_logits: np.ndarray, end_logits: np.ndarray
    ) -> list[list[dict[str, Any]]]:
        """The best answers of each question, at most `n_best`, best first.

        Without `answerable` the empty answer is one of them. Its score is that of the first token, in the window with
        the lowest one, as in BERT's code for SQuAD 2.0.

        Args:
            rows: Rows of the task.
            tokens: `rows` after `tokenize`, the windows.
            start_logits: (windows, S).
            end_logits: (windows, S).

        Returns:
            For each question, dictionaries of `text`, `score` (sum of two logits) and `start` (character; −1 for the
            empty answer).
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
        return [sorted(candidates, key=lambda answer: -answer["score"])[: self.n_best] for candidates in answers]


class SpanScorer(ExampleScorer):
    """The metrics of a `QuestionAnswering`, from exact match and F1 of each question.

    Trainer may evaluate windows in another order, so that they are recognised by their tokens: the prediction must
    hold its inputs.

    Args:
        task: The task.
        rows: Rows of the task.
        tokens: `rows` after `tokenize`, the windows.
    """

    def __init__(self, task: QuestionAnswering, rows: datasets.Dataset, tokens: datasets.Dataset):
        self.task, self.rows, self.tokens = task, rows, tokens

    def score_examples(self, prediction: EvalPrediction) -> np.ndarray:
        """(questions, 2): exact match and F1 of the best answer to each question, 0 to 1.

        Raises:
            ValueError: If the prediction does not hold its inputs.
        """
        order = row_order(prediction, self.tokens["input_ids"])
        start, end = (np.asarray(logits)[order] for logits in prediction.predictions[:2])
        candidates = self.task.answers(self.rows, self.tokens, start, end)
        best = [answers[0]["text"] if answers else "" for answers in candidates]
        return question_scores(best, [answer["text"] for answer in self.rows["answers"]])

    def summarise(self, examples: np.ndarray) -> dict[str, float]:
        """`exact_match`, `f1` and `score`, in percent."""
        return self.task.scored(_percentages(examples))


def _check_room(questions: list[str], indices: list[int], tokenizer, max_length: int, stride: int) -> None:
    """Check that each window has more room than what it shares with the one before; the tokenizer panics otherwise."""
    lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - lengths[longest]
    if room <= stride:
        raise ValueError(
            f"Row {indices[longest]}: its question has {lengths[longest]} tokens and leaves {max(room, 0)} of "
            f"max_length={max_length} to the context, not more than stride={stride}: raise max_length or lower stride."
        )


def _windows(batch, indices, tokenizer, text, max_length: int, stride: int) -> dict[str, list]:
    questions = [question.lstrip() for question in batch[text[0]]]  # some begin with many spaces, which only take room
    _check_room(questions, indices, tokenizer, max_length, stride)
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
    """First and last token of the first answer; (0, 0) if there is none or it is not completely in this window."""
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
    """Lower case without punctuation, English articles and repeated spaces, as in SQuAD's official evaluation."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the bags of words after `normalize_answer`; 1 if both are empty, 0 if one is."""
    predicted_words, answer_words = (normalize_answer(text).split() for text in (prediction, answer))
    if not predicted_words or not answer_words:
        return float(predicted_words == answer_words)
    common = sum((Counter(predicted_words) & Counter(answer_words)).values())
    return 2 * common / (len(predicted_words) + len(answer_words))


def question_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(questions, 2): `exact_match` and `token_f1`, the best over the reference answers of each question.

    Args:
        predictions: One answer a question.
        answers: The reference answers of each question; none means the empty answer.
    """
    scores = np.empty((len(predictions), 2))
    for index, (prediction, references) in enumerate(zip(predictions, answers, strict=True)):
        references = [reference for reference in references if normalize_answer(reference)] or [""]
        scores[index, 0] = max(exact_match(prediction, reference) for reference in references)
        scores[index, 1] = max(token_f1(prediction, reference) for reference in references)
    return scores


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` in percent, the means of `question_scores`.

    Rajpurkar et al. (2016), section 6.1, and the official evaluation scripts of SQuAD 1.1 and 2.0.

    Args:
        predictions: One answer a question.
        answers: The reference answers of each question; none means the empty answer.
    """
    return _percentages(question_scores(predictions, answers))


def _percentages(scores: np.ndarray) -> dict[str, float]:
    # contiguous: numpy sums the columns of a matrix in another order, which rounds differently
    means = [float(np.ascontiguousarray(column).mean()) for column in scores.T]
    return {"exact_match": 100 * means[0], "f1": 100 * means[1]}


SQUAD = QuestionAnswering("squad", source="rajpurkar/squad")
"""SQuAD 1.1, in which every question has an answer."""
SQUAD_V2 = QuestionAnswering("squad_v2", answerable=False, source="rajpurkar/squad_v2")
"""SQuAD 2.0, in which some questions have none."""
