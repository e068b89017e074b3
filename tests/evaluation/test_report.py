"""A report of tiny models: its numbers against Trainer's and formulas, its forms, and what it refuses."""

import copy
import re
import sys

import numpy as np
import pytest
import torch
from conftest import bert_config, build, rows, word_tokenizer
from datasets import Dataset
from short_runs import arguments
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DataCollatorForTokenClassification,
    Trainer,
)

from hf_tinybert.evaluation.report import StudentReport, count_flops


def scores(prediction):
    real = prediction.label_ids != -100
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids)[real].mean())}


def error(prediction):
    return {"within": float((np.abs(prediction.predictions[:, 0] - prediction.label_ids) < 1).mean())}


@pytest.fixture
def measure(tmp_path):
    tokenizer = word_tokenizer(tmp_path)

    def run(teacher, student, dataset=None, compute_metrics=scores, **changes):
        dataset = rows(24) if dataset is None else dataset
        options = {"engines": ("torch",), "batch_size": 8, "calls": 5, "resamples": 20} | changes
        return StudentReport.measure(teacher, student, dataset, tokenizer, compute_metrics, **options)

    return run


@pytest.fixture
def report(measure, teacher, student):
    return measure(teacher, student)


def test_scores_are_trainers(report, teacher, student, tmp_path):
    for found, model in zip(report.measurements, (teacher, student), strict=True):
        trainer = Trainer(
            model, arguments(tmp_path), processing_class=word_tokenizer(tmp_path), compute_metrics=scores
        )
        expected = trainer.predict(rows(24)).metrics["test_accuracy"]
        assert found.metrics["accuracy"][0] == pytest.approx(expected)
        assert found.parameters == model.num_parameters()
        weights = [*model.parameters(), *model.buffers()]
        assert found.megabytes == pytest.approx(sum(x.numel() * x.element_size() for x in weights) / 1e6)
        assert 0 < found.latency_ms["p50"] <= found.latency_ms["p95"]
        assert found.throughput > 0
    assert report.summary == {"accuracy": report.measurements[1].metrics["accuracy"][0]}
    assert (report.rows, report.batch_size, report.resamples) == (24, 8, 20)
    lengths = [len(ids) for ids in rows(24)["input_ids"]]
    assert (report.lengths["mean"], report.lengths["max"]) == (np.mean(lengths), max(lengths))
    assert abs(report.lengths["flops"] - np.mean(lengths)) < 1
    assert report.machine["threads"] == torch.get_num_threads()
    assert report.machine["torch"] == torch.__version__


