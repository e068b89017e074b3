"""The latency benchmark at toy size."""

import json
from pathlib import Path

import pytest
from short_runs import launch


@pytest.mark.slow
def test_latency_benchmark(tmp_path):
    recipe = Path(__file__).parents[2] / "recipes/benchmarks/latency.py"
    flags = ("--size", 2, 32, 64, 4, "--size", 1, 16, 32, 4, "--lengths", 16, "--rounds", 2, "--calls", 3)
    launch(recipe, 1, *flags, "--pause", 0, "--batch_size", 4, folder=tmp_path)
    rows = json.loads((tmp_path / "runs/latency.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == ["torch", "onnx", "int8"] * 2
    assert [row["× same engine"] for row in rows[:3]] == [1, 1, 1]
    assert all(0 < row["p50 ms"] <= row["p95 ms"] and row["sequences/s"] > 0 for row in rows)
