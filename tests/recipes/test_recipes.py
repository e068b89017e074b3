"""The recipes as a user runs them, at toy size."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset
from huggingface_hub import ModelCard
from short_runs import launch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

RECIPES = Path(__file__).parents[2] / "recipes"


def run(folder, recipe, *flags, processes=1):
    return launch(RECIPES / recipe, processes, *flags, folder=folder)


def quickstart(tmp_path) -> dict:
    """Run the quickstart with a local teacher and data set; returns the teacher's labels."""
    tokenizer = word_tokenizer(tmp_path)
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    teacher = build(
        BertForSequenceClassification, bert_config(4, 32, heads=12 // 3, vocab_size=len(tokenizer), **labels)
    )
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    texts = [f"the {WORDS[i % 2]} {WORDS[2 + i % 3]} {WORDS[i % 10]} {WORDS[i % 7]}" for i in range(120)]
    data = Dataset.from_dict({"sentence": texts, "label": [1 - i % 2 for i in range(120)]})
    (tmp_path / "data").mkdir()
    data.cast_column("label", ClassLabel(names=["no", "yes"])).to_parquet(tmp_path / "data/train.parquet")
    run(
        tmp_path,
        "quickstart.py",
        *("--teacher", "teacher", "--dataset", "data", "--text", "sentence", "--output_dir", "out", "--copies", 0),
        *("--size", 2, 16, 32, 4),
    )
    return labels


def test_quickstart_with_a_local_teacher_and_data_set(tmp_path):
    labels = quickstart(tmp_path)
    table = (tmp_path / "out/results.md").read_text().splitlines()
    assert len(table) == 2 + 4
    student, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out/student", output_loading_info=True
    )
    assert not any(loading.values())
    assert student.config.hidden_size == 16
    assert student.config.id2label == labels["id2label"]


@pytest.mark.slow
def test_ship_the_quickstarts_student(hub, tmp_path):
    """Report, card, formats, push, load by id, equal probabilities, in a process that finds the Hub by HF_ENDPOINT."""
    quickstart(tmp_path)
    flags = ("--teacher", "teacher", "--student", "out/student", "--rows", "out/held_out.parquet", "--private")
    printed = run(tmp_path, "ship.py", *flags, "--text", "sentence", "--data_name", "films", "--to", "user/films")
    assert "Pulled by id, probabilities equal: True" in printed
    assert re.search(r"onnx \| onnx/model\.onnx \| 0\.\d \| 1\.0000 \| ", printed)
    files = hub.model("user/films").files()
    assert hub.model("user/films").private
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "onnx/model.onnx"} <= set(files)
    assert not any("optimizer" in name or "projection" in name or "checkpoint" in name for name in files)
    card = ModelCard(files["README.md"].decode())
    assert hub.count("POST", "/validate-yaml")  # the server has accepted the card
    (result,) = card.data.eval_results
    report = json.loads((tmp_path / "runs/ship/report.json").read_text())
    assert result.dataset_name == "films"
    assert result.metric_value == report["measurements"][3]["metrics"]["accuracy"][0]
    assert [m["engine"] for m in report["measurements"]] == ["torch", "onnx", "onnx_int8"] * 2
    assert "distilled" in card.text
    pulled = AutoModelForSequenceClassification.from_pretrained("user/films")
    local = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/student")
    assert all(map(torch.equal, pulled.state_dict().values(), local.state_dict().values()))


@pytest.mark.slow
def test_step_benchmark(tmp_path):
    flags = ("--lengths", 16, "--tokens", 32, "--rounds", 1, "--steps", 2, "--memory")
    printed = run(tmp_path, "benchmarks/step.py", *flags)
    (row,) = json.loads((tmp_path / "runs/step.json").read_text())["rows"]
    assert row["S"] == 16
    assert all(row[f"{name} ms"] > 0 and row[f"{name} MB"] > 500 for name in ("limit", "hf_tinybert", "eager"))
    assert "hf_tinybert / limit" in printed


@pytest.mark.slow
def test_general_distillation_benchmark(tmp_path):
    flags = ("--teacher_size", 2, 32, 64, 4, "--student_size", 1, 16, 32, 4, "--length", 16, "--batch_size", 2)
    run(tmp_path, "benchmarks/general_distillation.py", *flags, "--steps", 4, "--warmup", 2)
    row = json.loads((tmp_path / "runs/general_distillation.json").read_text())
    layer = 2 * (4 * 32**2 + 2 * 32 * 64)  # FLOP a token of a teacher layer, attention itself aside
    assert row["MFLOP / token"] > 2 * layer / 1e6
    assert row["tokens / s"] > 0
    assert row["share of it"] < 1


@pytest.mark.slow
def test_memory_benchmark(tmp_path):
    run(tmp_path, "benchmarks/memory.py", "--lengths", 256, 2048)
    short, long = json.loads((tmp_path / "runs/memory.json").read_text())["rows"]
    for name in ("attention", "relation"):
        assert long[f"{name} MB"] < 16 * max(short[f"{name} MB"], 10)
        assert long[f"direct {name} MB"] > 4 * long[f"{name} MB"]


