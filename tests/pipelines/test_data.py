"""A user's files as a task: formats, splits, held-out rows, label order, and errors that name what to change."""

import json
from collections import Counter

import pandas
import pytest
from conftest import bert_config, build
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

from hf_tinybert import MultipleChoice, QuestionAnswering, TextClassification, TokenClassification
from hf_tinybert.pipelines.data import held_out_rows, hold_out, load_task, read_splits

TEXTS = ["a fine film", "None", "NA", 'dull, "very" dull', "ein schöner Film"] * 6
FRAME = pandas.DataFrame({"review": TEXTS, "stars": ["good", "bad", "bad", "null", "good"] * 6})


def write(frame: pandas.DataFrame, path):
    """The file of a frame, in the format that its name says."""
    path.parent.mkdir(exist_ok=True, parents=True)
    match path.name.split(".")[1]:
        case "csv":
            frame.to_csv(path, index=False)
        case "tsv":
            frame.to_csv(path, index=False, sep="\t")
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "json":
            frame.to_json(path, orient="records")
        case "parquet":
            frame.to_parquet(path)
        case "arrow":
            frame.to_feather(path)
    return path


def rows_of(data: DatasetDict, split: str = "train") -> list[dict]:
    return data[split].to_list()


FORMATS = ["r.csv", "r.tsv", "r.jsonl", "r.json", "r.parquet", "r.arrow", "r.csv.gz", "my.r.jsonl.gz"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = write(FRAME, tmp_path / name.removeprefix("my.")).rename(tmp_path / name)
    assert rows_of(read_splits(path)) == FRAME.to_dict("records")


def test_a_folder_has_the_splits_that_its_names_say(tmp_path):
    for name, count in (("train.csv", 9), ("dev.csv", 4), ("test.csv", 3)):
        write(FRAME[:count], tmp_path / "files" / name)
    assert {split: len(rows) for split, rows in read_splits(tmp_path / "files").items()} == {
        "train": 9,
        "validation": 4,
        "test": 3,
    }
    rows = Dataset.from_pandas(FRAME)
    rows.save_to_disk(tmp_path / "saved")
    assert rows_of(read_splits(tmp_path / "saved")) == FRAME.to_dict("records")
    DatasetDict(train=rows, validation=rows.select(range(3))).save_to_disk(tmp_path / "splits")
    assert len(read_splits(tmp_path / "splits")["validation"]) == 3


def test_a_validation_file(tmp_path):
    train, other = write(FRAME, tmp_path / "r.csv"), write(FRAME[:5], tmp_path / "other.csv")
    task, data = load_task(train, text=["review"], label="stars", validation=other)
    assert (task.name, task.validation) == ("r", ("validation",))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 30, "validation": 5}


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"review,stars\ncaf\xe9,1\n", "r.csv", "'utf-8' codec can't decode"),
        (b"review,stars\na,1\nb,1,2,3\n", "r.csv", "line 3"),
        (b"", "r.csv", "No columns"),
        (b"x", "r.xlsx", "no known format"),
        (None, "missing.csv", "no file or folder"),
        (None, "/nowhere/reviews", "no file or folder"),
        (b"review;stars\na;1\n" + b"b;0\n" * 30, "r.csv", "['review;stars']"),
        (b"review,stars\n" + b"a,1\n" * 25 + b"a,\n" + b"a,1\n" * 25, "r.csv", "Row 25 of"),
        (b"review,stars\n" + b"a,good\n" * 25 + b",bad\n" * 25, "r.csv", "Row 25 of"),
        (b"review,stars\n" + b"a,1\n" * 19, "r.csv", "19 training rows are too few"),
        (b"review,stars\n" + b"".join(b"a,%d\n" % i for i in range(30)), "r.csv", "Every row has another 'stars'"),
    ],
)
def test_data_that_cannot_be_used_is_an_error_in_a_sentence(tmp_path, content, name, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as caught:
        load_task(tmp_path / name, text=["review"], label="stars")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("rows", "held_out"), [(20, 10), (90, 45), (200, 50), (700, 70), (21_000, 2000)])
def test_a_tenth_is_held_out(rows, held_out):
    data = DatasetDict(train=Dataset.from_dict({"label": [i % 2 for i in range(rows)]}))
    split = hold_out(data, "label")
    assert (len(split["train"]), len(split["validation"])) == (rows - held_out, held_out)
    assert split["validation"]["label"] == hold_out(data, "label")["validation"]["label"]


