"""The format of SQuAD: its JSON file, and the forms that its answers have in other files."""

import json
from pathlib import Path
from typing import Any

import datasets

ANSWERS = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int64"))}


def answer_lists(answers: Any) -> dict[str, list]:
    """The answers of a question as two lists, `text` and `answer_start`.

    Args:
        answers: Two lists already, a list of answers that have both, one answer, or None.
    """
    if answers is None:
        return {name: [] for name in ANSWERS}
    if isinstance(answers, list):
        return {name: [answer[name] for answer in answers] for name in ANSWERS}
    values = {name: answers[name] for name in ANSWERS}
    if isinstance(values["text"], list):
        return values
    return {name: [] if value is None else [value] for name, value in values.items()}


def read_squad(path: str | Path) -> datasets.Dataset:
    """Read SQuAD's JSON file (1.1 or 2.0).

    Args:
        path: The file.

    Returns:
        Rows of `id`, `question`, `context` and `answers`.
    """
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
