"""The latency benchmark at toy size."""

import json
from pathlib import Path

import pytest
from javascript import transformers_js  # noqa: F401
from short_runs import launch

RECIPE = Path(__file__).parents[2] / "recipes/benchmarks/latency.py"
FLAGS = ("--size", 1, 16, 32, 4, "--lengths", 16, "--rounds", 2, "--calls", 3, "--pause", 0, "--batch_size", 4)


def measured(folder, *engines, threads=(1,)) -> list[dict]:
    launch(RECIPE, 1, *FLAGS, "--threads", *threads, "--engines", *engines, folder=folder)
    rows = json.loads((folder / "runs/latency.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == [*engines] * len(threads)
    assert [row["threads"] for row in rows] == [number for number in threads for _ in engines]
    assert [row["× same engine"] for row in rows[: len(engines)]] == [1] * len(engines)
    assert all(0 < row["p50 ms"] <= row["p95 ms"] and row["sequences/s"] > 0 for row in rows)
    assert all(row["with tokenizer ms"] > 0 and row["× torch"] > 0 for row in rows)
    return rows


@pytest.mark.slow
def test_engines_of_python(tmp_path):
    pytest.importorskip("nncf", reason="needs the extra openvino")
    measured(tmp_path, "torch", "onnx", "int8", "openvino", "openvino_int8", threads=(1, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_js")
def test_engines_of_javascript(tmp_path):
    measured(tmp_path, "torch", "node", "node_int8", "browser", "browser_int8")