def test_every_class_is_held_out_by_its_share_and_none_vanishes():
    classes = [("often",)] * 700 + [("seldom",)] * 290 + [("twice",)] * 2 + [(f"once {i}",) for i in range(8)]
    chosen = held_out_rows(classes, 100)
    counts = Counter(classes[row] for row in chosen)
    assert abs(counts["often",] - 70) <= 1
    assert abs(counts["seldom",] - 29) <= 1
    assert not any(name.startswith("once") for (name,) in counts)
    assert len(chosen) == len(set(chosen)) == 100
    assert chosen != held_out_rows(classes, 100, seed=1)


def test_a_label_of_one_row_alone_stays_in_train(tmp_path):
    """Or validation would have a label that train has not; also of lists."""
    single = pandas.DataFrame({"text": ["a"] * 40, "label": ["x"] * 39 + ["y"]})
    task, _ = load_task(write(single, tmp_path / "r.csv"))
    assert task.labels == ("x", "y")
    tagged = pandas.DataFrame({"tokens": [["a", "b"]] * 40, "ner_tags": [["O", "O"]] * 39 + [["O", "B-X"]]})
    task, _ = load_task(write(tagged, tmp_path / "t.jsonl"), "tokens")
    assert task.labels == ("B-X", "O")


def save_head(folder, model_class, *labels: str):
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    build(model_class, bert_config(1, 16, **names)).save_pretrained(folder)
    return folder


def test_labels_have_the_ids_of_a_trained_head(tmp_path):
    classifier = save_head(tmp_path / "c", BertForSequenceClassification, "Positive", "NEUTRAL", "negative")
    assert TextClassification.head_labels(classifier) == ("Positive", "NEUTRAL", "negative")
    assert TokenClassification.head_labels(classifier) is None
    build(BertModel, bert_config(1, 16)).save_pretrained(tmp_path / "e")
    assert TextClassification.head_labels(tmp_path / "e") is None
    labels = TextClassification.head_labels(classifier)
    for values, ids in (
        (["negative", "positive"], [2, 0]),
        ([0, 1], [0, 1]),
        (["LABEL_2", "LABEL_1"], [2, 1]),
        ([True, False], [1, 0]),
    ):
        frame = pandas.DataFrame({"text": ["a"] * 20, "label": values * 10})
        task, data = load_task(write(frame, tmp_path / "r.parquet"), labels=labels)
        assert task.labels == labels
        assert set(data["train"]["label"]) | set(data["validation"]["label"]) == set(ids)
        row = data["train"].to_list()[0]
        assert row["label"] in ids
        task.check_labels(classifier)


def test_class_labels_in_another_order_are_matched_by_name(tmp_path):
    rows = Dataset.from_dict({"text": [f"row {i}" for i in range(4)], "label": [0, 1, 1, 0]})
    rows = rows.cast_column("label", ClassLabel(names=["bad", "good"]))
    rows.to_parquet(tmp_path / "data/train.parquet")
    rows.to_parquet(tmp_path / "data/validation.parquet")
    task, data = load_task(tmp_path / "data", labels=("good", "bad"))
    assert data["train"]["label"][:] == [1, 0, 0, 1]
    assert task.labels == ("good", "bad")


def test_tags_have_the_ids_of_a_trained_head(tmp_path):
    tagger = save_head(tmp_path / "t", BertForTokenClassification, "O", "B-PER", "B-LOC")
    labels = TokenClassification.head_labels(tagger)
    for values, ids in ((["B-LOC", "O"], [2, 0]), ([1, 2], [1, 2])):
        frame = pandas.DataFrame({"words": [["a", "b"]] * 20, "tags": [values] * 20})
        path = write(frame, tmp_path / "t.jsonl")
        task, data = load_task(path, "tokens", ["words"], "tags", labels=labels)
        assert (task.labels, data["train"]["tags"][0]) == (labels, ids)


@pytest.mark.parametrize(
    ("values", "labels", "unknown"),
    [
        (["good", "mixed"], ("bad", "good"), "mixed"),
        ([1, 2, 3], ("bad", "good", "fine"), "LABEL_3"),
        (["a", "b", "c"], ("LABEL_0", "LABEL_1"), "'c'"),
    ],
)
def test_labels_that_a_trained_head_has_not(tmp_path, values, labels, unknown):
    frame = pandas.DataFrame({"text": ["a"] * 30, "label": (values * 30)[:30]})
    with pytest.raises(ValueError, match=r"prediction head has \['") as caught:
        load_task(write(frame, tmp_path / "r.csv"), labels=labels)
    assert unknown in str(caught.value)


def test_names_beside_a_head_without_names_keep_their_order(tmp_path):
    labels = ("LABEL_0", "LABEL_1", "LABEL_2")
    task, _ = load_task(write(FRAME, tmp_path / "r.csv"), text=["review"], label="stars", labels=labels)
    assert task.labels == ("bad", "good", "null")


