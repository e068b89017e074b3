"""`diagnose` on set-ups that users file as issues: each named in one line, with what to change."""

import re
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import LABELS, WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hf_tinybert import MultipleChoice, QuestionAnswering, TextClassification, TokenClassification
from hf_tinybert.pipelines.doctor import Check, diagnose, to_table

SIZE = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
TASK = TextClassification("films", ("text",), tuple(LABELS.values()))


def data(count: int = 40, words: int = 6) -> DatasetDict:
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + i % words)) for i in range(count)]
    rows = Dataset.from_dict({"text": texts, "label": [i % 3 for i in range(count)]})
    return DatasetDict(train=rows, validation=rows).cast_column("label", ClassLabel(names=list(LABELS.values())))


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A function that writes a teacher and diagnoses a distillation of it → {check: (passed, finding)}."""
    monkeypatch.chdir(tmp_path)
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "teacher")

    def run(model_class=BertForSequenceClassification, task=TASK, rows=None, student=SIZE, change=None, **options):
        options = {"per_device_train_batch_size": 4, "use_cpu": True, "init": "random", **options}
        sizes = {"vocab_size": len(tokenizer), **options.pop("teacher", {})}
        model = build(model_class, bert_config(4, 32, **sizes))
        if change:
            change(model)
        model.save_pretrained(tmp_path / "teacher")
        checks = diagnose(task, rows or data(), tmp_path / "teacher", student, **options)
        assert len(to_table(checks).splitlines()) == len(checks)
        return {check.name: (check.passed, check.finding) for check in checks}

    return run


def failure(checks: dict) -> tuple[str, str]:
    """The one check that failed, and its line."""
    ((name, line),) = [(name, line) for name, (passed, line) in checks.items() if not passed]
    return name, line


def test_long_lines_are_wrapped_below_their_findings():
    table = to_table([Check("data", True, "all is well"), Check("teacher", False, "word " * 30)], 80).splitlines()
    assert table[0] == "ok    data     all is well"
    assert max(map(len, table)) <= 80
    assert [line[:15] for line in table[1:]] == ["FAIL  teacher  ", " " * 15, " " * 15]


def test_a_set_up_that_works(setup):
    checks = setup(init="teacher", loss_type=["attention", "hidden", "embedding", "prediction"])
    assert all(passed for passed, _ in checks.values())
    assert list(checks)[-3:] == ["dry steps", "memory", "time"]
    assert "1←2, 2←4" in checks["layer mapping"][1]
    for loss in ("attention", "hidden", "embedding", "prediction"):
        assert f"{loss}_loss" in checks["dry steps"][1]
    assert "positive" in checks["labels"][1]


def test_a_teacher_without_a_head_is_no_failure(setup):
    checks = setup(BertModel)
    assert all(passed for passed, _ in checks.values())
    assert "fine-tuned first" in checks["teacher"][1]


TEXTS = data()["train"]["text"]
OTHER_TASKS = {
    "spans": (
        BertForQuestionAnswering,
        QuestionAnswering("questions"),
        {
            "id": [str(i) for i in range(40)],
            "question": TEXTS,
            "context": TEXTS,
            "answers": [{"text": [text.split()[0]], "answer_start": [0]} for text in TEXTS],
        },
    ),
    "tokens": (
        BertForTokenClassification,
        TokenClassification("tags", labels=tuple(LABELS.values())),
        {"tokens": [text.split() for text in TEXTS], "ner_tags": [[2] * len(text.split()) for text in TEXTS]},
    ),
    "choices": (
        BertForMultipleChoice,
        MultipleChoice("endings", ("text",)),
        {
            "text": TEXTS,
            "choices": [["good", "a bad film was not very bright", "the book is very dull ."]] * 40,
            "label": [1] * 40,
        },
    ),
}


def test_what_the_student_costs_is_said_before_anything_is_fitted(setup):
    checks = setup(init="teacher")
    passed, finding = checks["initialisation"]
    assert passed
    assert "M parameters, about" in finding
    assert "on 40 calibration rows" in finding
    assert re.search(r"about [\d.]+ ms for a row of \d+ tokens", checks["latency"][1])
    assert "initialisation" not in setup(init="random")


@pytest.mark.parametrize("kind", OTHER_TASKS)
def test_other_tasks(setup, tmp_path, kind):
    head, task, columns = OTHER_TASKS[kind]
    rows = Dataset.from_dict(columns)
    options = {} if kind == "tokens" else {"teacher": {"id2label": None, "label2id": None}}
    checks = setup(head, task, DatasetDict(train=rows, validation=rows), **options)
    assert [finding for passed, finding in checks.values() if not passed] == []
    assert "prediction_loss" in checks["dry steps"][1]
    ids = task.tokenize(rows, word_tokenizer(tmp_path))["input_ids"]
    ids = list(chain.from_iterable(ids)) if kind == "choices" else ids
    assert checks["lengths"][1].startswith(f"{np.median([len(row) for row in ids]):.0f} tokens at the median")


def small_vocabulary(folder):
    build(BertForSequenceClassification, bert_config(2, 16, vocab_size=30)).save_pretrained(folder)
    return str(folder)


def not_a_number(model):
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[0] = torch.nan


OTHER_ORDER = {"id2label": {0: "positive", 1: "negative", 2: "neutral"}, "label2id": None}
BROKEN = {
    "other heads": (
        {"student": SIZE | {"num_attention_heads": 2}, "loss_type": ["attention"]},
        "attention heads",
        "num_attention_heads=4",
    ),
    "deeper than the teacher": ({"student": SIZE | {"num_hidden_layers": 6}}, "student", "num_hidden_layers=6"),
    "layer out of range": ({"layer_mapping": "3,9"}, "student", "(2, 9)"),
    "labels in another order": ({"teacher": OTHER_ORDER}, "teacher", "head_labels(teacher)"),
    "embeddings of another tokenizer": ({"teacher": {"vocab_size": 12}}, "lengths", "tokenizer"),
    "rows longer than positions": (
        {"teacher": {"max_position_embeddings": 8}, "rows": data(words=12)},
        "lengths",
        "max_length",
    ),
    "NaN in the teacher": ({"change": not_a_number}, "teacher", "encoder.layer.1.output.dense.bias"),
    "a width that heads do not divide": ({"student": SIZE | {"hidden_size": 18}}, "student", "multiple"),
    "an unknown loss": ({"loss_type": ["attention", "hiden"]}, "arguments", "loss_type"),
    "reentrant checkpointing": (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        "arguments",
        "use_reentrant",
    ),
    "attentions from the config": ({"teacher": {"output_hidden_states": True}}, "dry steps", "output_hidden_states"),
    "too large a batch": ({"per_device_train_batch_size": 10**9, "rows": None}, "memory", "per_device_train_batch"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_set_ups(setup, case, monkeypatch):
    options, name, fix = BROKEN[case]
    if name == "memory":  # as on a machine that has none left
        monkeypatch.setattr("hf_tinybert.pipelines.dry_run.get_max_memory", lambda: {"cpu": 1000})
        options = {}
    failed, line = failure(setup(**options))
    assert failed == name
    assert fix in line
    assert "\n" not in line


def test_a_student_of_another_vocabulary(setup, tmp_path):
    failed, line = failure(setup(student=small_vocabulary(tmp_path / "student")))
    assert (failed, "vocab_size is 30" in line) == ("vocabularies", True)


def test_a_student_of_other_tokens(setup, tmp_path):
    """As many embeddings as the teacher has, for the same tokens in another order."""
    folder = tmp_path / "student"
    folder.mkdir()
    tokenizer = word_tokenizer(folder)
    tokens = sorted(tokenizer.get_vocab())
    BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(folder)
    build(BertForSequenceClassification, bert_config(2, 16, vocab_size=len(tokens))).save_pretrained(folder)
    failed, line = failure(setup(student=str(folder)))
    assert (failed, "transfer_vocabulary" in line) == ("vocabularies", True)
    tokenizer.save_pretrained(folder)
    assert all(passed for passed, _ in setup(student=str(folder)).values())


def test_a_student_that_is_nowhere(hub, setup):
    failed, line = failure(setup(student="no/such-model"))
    assert (failed, "'no/such-model'" in line) == ("student", True)


def test_an_architecture_that_cannot_be_initialised_from_the_teacher(setup):
    def decode(model):
        model.config.is_decoder = True

    failed, line = failure(setup(change=decode, init="teacher"))
    assert (failed, "init='layers'" in line) == ("student", True)


def test_token_types_that_a_distilbert_student_does_not_take(setup, tmp_path):
    config = DistilBertConfig(
        vocab_size=20,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=4,
        id2label=LABELS,
        label2id={n: i for i, n in LABELS.items()},
    )
    build(DistilBertForSequenceClassification, config).save_pretrained(tmp_path / "student")
    checks = setup(student=str(tmp_path / "student"))
    assert all(passed for passed, _ in checks.values())
