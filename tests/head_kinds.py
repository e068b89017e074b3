"""Tiny models, rows and metrics of every kind of prediction head."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from conftest import WORDS, rows
from datasets import Dataset
from scipy import special
from sklearn.metrics import f1_score
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from hf_tinybert import QuestionAnswering

QUESTIONS = QuestionAnswering("squad", max_length=16, stride=4, answerable=False)
SCORE = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
TWO_SCORES = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}


def accuracy(prediction):
    logits = prediction.predictions
    answers = logits.argmax(-1) if logits.ndim > prediction.label_ids.ndim else logits
    return {"accuracy": float((answers == prediction.label_ids)[prediction.label_ids != -100].mean())}


def micro_f1(prediction):
    return {"f1": f1_score(prediction.label_ids, prediction.predictions > 0, average="micro")}


def error(prediction):
    return {"within": float((np.abs(prediction.predictions.squeeze(-1) - prediction.label_ids) < 1).mean())}


def two_errors(prediction):
    return {"within": float((np.abs(prediction.predictions - prediction.label_ids) < 1).mean())}


def likeliest(logits, labels):
    return logits.argmax(-1)


def labelled(labels: list) -> Dataset:
    return rows(len(labels)).remove_columns("labels").add_column("labels", labels)


def choices(count: int = 24) -> Dataset:
    """Three sequences a row, of different lengths."""
    sequences = [rows(count, seed=seed) for seed in range(3)]
    columns = {
        name: [list(values) for values in zip(*(data[name] for data in sequences), strict=True)]
        for name in ("input_ids", "attention_mask")
    }
    return Dataset.from_dict({**columns, "labels": rows(count)["labels"][:]})


def masked(count: int = 24) -> Dataset:
    """A quarter of the tokens is masked; some rows have none."""
    ids, labels = [], []
    for number, tokens in enumerate(rows(count)["input_ids"]):
        hidden = [position % 4 == number % 5 for position in range(len(tokens))]
        ids.append([4 if hide else token for token, hide in zip(tokens, hidden, strict=True)])
        labels.append([token if hide else -100 for token, hide in zip(tokens, hidden, strict=True)])
    return Dataset.from_dict({"input_ids": ids, "attention_mask": rows(count)["attention_mask"][:], "labels": labels})


def questions(count: int = 12) -> Dataset:
    """Contexts of up to 30 words; every fourth question has no answer, the others one of one to three words."""
    generator, data = random.Random(0), []
    for number in range(count):
        words = generator.choices(["good", "player", "dull", "the", "film", "is", "!"], k=generator.randint(5, 30))
        first = generator.randrange(len(words))
        text, start = " ".join(words[first : first + 1 + number % 3]), len(" ".join([*words[:first], ""]))
        answers = {"text": [text], "answer_start": [start]} if number % 4 else {"text": [], "answer_start": []}
        question = f"is {WORDS[number % 7]}"
        data.append({"id": str(number), "question": question, "context": " ".join(words), "answers": answers})
    return Dataset.from_list(data)


@dataclass
class Kind:
    """A kind of prediction head.

    `decisions` gives the logits of each decision in one row, from the outputs for that row alone; `rows` is called
    with the tokenizer and `compute_metrics`, if it is None, is the scorer of `questions`.
    """

    model_class: type
    rows: Callable[[Any], Dataset]
    decisions: Callable[[Any, dict], list[torch.Tensor]]
    config: dict = field(default_factory=dict)
    compute_metrics: Callable | None = accuracy
    collator: type = DataCollatorWithPadding
    preprocess: Callable | None = None

    def scorer(self, tokens: Dataset) -> Callable:
        return self.compute_metrics or QUESTIONS.scorer(questions(), tokens)


def at_labels(outputs, row):
    return [logits for logits, label in zip(outputs.logits[0], row["labels"], strict=True) if label != -100]


def of_sequence(outputs, row):
    return [outputs.logits[0]]


KINDS = {
    "classes": Kind(BertForSequenceClassification, lambda tokenizer: rows(24), of_sequence),
    "several labels": Kind(
        BertForSequenceClassification,
        lambda tokenizer: labelled([[float(i % 2), float(i % 3 == 0), float(i % 5 == 0)] for i in range(24)]),
        lambda outputs, row: [torch.stack([0 * z, z]) for z in outputs.logits[0]],
        {"problem_type": "multi_label_classification"},
        micro_f1,
    ),
    "score": Kind(
        BertForSequenceClassification,
        lambda tokenizer: labelled([0.3 * i % 2 for i in range(24)]),
        of_sequence,
        SCORE,
        error,
    ),
    "two scores": Kind(
        BertForSequenceClassification,
        lambda tokenizer: labelled([[0.3 * i % 2, 0.1 * i] for i in range(24)]),
        of_sequence,
        TWO_SCORES | {"problem_type": "regression"},
        two_errors,
    ),
    "tokens": Kind(
        BertForTokenClassification,
        lambda tokenizer: rows(24, token_labels=True),
        at_labels,
        collator=DataCollatorForTokenClassification,
    ),
    "spans": Kind(
        BertForQuestionAnswering,
        lambda tokenizer: QUESTIONS.tokenize(questions(), tokenizer),
        lambda outputs, row: [outputs.start_logits[0], outputs.end_logits[0]],
        TWO_SCORES,
        None,
    ),
    "choices": Kind(
        BertForMultipleChoice,
        lambda tokenizer: choices(),
        of_sequence,
        collator=DataCollatorForMultipleChoice,
    ),
    "masked tokens": Kind(
        BertForMaskedLM,
        lambda tokenizer: masked(),
        at_labels,
        collator=DataCollatorForTokenClassification,
        preprocess=likeliest,
    ),
}


def decisions(kind: Kind, model, data: Dataset) -> list[np.ndarray]:
    """The logits of every decision, from each row (each choice of a row) by itself, without padding."""
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in data.column_names]
    logits = []
    with torch.no_grad():
        for row in data:
            if isinstance(row["input_ids"][0], list):
                scores = [model(input_ids=torch.tensor([[choice]])).logits[0] for choice in row["input_ids"]]
                logits.append(torch.cat(scores).double().numpy())
            else:
                outputs = model(**{name: torch.tensor([row[name]]) for name in inputs})
                logits += [values.double().numpy() for values in kind.decisions(outputs, row)]
    return logits


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    return special.rel_entr(special.softmax(reference), special.softmax(logits)).sum()
