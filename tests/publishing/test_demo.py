"""The page that runs a student in a browser, as a person uses it in headless Chromium."""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import bert_config, build, word_tokenizer
from javascript import missing, run_node, transformers_js  # noqa: F401
from plain_report import plain_report
from scipy import special
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_tinybert.cli import main
from hf_tinybert.formats.layout import ONNX, ONNX_INT8
from hf_tinybert.formats.onnx_export import load_onnx
from hf_tinybert.publishing import demo
from hf_tinybert.publishing.demo import write_demo

OPEN = Path(__file__).parents[1] / "open_demo.cjs"
TEXT = "the film is very good ."


@pytest.fixture
def packages(tmp_path):
    """A node_modules folder with empty files."""
    for package, files in demo.SCRIPTS.items():
        for file in files:
            path = tmp_path / "node_modules" / package / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return tmp_path / "node_modules"


def test_everything_that_the_page_loads_lies_in_its_folder(served, packages, tmp_path):
    folder = tmp_path / "page"
    write_demo(folder, served, "films", [TEXT], plain_report(), packages)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"index.html", "style.css", "script.js", "demo.json", "student/config.json"} <= names
    assert {f"student/{ONNX_INT8}", "student/tokenizer.json", "transformers.js/ort.wasm.min.mjs"} <= names
    content = json.loads((folder / "demo.json").read_text())
    assert (content["dtype"], content["samples"], len(content["figures"])) == ("q8", [TEXT], 4)
    assert content["megabytes"] == (served / ONNX_INT8).stat().st_size / 1e6
    pages = "".join((folder / name).read_text() for name in ("index.html", "style.css", "script.js"))
    assert "http" not in pages  # nothing from elsewhere
    (float_only := tmp_path / "float/onnx").mkdir(parents=True)
    shutil.copy(served / ONNX, float_only)
    write_demo(folder, float_only.parent, "films", transformers_js=packages)
    assert json.loads((folder / "demo.json").read_text())["dtype"] == "fp32"


def test_what_is_missing_is_said(served, packages, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="ship the student first"):
        write_demo(tmp_path / "page", tmp_path, "films", transformers_js=packages)
    (packages / "onnxruntime-web/dist/ort.wasm.min.mjs").unlink()
    with pytest.raises(ValueError, match=r"There is no .*ort\.wasm\.min\.mjs: pass the node_modules folder"):
        write_demo(tmp_path / "page", served, "films", transformers_js=packages)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm could not fetch @huggingface/transformers"):
        write_demo(tmp_path / "page", served, "films")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_a_person_types_and_reads_the_answer(transformers_js, tmp_path):  # noqa: F811
    chromium = shutil.which("chromium") or missing("Chromium")
    if not (transformers_js.parents[1] / "puppeteer-core").is_dir():
        missing("The package puppeteer-core in NODE_PATH")
    tokenizer = word_tokenizer(tmp_path)
    build(BertForSequenceClassification, bert_config(2, 32)).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "report.json").write_text(plain_report().to_json())
    flags = ("--formats", "int8", "--min_agreement", 0.5, "--report", tmp_path / "report.json")
    flags += ("--to", tmp_path / "films", "--demo", tmp_path / "page", "--transformers_js", transformers_js.parents[1])
    assert main(["ship", str(tmp_path / "student"), *map(str, flags)]) == 0
    shown = open_page(tmp_path / "page", chromium, tmp_path)
    assert shown["problems"] == []
    assert all(address.startswith("http://127.0.0.1:") for address in shown["requests"])
    assert shown["overflow"] == [False, False]
    assert (shown["figures"], shown["milliseconds"] > 0) == (4, True)
    serve, tokenizer = load_onnx(tmp_path / "films" / ONNX_INT8), AutoTokenizer.from_pretrained(tmp_path / "films")
    expected = special.softmax(serve(tokenizer([TEXT], return_tensors="np"))[0])
    labels = ["negative", "positive", "neutral"]
    assert [label for label, _ in shown["answer"]] == [labels[index] for index in np.argsort(-expected)]
    np.testing.assert_allclose([value for _, value in shown["answer"]], np.sort(expected)[::-1], atol=0.01)
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("desktop", "phone"))


def open_page(page: Path, chromium: str, screenshots: Path) -> dict:
    """What the page shows, served on this machine."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=page)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        settings = {"chromium": chromium, "url": url, "text": TEXT, "folder": str(screenshots)}
        try:
            return json.loads(run_node(OPEN, json.dumps(settings)))
        finally:
            server.shutdown()