@pytest.mark.parametrize("values", [["a", "b"], [0, 2]])
def test_lists_of_labels_are_several_labels(tmp_path, values):
    frame = pandas.DataFrame({"text": ["x"] * 30, "label": [values, values[:1], []] * 10})
    task, data = load_task(write(frame, tmp_path / "r.jsonl"))
    assert (task.multi_label, task.selected_by) == (True, ("micro_f1",))
    assert data["train"]["label"][0] in ([0, 1], [0, 2], [0], [])


CONTEXTS = [f"the film {i} was bright" for i in range(24)]
SQUAD = [
    {
        "id": f"q{i}",
        "question": "which film",
        "context": text,
        "answers": {"text": [str(i)], "answer_start": [text.index(str(i))]},
    }
    for i, text in enumerate(CONTEXTS)
]


def one_answer(row: dict) -> dict:
    return {name: values[0] for name, values in row["answers"].items()}


@pytest.mark.parametrize(
    "form", [lambda row: row["answers"], one_answer, lambda row: [one_answer(row)]], ids=["lists", "one", "list"]
)
def test_answers_of_every_form(tmp_path, form):
    rows = [{"query": row["question"], "passage": row["context"], "spans": form(row)} for row in SQUAD]
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task, data = load_task(path, "qa", ["query", "passage"], "spans", max_length=64)
    assert (type(task), task.text, task.max_length, task.answerable) == (
        QuestionAnswering,
        ("query", "passage"),
        64,
        True,
    )
    for row in (*rows_of(data), *rows_of(data, "validation")):
        assert row["answers"] == SQUAD[CONTEXTS.index(row["passage"])]["answers"]


def test_squads_own_file_and_questions_without_an_answer(tmp_path):
    questions = [{**row, "answers": [one_answer(row)] if i else []} for i, row in enumerate(SQUAD)]
    paragraphs = [{"context": row["context"], "qas": [row]} for row in questions]
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    task, data = load_task(tmp_path / "dev.json", "qa")
    assert (task.answerable, len(data["train"]), len(data["validation"])) == (False, 12, 12)


def test_conll_files(tmp_path):
    (tmp_path / "tags.conll").write_text("".join(f"film{i} NN B-A\nis VB O\n\n" for i in range(24)))
    task, data = load_task(tmp_path / "tags.conll", "tokens")
    assert (type(task), task.labels) == (TokenClassification, ("B-A", "O"))
    assert (len(data["train"]), data["validation"][0]["tokens"][1]) == (12, "is")


def test_scores_do_not_fit_a_head_of_classes(tmp_path):
    file = write(pandas.DataFrame({"text": ["a"] * 30, "label": [0.0, 1.0] * 15}), tmp_path / "r.csv")
    with pytest.raises(
        ValueError, match=r"'label' holds floating-point numbers.*\['bad', 'good'\]: give the rows names"
    ):
        load_task(file, labels=("bad", "good"))
    assert load_task(file, labels=("LABEL_0",))[0].regression


def test_choices(tmp_path):
    frame = pandas.DataFrame({"ctx": ["a"] * 20, "one": ["b"] * 20, "two": ["c"] * 20, "right": [0, 1] * 10})
    task, data = load_task(write(frame, tmp_path / "c.csv"), "choice", ["ctx"], "right", ["one", "two"])
    assert (type(task), task.endings) == (MultipleChoice, ("one", "two"))
    assert Counter(data["validation"]["right"]) == {0: 5, 1: 5}


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("text", {}, "no column ['text', 'label'], only ['review', 'stars']"),
        ("tokens", {"text": ["review"], "label": "stars"}, "each row needs a list of strings"),
        ("qa", {"text": ["review"], "label": "stars"}, "name two columns"),
        ("qa", {"text": ["review", "review"], "label": "stars"}, "['review'] is named twice"),
        ("choice", {"text": ["review"], "label": "stars"}, "no column ['choices']"),
        ("choice", {}, "no column ['context', 'label']"),
        ("words", {}, "give one of text, tokens, qa, choice"),
        ("text", {"text": ["review"], "label": "stars", "validation": "dev"}, "no split ['dev'], only ['train']"),
    ],
)
def test_columns_and_kinds_that_do_not_fit(tmp_path, kind, options, says):
    with pytest.raises(ValueError, match=r".") as caught:
        load_task(write(FRAME, tmp_path / "r.csv"), kind, **options)
    assert says in str(caught.value)


def test_answers_without_a_start_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'stars' is .*: give the text and the answer_start"):
        load_task(write(FRAME.assign(title="film"), tmp_path / "r.csv"), "qa", text=["title", "review"], label="stars")