@pytest.mark.slow
def test_peers_benchmark(tmp_path):
    trainers = ("hf_tinybert", "trainer", "hf_tinybert relation", "relation")
    flags = ("--teacher_size", 2, 16, 32, 4, "--size", 1, 8, 16, 4, "--lengths", 16, "--tokens", 32)
    printed = run(tmp_path, "benchmarks/peers.py", *flags, "--rounds", 1, "--steps", 2, "--memory")
    results = json.loads((tmp_path / "runs/peers.json").read_text())
    rows = {row["variant"]: row for row in results["rows"]}
    assert all(rows[name]["s/step"] > 0 and rows[name]["ratio"] > 0 and rows[name]["MB"] > 300 for name in trainers)
    assert set(rows) | set(results["missing"]) == {*trainers, "textbrewer", "silverspoon", "modelopt"}
    assert all(f"{name}: not installed" in printed for name in results["missing"])


def pretrained(folder, model_class=BertModel, layers=4, width=32):
    """A tiny pre-trained model with its tokenizer in `folder`."""
    folder.mkdir(exist_ok=True)
    tokenizer = word_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    build(model_class, bert_config(layers, width, vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


def test_general_distillation_in_two_processes_equals_one(tmp_path):
    texts = [" ".join(WORDS[(i * j) % 13] for j in range(9)) for i in range(40)]  # 40 sequences: 5 whole batches
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    flags = ("--teacher", pretrained(tmp_path / "base"), "--data", "texts.parquet", "--size", 2, 16, 32, 4)
    flags += ("--max_length", 12, "--epochs", 2, "--calibration_rows", 8, "--save_steps", 4, "--logging_steps", 1)
    states, logs = [], []
    for processes in (1, 2):
        output = ("--batch_size", 8 // processes, "--output_dir", f"out{processes}")
        run(tmp_path, "general_distillation.py", *flags, *output, processes=processes)
        states.append(AutoModel.from_pretrained(tmp_path / f"out{processes}").state_dict())
        logs.append(json.loads((tmp_path / f"out{processes}/trainer_state.json").read_text()))
    single, double = logs
    assert double["global_step"] == single["global_step"] > 4  # one process would take twice as many steps
    for log, want in zip(double["log_history"][:-1], single["log_history"][:-1], strict=True):
        assert log["attention_loss"] == pytest.approx(want["attention_loss"], rel=1e-3)
    for name, want in states[0].items():
        torch.testing.assert_close(states[1][name], want, rtol=1e-3, atol=1e-4)


def test_general_distillation_from_a_stream_sharded_by_rank(tmp_path):
    (tmp_path / "texts").mkdir()
    for part in range(2):
        texts = [" ".join(WORDS[(part + i * j) % 13] for j in range(1 + i % 7)) for i in range(20 + 10 * part)]
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"texts/{part}.parquet")
    flags = ("--teacher", pretrained(tmp_path / "base"), "--data", "texts", "--size", 2, 16, 32, 4, "--stream")
    flags += ("--max_length", 12, "--max_steps", 12, "--calibration_rows", 8, "--batch_size", 4, "--output_dir", "out")
    run(tmp_path, "general_distillation.py", *flags, processes=2)  # more steps than either shard has batches
    assert json.loads((tmp_path / "out/trainer_state.json").read_text())["global_step"] == 12


def test_augmentation_and_task_distillation(tmp_path):
    (tmp_path / "glue/rte").mkdir(parents=True)
    first = [f"the {WORDS[i % 2]} {WORDS[2 + i % 2]}" for i in range(24)]
    rows = {"sentence1": first, "sentence2": first[::-1], "label": [i % 2 for i in range(24)]}
    for split in ("train", "validation"):
        Dataset.from_dict(rows).to_parquet(tmp_path / f"glue/rte/{split}.parquet")
    masked_lm = pretrained(tmp_path / "mlm", BertForMaskedLM, 2, 16)
    (tmp_path / "glove.txt").write_text("\n".join(f"{word} {i} 1" for i, word in enumerate(WORDS)))
    augment = ("--masked_lm", masked_lm, "--vectors", "glove.txt", "--task", "rte", "--data", "glue")
    printed = run(tmp_path, "augment.py", *augment, "--output", "rows.parquet", "--copies", 2, "--show", 3)
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"))
    assert f"24 rows became {len(rows)}" in printed
    assert 24 < len(rows) <= 24 * 5
    teacher = ("--teacher", pretrained(tmp_path / "base"), "--size", 2, 16, 32, 4, "--output_dir", "out")
    run(tmp_path, "task_distillation.py", *augment, *teacher, "--augment", 2, "--batch_size", 4, processes=2)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["rows"] == len(rows)
    assert set(results["student"]["validation"]) == {"accuracy", "score"}
    assert json.loads((tmp_path / "out/student/trainer_state.json").read_text())["global_step"] == 3 * -(
        -len(rows) // 8
    )

    (tmp_path / "table").mkdir()
    (tmp_path / "table/README.md").write_text("# Results\n<!-- results -->\nold\n<!-- end -->\n")
    run(tmp_path, "results.py", "out", "--results", "table")
    backed = json.loads((tmp_path / "table/out.json").read_text())
    assert backed["results"] == results
    assert str(tmp_path) not in json.dumps(backed)
    title, _, _, _, row, _ = (tmp_path / "table/README.md").read_text().splitlines()
    assert title == "# Results"
    assert f"| **{100 * results['student']['validation']['accuracy']:.1f}** |" in row


def glue(folder, task="sst2", count=24):
    (folder / f"glue/{task}").mkdir(parents=True)
    texts = [f"the {WORDS[i % 2]} {WORDS[2 + i % 2]} {WORDS[i % 10]}" for i in range(count)]
    for split in ("train", "validation"):
        rows = Dataset.from_dict({"sentence": texts, "label": [i % 2 for i in range(count)]})
        rows.to_parquet(folder / f"glue/{task}/{split}.parquet")
    return "glue"


@pytest.mark.slow
def test_ablations(tmp_path):
    flags = ("--task", "sst2", "--data", glue(tmp_path), "--teacher", pretrained(tmp_path / "base"))
    general = BertModel(bert_config(2, 16, vocab_size=20))
    general.save_pretrained(tmp_path / "general")
    flags += ("--general", "general", "--size", 2, 16, 32, 4, "--intermediate_epochs", 1, "--prediction_epochs", 1)
    flags += ("--fine_tuning_epochs", 1, "--augment", 1, "--masked_lm", pretrained(tmp_path / "mlm", BertForMaskedLM))
    table = run(tmp_path, "ablations.py", *flags).splitlines()[-13:]
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| everything", "| without general distillation"]
    assert len(list((tmp_path / "runs/ablations/sst2").glob("*/results.json"))) == 11


@pytest.mark.slow
def test_epoch_benchmark(tmp_path):
    flags = ("--data", glue(tmp_path), "--teacher", pretrained(tmp_path / "base"), "--size", 2, 16, 32, 4)
    run(tmp_path, "benchmarks/epoch.py", *flags, "--rounds", 1)
    written = json.loads((tmp_path / "runs/epoch.json").read_text())
    assert written["cached bytes a row"] > 0
    logits, activations, *rows = written["results"]
    assert logits["hf_tinybert s"] > 0
    assert activations["cached s"] > 0
    assert all(row["padded / hf_tinybert"] > 0 and row["usual / hf_tinybert"] > 0 for row in rows)
    assert all(row[f"{name} / hf_tinybert"] > 0 for row in rows for name in ("packed", "packed, random"))
    assert rows[0]["cached / hf_tinybert"] > 0
    assert rows[1]["plain / hf_tinybert"] > 0


@pytest.mark.slow
def test_augmentation_benchmark_and_its_masked_lm(tmp_path):
    texts = [" ".join(WORDS[(i * j) % 13] for j in range(60)) for i in range(600)]
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    model = pretrained(tmp_path / "mlm", BertForMaskedLM)
    printed = run(
        tmp_path,
        "masked_lm.py",
        *("--model", model, "--data", "texts.parquet", "--max_steps", 3, "--output_dir", "trained"),
    )
    assert "Accuracy at masked tokens" in printed
    flags = ("--data", glue(tmp_path), "--masked_lm", "trained", "--sentences", 8, "--rounds", 1)
    run(tmp_path, "benchmarks/augmentation.py", *flags)
    row = json.loads((tmp_path / "runs/augmentation.json").read_text())
    assert row["same variants"] == 1


def test_ner(tmp_path):
    for name in ("train", "valid", "test"):
        lines = [f"{WORDS[i % 13]} NN {'B-LOC' if i % 13 == 3 else 'O'}" + "\n" * (i % 5 == 4) for i in range(60)]
        (tmp_path / f"{name}.txt").write_text("-DOCSTART- -X- O\n\n" + "\n".join(lines))
    printed = run(tmp_path, "ner.py", "--teacher", pretrained(tmp_path / "base"), "--data", ".", "--smoke")
    results = json.loads((tmp_path / "runs/ner/results.json").read_text())
    assert json.dumps(results, indent=1) in printed
    assert results["rows"] == 12
    assert set(results["student"]) == {"validation", "test"}
    assert set(results["student"]["test"]) == {"accuracy", "precision", "recall", "f1", "score"}
    config = json.loads((tmp_path / "runs/ner/student/config.json").read_text())
    assert (config["architectures"], config["num_hidden_layers"]) == (["BertForTokenClassification"], 1)
    assert config["id2label"] == {"0": "B-LOC", "1": "O"}
