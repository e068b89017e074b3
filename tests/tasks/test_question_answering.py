"""Windows of a context, answers from logits, EM and F1, and a whole run."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset, DatasetDict
from short_runs import QUICK, SIZE, distil
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering, BertModel, EvalPrediction

from hf_tinybert import QuestionAnswering, cache_logits, read_squad, squad_scores, task_distillation

HEAD = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
TASK = QuestionAnswering("squad", max_length=16, stride=4, answerable=False)


def questions(count=12, seed=0) -> Dataset:
    """Contexts of up to 30 words; every fourth question has no answer, the others one of one to three words."""
    generator, rows = random.Random(seed), []
    for i in range(count):
        words = generator.choices(["good", "player", "dull", "the", "film", "is", "!"], k=generator.randint(5, 30))
        context, first = " ".join(words), generator.randrange(len(words))
        text = " ".join(words[first : first + 1 + i % 3])
        start = len(" ".join([*words[:first], ""]))
        answers = {"text": [text], "answer_start": [start]} if i % 4 else {"text": [], "answer_start": []}
        rows.append({"id": str(i), "question": f"  is {WORDS[i % 7]}", "context": context, "answers": answers})
    return Dataset.from_list(rows)


@pytest.fixture
def tokenizer(tmp_path):
    return word_tokenizer(tmp_path)


def test_windows_cover_the_context_and_mark_the_answer(tokenizer):
    rows = questions()
    windows = TASK.tokenize(rows, tokenizer)
    seen = [set() for _ in rows]
    whole = tokenizer(rows["context"][:], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    with_answer = [0] * len(rows)
    for window in windows:
        row, offsets = rows[window["row"]], window["offsets"]
        assert len(window["input_ids"]) <= 16
        assert [o != [-1, -1] for o in offsets] == [
            t == 1 and i < len(offsets) - 1 for i, t in enumerate(window["token_type_ids"])
        ]
        seen[window["row"]] |= {tuple(o) for o in offsets if o != [-1, -1]}
        first, last = window["start_positions"], window["end_positions"]
        assert (first == 0) == (last == 0)
        if first:
            with_answer[window["row"]] += 1
            assert row["context"][offsets[first][0] : offsets[last][1]] == row["answers"]["text"][0]
    assert seen == [set(map(tuple, offsets)) for offsets in whole]
    assert [bool(count) for count in with_answer] == [bool(answers["text"]) for answers in rows["answers"]]
    contexts = [window["offsets"] for window in windows if window["row"] == windows[0]["row"]]
    assert len(contexts) > 1
    inside = [[tuple(o) for o in offsets if o != [-1, -1]] for offsets in contexts]
    assert inside[0][-TASK.stride :] == inside[1][: TASK.stride]


def logits(windows, positions) -> np.ndarray:
    """(N, S), 5 at these positions and random below 1 elsewhere."""
    values = np.random.default_rng(0).random((len(windows), 16))
    values[np.arange(len(windows)), positions] = 5
    return values


@pytest.mark.parametrize(("task", "room"), [(replace(TASK, max_length=9), 4), (replace(TASK, max_length=4), 0)])
def test_a_window_without_room_for_the_context_names_its_row(tokenizer, task, room):
    rows = Dataset.from_dict(
        {
            "id": ["0", "1"],
            "question": ["film", "the film"],
            "context": ["the film is good and the book is bad"] * 2,
            "answers": [{"text": ["good"], "answer_start": [12]}] * 2,
        }
    )
    message = rf"Row 1: its question has 2 tokens and leaves {room} of max_length={task.max_length} .* stride=4"
    with pytest.raises(ValueError, match=message):
        task.tokenize(rows, tokenizer)
    assert len(replace(task, max_length=10).tokenize(rows, tokenizer)) > 2


def test_logits_at_the_answers_give_the_answers(tokenizer):
    """Whatever the order of the windows, and with more for question and padding than for any word of the context."""
    rows = questions()
    windows = TASK.tokenize(rows, tokenizer)
    start, end = (logits(windows, windows[name][:]) for name in ("start_positions", "end_positions"))
    for index, window in enumerate(windows):
        outside = np.array([o == [-1, -1] for o in window["offsets"]] + [True] * (16 - len(window["offsets"])))
        outside[0] = False
        start[index, outside] = end[index, outside] = 9
    inputs = np.zeros((len(windows), 20), int)
    for row, ids in zip(inputs, windows["input_ids"], strict=True):
        row[: len(ids)] = ids
    order = np.random.default_rng(1).permutation(len(windows))
    prediction = EvalPrediction((start[order], end[order]), None, inputs=inputs[order])
    scorer = TASK.scorer(rows, windows)
    assert scorer(prediction) == {"exact_match": 100, "f1": 100, "score": 100}
    assert scorer.score_examples(prediction).tolist() == [[1, 1]] * len(rows)
    with pytest.raises(ValueError, match="include_for_metrics"):
        scorer(EvalPrediction((start, end), None))


def test_the_metrics_of_questions_are_the_means_of_each(tokenizer):
    rows = questions()
    windows = TASK.tokenize(rows, tokenizer)
    start, end = np.random.default_rng(3).normal(size=(2, len(windows), 16))
    start[np.arange(len(windows)), windows["start_positions"][:]] += 4
    inputs = np.full((len(windows), 16), -100)
    for row, ids in zip(inputs, windows["input_ids"], strict=True):
        row[: len(ids)] = ids
    prediction = EvalPrediction((start, end), None, inputs=inputs)
    scorer = TASK.scorer(rows, windows)
    best = [candidates[0]["text"] for candidates in TASK.answers(rows, windows, start, end)]
    expected = squad_scores(best, [answers["text"] for answers in rows["answers"]])
    assert 0 < expected["exact_match"] < expected["f1"] < 100
    assert scorer(prediction) == {**expected, "score": expected["f1"]}
    examples = scorer.score_examples(prediction)
    drawn = [3, 3, 0, 7]
    some = squad_scores([best[i] for i in drawn], [rows[i]["answers"]["text"] for i in drawn])
    assert scorer.summarise(examples[drawn]) == {**some, "score": some["f1"]}


def test_answers_are_spans_within_bounds(tokenizer):
    context = "the good film is dull"
    row = {"id": "0", "question": "is", "context": context, "answers": {"text": ["good"], "answer_start": [4]}}
    rows = Dataset.from_list([row])
    task = QuestionAnswering("squad", max_answer_length=2, n_best=3)
    windows = task.tokenize(rows, tokenizer)
    #                [CLS] is [SEP] the good film is dull [SEP]
    start = np.array([[9.0, 9, 9, 0, 1, 3, 0, 2.5, 9]])
    end = np.array([[9.0, 9, 9, 0, 4, 0.5, 0, 3, 9]])
    (answers,) = task.answers(rows, windows, start, end)
    # film ... dull is too long, film ... good ends before it starts
    assert [(answer["text"], answer["score"]) for answer in answers] == [("dull", 5.5), ("good", 5), ("film", 3.5)]
    (answers,) = QuestionAnswering("squad", max_answer_length=2, answerable=False).answers(rows, windows, start, end)
    assert (answers[0]["text"], answers[0]["score"]) == ("", 18)


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("The Cat!", ["cat"], 100, 100),
        ("a cat sat", ["cat", "the cat sat down"], 0, 80),
        ("sat cat cat", ["cat sat"], 0, 80),
        ("dog", ["cat"], 0, 0),
        ("", [], 100, 100),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["an"], 100, 100),
        ("U.S.", ["US", "U S"], 100, 100),
    ],
)
def test_scores(prediction, answers, em, f1):
    assert squad_scores([prediction], [answers]) == pytest.approx({"exact_match": em, "f1": f1})


def test_a_squad_file(tmp_path):
    answered = {"id": "a", "question": "q", "answers": [{"text": "b", "answer_start": 2}], "is_impossible": False}
    empty = {"id": "b", "question": "r", "answers": [], "is_impossible": True, "plausible_answers": []}
    article = {"title": "t", "paragraphs": [{"context": "a b", "qas": [answered, empty]}]}
    (tmp_path / "dev.json").write_text(json.dumps({"version": "2", "data": [article]}))
    assert list(read_squad(tmp_path / "dev.json")) == [
        {"id": "a", "question": "q", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}},
        {"id": "b", "question": "r", "context": "a b", "answers": {"text": [], "answer_start": []}},
    ]


def test_cached_logits_teach_as_live_ones(tmp_path, tokenizer):
    config = {"vocab_size": len(tokenizer), **HEAD}
    teacher = build(BertForQuestionAnswering, bert_config(4, 32, **config), 1).eval()
    rows, collate = TASK.tokenize(questions(6), tokenizer), TASK.collator(tokenizer)
    rows = rows.remove_columns(["row", "offsets"])
    cached = cache_logits(teacher, rows, tokenizer, data_collator=collate, batch_size=3)
    assert len(cached[0]["teacher_logits"]) == len(cached[0]["input_ids"])
    losses = []
    for data in (rows, cached):
        student = build(BertForQuestionAnswering, bert_config(2, 16, **config), 2)
        _, (log,), _ = distil(tmp_path, student, teacher, None, data, collate, loss_type=["prediction"])
        losses.append(log["prediction_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_from_an_encoder_to_a_student(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "base")
    config = bert_config(4, 32, vocab_size=len(tokenizer), max_position_embeddings=16)
    build(BertModel, config).save_pretrained(tmp_path / "base")
    data = DatasetDict(train=questions(24), validation=questions(8))
    fast = {"fine_tuning": {"num_train_epochs": 4, "learning_rate": 2e-3}}
    results = task_distillation(TASK, data, str(tmp_path / "base"), tmp_path / "out", student=SIZE, **fast, **QUICK)
    assert results["rows"] > 24  # windows
    assert set(results["student"]["validation"]) == {"exact_match", "f1", "score"}
    assert results["student"]["validation"]["f1"] >= results["student_last"]["validation"]["f1"]
    _, loading = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out/student", output_loading_info=True)
    assert not any(loading.values())
    log = json.loads((tmp_path / "out/prediction/trainer_state.json").read_text())["log_history"]
    losses = [entry["prediction_loss"] for entry in log if "prediction_loss" in entry]
    assert losses[-1] < losses[0]
