"""The recipe that scores the default beside its alternatives."""

import json

import pytest
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset
from short_runs import launch
from test_structure import ROOT
from transformers import BertForSequenceClassification

from hf_tinybert import GLUE


@pytest.mark.slow
def test_methods_seeds_and_table(tmp_path):
    words = [word for word in WORDS if word.isalpha()]
    texts = [f"{words[i % 13]} {words[i // 13]} {words[i % 5]}" for i in range(100)]
    rows = Dataset.from_dict({"sentence": texts, "label": [i % 2 for i in range(100)]})
    for split, part in (("train", rows.select(range(80))), ("validation", rows.select(range(80, 100)))):
        (tmp_path / "sst2").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / f"sst2/{split}.parquet")
    tokenizer = word_tokenizer(tmp_path)
    for part in (
        build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **GLUE["sst2"].head)),
        tokenizer,
    ):
        part.save_pretrained(tmp_path / "teacher")
    flags = ("--name", "toy", "--data", ".", "--task", "sst2", "--teacher", "teacher", "--size", 2, 16, 32, 4)
    methods = ("--methods", "labels", "transfer", "--seeds", 0, 1, "--labelled", 40)
    recipe = ROOT / "recipes/quality.py"
    launch(recipe, 1, "run", *flags, *methods, "--prediction", '{"num_train_epochs": 1}', folder=tmp_path)
    results = tmp_path / "runs/quality/results"
    assert len([*results.glob("*.json")]) == 6 + 2 * 2
    transfer = json.loads((results / "toy_transfer_s1.json").read_text())
    assert transfer["results"]["transfer"]["rows"] == 40
    assert transfer["settings"]["phases"]["prediction"]["seed"] == 1
    assert transfer["settings"]["teacher"] == "teacher"
    assert any("eval_score" in entry for entry in transfer["logs"]["prediction"])
    head, _, row = launch(recipe, 1, "table", results, folder=tmp_path).splitlines()
    assert head == "| run | teacher | labels | transfer |"
    scores = [json.loads((results / f"toy_transfer_s{seed}.json").read_text())["scores"]["student"] for seed in (0, 1)]
    assert f"| {50 * sum(scores):.1f} ± " in row
    for file in results.glob("toy_transfer_*.json"):  # runs whose names tell the number of transfer rows
        (results / file.name.replace("transfer", "40_transfer")).write_text(file.read_text())
    launch(recipe, 1, "curve", results, "--tasks", "toy", folder=tmp_path)
    assert (results / "transfer_rows.png").stat().st_size > 10_000
    runs = [f"runs/quality/toy_transfer_s{seed}" for seed in (0, 1)]
    recipe = ROOT / "recipes/calibration_error.py"
    printed = launch(recipe, 1, *runs, "--data", ".", "--task", "sst2", folder=tmp_path).splitlines()
    assert "20 rows of sst2, 2 runs" in printed
    measured = json.loads((tmp_path / "runs/calibration_error.json").read_text())
    assert [student["score"] for student in measured["student"]] == scores
    assert all(values["score"] == values["score after"] for values in measured["student"] + measured["teacher"])
    assert measured["teacher"][0] == measured["teacher"][1]  # one teacher of both seeds