def test_rows_come_back_in_their_order(measure, teacher, student):
    dataset, seen = rows(24), []

    def watch(prediction):
        seen.append(prediction)
        return scores(prediction)

    measure(teacher, student, dataset, watch)
    whole = seen[0]
    assert whole.label_ids.tolist() == dataset["labels"]
    with torch.no_grad():
        expected = [teacher(torch.tensor([ids])).logits[0] for ids in dataset["input_ids"]]
    np.testing.assert_allclose(whole.predictions, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_batches_change_nothing(measure, teacher, student):
    one, many = (measure(teacher, student, batch_size=size).measurements[1] for size in (1, 24))
    assert one.metrics == many.metrics
    assert one.agreement == pytest.approx(many.agreement, rel=1e-4)


def test_a_teacher_is_its_own_equal(measure, teacher):
    teacher.train()
    attention, found = teacher.config._attn_implementation, measure(teacher, copy.deepcopy(teacher)).measurements[1]
    assert found.retained == {"accuracy": 1}
    assert found.differences == {"accuracy": [0, 0, 0]}
    assert found.agreement == pytest.approx({"top1": 1, "kl": 0}, abs=1e-9)
    assert set(found.class_retention.values()) <= {1, None}
    assert teacher.training
    assert teacher.config._attn_implementation == attention


def test_flops_by_formula(teacher):
    layers, d, f, classes, s = 4, 32, 64, 3, 11
    batch = {
        "input_ids": np.ones((1, s), dtype=int),
        "attention_mask": np.ones((1, s), dtype=int),
        "labels": np.ones(1),
    }
    layer = 2 * s * (4 * d * d + 2 * d * f) + 2 * 2 * s * s * d
    assert count_flops(teacher, batch) == layers * layer + 2 * (d * d + d * classes)


def test_json_and_back(report):
    assert StudentReport.from_json(report.to_json()) == report


def test_markdown_says_what_was_measured(report):
    text = report.to_markdown()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    for found, line in zip(report.measurements, table[2:], strict=True):
        cells = dict(zip(table[0], line, strict=True))
        assert (cells[""], cells["engine"]) == (found.model, "torch")
        numbers = [float(number) for number in re.findall(r"[\d.]+", cells["accuracy (95 %)"])]
        assert numbers == pytest.approx(found.metrics["accuracy"], abs=5e-4)
        assert float(cells["same answer"].rstrip(" %")) == pytest.approx(100 * found.agreement["top1"], abs=0.05)
        assert float(cells["KL"]) == pytest.approx(found.agreement["kl"], abs=5e-4)
    for name in ("negative", "positive", "neutral", "24 rows", "batches of 8", report.machine["cpu"]):
        assert name in text


def test_a_repeated_metric_is_shown_once(measure, teacher, student):
    report = measure(teacher, student, compute_metrics=lambda p: {**scores(p), "score": scores(p)["accuracy"]})
    assert "score" not in report.to_markdown()
    assert report.summary["score"] == report.summary["accuracy"]


def test_regression(measure, tmp_path):
    head = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    models = [build(BertForSequenceClassification, bert_config(2, 16, **head), seed) for seed in (0, 1)]
    labels = [float(y) for y in rows(24)["labels"]]
    dataset = rows(24).remove_columns("labels").add_column("labels", labels)
    report = measure(*models, dataset, error)
    teacher, student = report.measurements
    assert teacher.agreement == pytest.approx({"pearson": 1})
    assert -1 < student.agreement["pearson"] < 1
    assert student.class_retention == {}
    assert "correlation" in report.to_markdown()
    assert "KL" not in report.to_markdown()


def test_labels_of_tokens(measure, token_teacher, token_student, tmp_path):
    dataset = rows(24, token_labels=True)
    found = measure(token_teacher, token_student, dataset).measurements[1]
    tokenizer = word_tokenizer(tmp_path)
    options = {"processing_class": tokenizer, "data_collator": DataCollatorForTokenClassification(tokenizer)}
    trainer = Trainer(token_student, arguments(tmp_path), compute_metrics=scores, **options)
    assert found.metrics["accuracy"][0] == pytest.approx(trainer.predict(dataset).metrics["test_accuracy"])


@pytest.mark.slow
def test_every_engine(measure, teacher, student, tmp_path):
    texts = ["a good film", "the play was not very dull .", "bad", "the book is bright", "a dull player"] * 2
    dataset = Dataset.from_dict({**word_tokenizer(tmp_path)(texts), "labels": [0, 1, 2, 0, 1] * 2})
    report = measure(teacher, student, dataset, engines=("torch", "onnx", "onnx_int8"))
    names = [(found.model, found.engine) for found in report.measurements]
    assert names == [(model, engine) for model in ("teacher", "student") for engine in ("torch", "onnx", "onnx_int8")]
    for torch_run, onnx, int8 in (report.measurements[:3], report.measurements[3:]):
        assert onnx.agreement == pytest.approx(torch_run.agreement, abs=1e-4)
        assert onnx.metrics == torch_run.metrics
        assert int8.agreement["kl"] != pytest.approx(torch_run.agreement["kl"], abs=1e-9)
        assert int8.agreement["kl"] == pytest.approx(torch_run.agreement["kl"], abs=0.1)
        assert len({run.megabytes for run in (torch_run, onnx, int8)}) == 3
    assert report.machine["onnxruntime"]
    assert report.student is report.measurements[3]
    assert "ONNX int8" in report.to_markdown()


def test_save(report, tmp_path):
    report.save(tmp_path / "out")
    assert StudentReport.from_json((tmp_path / "out/report.json").read_text()) == report
    text = (tmp_path / "out/report.md").read_text(encoding="utf8")
    assert text.startswith(report.to_markdown())
    assert "(latency.png)" in text
    assert (tmp_path / "out/latency.png").read_bytes().startswith(b"\x89PNG")


def test_save_without_matplotlib_keeps_the_numbers(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'hf_tinybert[report]'")):
        report.save(tmp_path)
    assert StudentReport.from_json((tmp_path / "report.json").read_text()) == report


def refused(**changes):
    return pytest.param(changes.pop("student", {}), changes.pop("edit", lambda data: data), changes)


@pytest.mark.parametrize(
    ("config", "edit", "options"),
    [
        refused(engines=("tensorrt",), match="tensorrt.*onnx_int8"),
        refused(edit=lambda data: data.remove_columns("labels"), match="'labels'"),
        refused(edit=lambda data: data.select([]), match="0 with"),
        refused(student={"id2label": {0: "neutral", 1: "positive", 2: "negative"}}, match="labels are"),
        refused(student={"problem_type": "multi_label_classification"}, match="multi-label"),
        refused(engines=("torch", "onnx"), match="lack.*token_type_ids"),
    ],
)
def test_refused(measure, teacher, config, edit, options):
    student = build(BertForSequenceClassification, bert_config(2, 16, **config))
    with pytest.raises(ValueError, match=options.pop("match")):
        measure(teacher, student, edit(rows(8)), **options)


def test_heads_without_logits_are_refused(measure):
    models = [build(BertModel, bert_config(2, 16)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"last_hidden_state.*head with logits"):
        measure(*models)


@pytest.mark.parametrize("head", [BertForQuestionAnswering, BertForMultipleChoice, BertForMaskedLM])
def test_heads_of_other_kinds_are_refused_before_anything_runs(measure, teacher, head):
    model = build(head, bert_config(2, 16))
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    for pair in ((model, model), (teacher, model)):  # windows of questions have no labels
        with pytest.raises(ValueError, match=f"not {head.__name__} with spans.*scorer"):
            measure(*pair, rows(8).remove_columns("labels"))
