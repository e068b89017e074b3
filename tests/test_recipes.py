"""The recipes as a user runs them, at toy size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

ROOT = Path(__file__).parents[1]


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_quickstart_with_a_teacher_and_a_data_set_of_ones_own(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    teacher = build(
        BertForSequenceClassification, bert_config(4, 32, heads=12 // 3, vocab_size=len(tokenizer), **labels)
    )
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    texts = [f"the {WORDS[i % 2]} {WORDS[2 + i % 3]} {WORDS[i % 10]}" for i in range(60)]
    data = Dataset.from_dict({"sentence": texts, "label": [1 - i % 2 for i in range(60)]})
    (tmp_path / "data").mkdir()
    data.cast_column("label", ClassLabel(names=["no", "yes"])).to_parquet(tmp_path / "data/train.parquet")
    run(
        tmp_path,
        ROOT / "recipes/quickstart.py",
        *("--teacher", "teacher", "--dataset", "data", "--text", "sentence", "--output_dir", "out", "--epochs", 1),
        *("--size", 2, 16, 32, 4),
    )
    table = (tmp_path / "out/results.md").read_text().splitlines()
    assert len(table) == 2 + 6
    student, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out/student", output_loading_info=True
    )
    assert not any(loading.values())
    assert student.config.hidden_size == 16
    assert student.config.id2label == labels["id2label"]


@pytest.mark.slow
def test_step_benchmark(tmp_path):
    flags = ("--lengths", 16, "--tokens", 32, "--rounds", 1, "--steps", 2, "--memory")
    printed = run(tmp_path, ROOT / "recipes/benchmarks/step.py", *flags)
    (row,) = json.loads((tmp_path / "runs/step.json").read_text())["rows"]
    assert row["S"] == 16
    assert all(row[f"{name} ms"] > 0 and row[f"{name} MB"] > 500 for name in ("limit", "ours", "eager"))
    assert "ours / limit" in printed
