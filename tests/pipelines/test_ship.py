"""A student's folder for other runtimes: files, card, and what its lines print."""

import re
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset
from huggingface_hub import ModelCard, snapshot_download
from javascript import pipeline, run_node, transformers_js  # noqa: F401
from scipy.special import softmax
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMultipleChoice,
    BertForSequenceClassification,
)

from hf_tinybert import TextClassification, UnlabelledText, halve_onnx, load_onnx, load_openvino, ship_student
from hf_tinybert.cli import main
from hf_tinybert.pipelines import ship

TEXTS = [f"the {WORDS[i % 2]} {WORDS[2 + i % 3]} {WORDS[i % 10]}" for i in range(200)]
LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
REVIEWS = TextClassification("reviews", ("review",), ("bad", "good"))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The folder of a student with a card, and a teacher's knowledge of half of its rows."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = word_tokenizer(folder)
    build(BertForSequenceClassification, bert_config(1, 32, vocab_size=len(tokenizer), **LABELS)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    ModelCard("---\nlicense: mit\ntags:\n- films\n---\n\n# films\n\n## Lineage\n\nFrom a teacher.\n").save(
        folder / "README.md"
    )
    return folder


@pytest.fixture(scope="module")
def rows(student):
    """Rows whose labels are the student's answers, but for every third."""
    model, tokenizer = (kind.from_pretrained(student) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        answers = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    labels = [answer if i % 3 else 1 - answer for i, answer in enumerate(answers)]
    rows = Dataset.from_dict({"review": TEXTS, "label": labels})
    return rows.cast_column("label", ClassLabel(names=["bad", "good"]))


@pytest.mark.slow
def test_files_card_and_scores(student, rows, tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    monkeypatch.setitem(ship.CONVERTERS, "fp16", refuse)
    shipment = ship_student(student, folder, REVIEWS, rows, ["int8", "fp16"], 0.5, max_loss=1)
    assert shipment.refused == ["fp16"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("onnx/model.onnx", "onnx/model_quantized.onnx"),
    }
    torch_file, onnx_file, int8_file, refused = shipment.files
    assert (torch_file.agreement, onnx_file.agreement) == (1, 1)
    assert torch_file.score == onnx_file.score == pytest.approx(133 / 200)
    assert int8_file.megabytes == pytest.approx((folder / "onnx/model_quantized.onnx").stat().st_size / 1e6)
    assert refused.note == "too bad"
    assert_calibrated(student, folder, rows, shipment.calibration)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    assert card.data.tags == ["films", "onnx", "transformers.js"]
    assert "From a teacher." in card.text
    assert "| fp16 | – | – | – | – | too bad |" in card.text
    assert shipment.int8.to_markdown() in card.text
    # Again, into its own folder: the section is replaced, and a format that loses too much score is removed.
    weights, temperature = (folder / "model.safetensors").read_bytes(), shipment.calibration.temperature
    monkeypatch.setattr(ship, "load_onnx", lambda path: with_wrong_answers(load_onnx(path), path.name != "model.onnx"))
    monkeypatch.setitem(ship.CONVERTERS, "fp16", halve_onnx)
    again = ship_student(folder, folder, REVIEWS, rows, ["int8", "fp16"], 0.5, calibrate=False)
    assert again.refused == ["int8", "fp16"]
    assert re.search(r"None of the \d+ choices of int8 is accepted", again.files[-2].note)
    assert re.search(r"its score of .* is more than max_loss=0\.005 below 0\.665", again.files[-1].note)
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model.onnx"]
    assert ModelCard.load(folder / "README.md").text.count("## Files") == 1
    assert (folder / "model.safetensors").read_bytes() == weights
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.logit_temperature == temperature


def assert_calibrated(student, folder, rows, calibration):
    """The temperature is in the logits of torch and of ONNX Runtime, and makes the labels likelier."""
    assert calibration.temperature != pytest.approx(1, abs=0.05)
    inputs = AutoTokenizer.from_pretrained(student)(TEXTS, padding=True, return_tensors="pt")
    before, after = (AutoModelForSequenceClassification.from_pretrained(path).eval() for path in (student, folder))
    with torch.no_grad():
        logits, divided = (model(**inputs).logits for model in (before, after))
    torch.testing.assert_close(divided, logits / calibration.temperature)
    exported = load_onnx(folder / "onnx/model.onnx")({name: values.numpy() for name, values in inputs.items()})
    np.testing.assert_allclose(exported, divided, atol=1e-5)
    losses = [
        torch.nn.functional.cross_entropy(values, torch.tensor(rows["label"][:])) for values in (divided, logits)
    ]
    assert losses[0] < losses[1]


def refuse(*arguments):
    raise ValueError("too bad")


def with_wrong_answers(serve, wrong: bool):
    return (lambda inputs: -serve(inputs)) if wrong else serve


def test_what_is_not_understood_is_refused_before_anything_is_written(student, rows, tmp_path):
    with pytest.raises(ValueError, match=r"formats=\['tflite'\] is not understood"):
        ship_student(student, tmp_path / "out", formats=["onnx", "tflite"])
    with pytest.raises(ValueError, match="pass both, or none"):
        ship_student(student, tmp_path / "out", rows=rows)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def soft(student):
    """Rows without labels, with the probabilities of a teacher whose logits are half of the student's."""
    model, tokenizer = (kind.from_pretrained(student) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    texts = sorted({f"{text} {word}" for text in TEXTS for word in WORDS[:5]})  # 150, each once
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return Dataset.from_dict({"review": texts, "teacher_probabilities": (logits / 2).softmax(-1).tolist()})


def test_rows_with_soft_labels_fit_the_temperature(student, soft, tmp_path):
    task = UnlabelledText.from_teacher(student, ["review"])
    shipment = ship_student(student, tmp_path / "shipped", task, soft, ["onnx"])
    assert shipment.rows == len(soft) > 100
    assert shipment.calibration.temperature == pytest.approx(2, rel=1e-3)
    assert shipment.calibration.error > 0.01
    assert shipment.calibration.error_after == pytest.approx(0, abs=1e-3)
    assert [file.score for file in shipment.files] == [1, 1]
    card = ModelCard.load(tmp_path / "shipped/README.md").text
    assert "The rows have no labels: the score is the agreement with the teacher." in card
    assert "Their expected calibration error against the teacher is 0.000" in card


def test_a_teacher_answers_rows_without_labels(student, soft, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    model, tokenizer = (kind.from_pretrained(student) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        for weights in model.classifier.parameters():
            weights /= 3
    model.save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    ModelCard("---\nlicense: mit\n---\n").save(teacher / "README.md")
    soft.remove_columns("teacher_probabilities").to_parquet(tmp_path / "texts.parquet")
    flags = ["ship", str(student), "--to", str(tmp_path / "shipped"), "--data", str(tmp_path / "texts.parquet")]
    flags += ["--text", "review", "--formats", "onnx"]
    assert main(flags) == 1
    assert (
        "has no column 'label', only ['review']: name its labels (--label), pass a teacher" in capsys.readouterr().err
    )
    assert main([*flags, "--teacher", str(teacher)]) == 0
    assert "with the temperature 3.00" in capsys.readouterr().out
    assert "- model `teacher`: mit" in ModelCard.load(tmp_path / "shipped/README.md").text


def test_rows_that_nothing_answers_are_refused(student, soft, tmp_path):
    task, texts = UnlabelledText.from_teacher(student, ["review"]), soft.remove_columns("teacher_probabilities")
    with pytest.raises(ValueError, match="neither labels nor soft labels: pass a teacher"):
        ship_student(student, tmp_path / "out", task, texts)
    other = AutoModelForSequenceClassification.from_pretrained(student, id2label={0: "good", 1: "bad"})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"The labels of .*other' are \('good', 'bad'\), those of the student"):
        ship_student(student, tmp_path / "out", task, texts, teacher=tmp_path / "other")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_push_that_fails_keeps_what_was_shipped(hub, student, monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail("POST", "/commit/", 500, times=float("inf"))
    flags = ("--formats", "fp16", "--private", "--min_agreement", "0.5")
    assert main(["ship", str(student), "--to", "hf://user/kept", *flags]) == 1
    (command,) = re.findall(r"hf-tinybert (push \S+ --to user/kept --private) ", capsys.readouterr().err)
    hub.faults.clear()
    assert main(command.split()) == 0
    assert {"config.json", "onnx/model_fp16.onnx", "model.safetensors"} <= set(hub.model("user/kept").files())


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_js")
def test_shipped_to_the_hub_every_runtime_gives_the_same_answers(hub, student, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows.to_parquet("reviews.parquet")
    flags = ("--data", "reviews.parquet", "--text", "review", "--label", "label", "--min_agreement", "0.5")
    assert main(["ship", str(student), "--to", "hf://user/films", "--private", *flags, "--max_loss", "1"]) == 0
    assert "user/films" in capsys.readouterr().out
    assert hub.model("user/films").private
    files = hub.model("user/films").files()
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx", "tokenizer.json"} <= set(files)
    folder = snapshot_download("user/films")
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    inputs = tokenizer(TEXTS, padding=True, return_tensors="np")
    with torch.no_grad():
        logits = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(load_onnx(f"{folder}/onnx/model.onnx")(inputs), logits, atol=1e-5)
    for path in Path(folder).glob("openvino/*.xml"):
        values = load_openvino(path)(inputs)
        np.testing.assert_allclose(values, logits, atol=0.5 if "qint8" in path.name else 0.01)
    answers = pipeline("text-classification", Path(folder), [[text] for text in TEXTS], call={"top_k": 2})
    probabilities = [[entry["score"] for entry in sorted(row, key=itemgetter("label"))] for row in answers]
    np.testing.assert_allclose(probabilities, softmax(logits, -1), atol=1e-4)
    local = AutoModelForSequenceClassification.from_pretrained(student)
    assert all(map(torch.equal, model.bert.state_dict().values(), local.bert.state_dict().values()))
    card = ModelCard(files["README.md"].decode())
    assert "In a browser, with transformers.js:" in card.text
    (code,) = re.findall(r"With ONNX Runtime:\n\n```python\n(.*?)```", card.text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["outputs"][0].shape == (1, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_js")
def test_the_lines_of_the_card_run(student, tmp_path, capfd):
    folder = tmp_path / "shipped"
    ship_student(student, folder, min_agreement=0.5)
    card = ModelCard.load(folder / "README.md").text
    assert "In a browser" not in card
    python = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(python) == 1 + bool(find_spec("openvino"))
    for code in python:
        exec(code, names := {})
        assert np.isfinite(np.asarray(names["outputs"][0])).all()
    node = re.search(r"In Node, .*?```js\n(.*?)```", card, re.DOTALL)[1]
    script = tmp_path / "card.cjs"
    loading = 'const { pipeline } = require("@huggingface/transformers");'
    lines = node.replace('import { pipeline } from "@huggingface/transformers";', loading)
    script.write_text(f"(async () => {{{lines}}})();")  # NODE_PATH is not read by modules
    assert re.search(r"label: '(bad|good)', score: 0\.\d+", run_node(script))


@pytest.mark.slow
def test_the_lines_of_a_new_card_run_for_multiple_choice(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    build(BertForMultipleChoice, bert_config(1, 16, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ship_student(tmp_path, tmp_path / "shipped", formats=["onnx"])
    card = ModelCard.load(tmp_path / "shipped/README.md")
    assert card.data.pipeline_tag == "multiple-choice"
    scores = []
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        exec(code, names := {})
        scores.append(np.asarray(names["outputs"][0].detach() if "student" in names else names["outputs"][0]))
    assert [values.shape for values in scores] == [(1, 2)] * 2  # transformers, ONNX Runtime
    np.testing.assert_allclose(*scores, atol=1e-5)
