"""A report in its forms: Markdown, JSON, files."""

import re
import sys
from dataclasses import replace

import pytest
from plain_report import STUDENT, plain_report

from hf_tinybert import StudentReport


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", text)]


def test_the_table_has_a_row_for_each_measurement_with_its_numbers():
    report = plain_report()
    header, _, *lines = table(report.to_markdown())
    assert [line[:2] for line in lines] == [["teacher", "torch"], ["student", "torch"], ["student", "ONNX int8"]]
    for measurement, line in zip(report.measurements, lines, strict=True):
        cells = dict(zip(header, line, strict=True))
        assert numbers(cells["accuracy (95 %)"]) == pytest.approx(measurement.metrics["accuracy"], abs=5e-4)
        assert numbers(cells["retained"]) == pytest.approx([100 * measurement.retained["accuracy"]], abs=0.05)
        assert numbers(cells["same answer"]) == pytest.approx([100 * measurement.agreement["top1"]], abs=0.05)
        assert numbers(cells["KL"]) == pytest.approx([measurement.agreement["kl"]], abs=5e-4)
        assert numbers(cells["parameters"]) == pytest.approx([measurement.parameters / 1e6], abs=0.05)
        assert numbers(cells["MB"]) == pytest.approx([measurement.megabytes], abs=0.05)
        assert numbers(cells["GFLOP"]) == pytest.approx([measurement.gigaflops], rel=0.01)
        assert numbers(cells["ms p50 / p95"]) == pytest.approx([*measurement.latency_ms.values()], abs=0.05)
        assert numbers(cells["rows/s"]) == pytest.approx([measurement.throughput], abs=0.5)


def test_the_notes_say_what_the_table_is_about():
    notes = plain_report().to_markdown().partition("\n\n")[2]
    assert "accuracy -0.049 (-0.070 to -0.028)" in notes
    assert "good 91.3 %, bad 95.2 %, absent –" in notes  # the lowest first
    assert "872 rows of 23 tokens on average, 64 at most" in notes
    assert "batches of 32" in notes
    assert "a CPU" in notes


def test_the_lowest_of_many_classes_are_shown():
    report = plain_report()
    report.measurements[1] = replace(STUDENT, class_retention={f"class {i}": i / 10 for i in range(10, 0, -1)})
    text = report.to_markdown()
    assert "5 lowest of 10: class 1 10.0 %" in text
    assert "class 6" not in text


def test_heads_without_classes_have_no_note_about_them():
    report = plain_report()
    paragraphs = report.to_markdown().strip().split("\n\n")
    report.measurements[1] = replace(STUDENT, class_retention={})
    assert report.to_markdown().strip().split("\n\n") == paragraphs[:2] + paragraphs[3:]


def test_an_engine_that_changes_answers_is_a_warning():
    report = plain_report()
    report.measurements[2] = replace(report.measurements[2], engine_agreement=0.69)
    text = report.to_markdown()
    assert "Warning: the student in ONNX int8 gives 69.0 % of the answers of the same model in torch." in text
    report.measurements[2] = replace(report.measurements[2], engine_agreement=0.985)
    assert "Warning" not in report.to_markdown()
    scores = replace(report.measurements[2], agreement={"pearson": 0.9})
    report.measurements = [replace(m, agreement={"pearson": 0.9}) for m in report.measurements[:2]] + [scores]
    assert (
        "Warning: the student in ONNX int8 correlates by 0.985 with the same model in torch." in report.to_markdown()
    )


def test_a_metric_that_repeats_another_one_is_shown_once():
    report = plain_report()
    assert "score" not in report.to_markdown()
    assert report.summary == {"accuracy": 0.861, "score": 0.861}
    report.measurements[2] = replace(report.measurements[2], metrics={**STUDENT.metrics, "score": [0.5, 0.4, 0.6]})
    assert "score" in report.to_markdown()


def test_json_and_back():
    assert StudentReport.from_json(plain_report().to_json()) == plain_report()


def test_save_writes_the_numbers_the_table_and_the_figures(tmp_path):
    report = plain_report()
    report.save(tmp_path / "out")
    assert StudentReport.from_json((tmp_path / "out/report.json").read_text()) == report
    text = (tmp_path / "out/report.md").read_text(encoding="utf8")
    assert text.startswith(report.to_markdown())
    assert "(latency.png)" in text
    assert (tmp_path / "out/latency.png").read_bytes().startswith(b"\x89PNG")


def test_save_without_matplotlib_writes_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'hf_tinybert[report]'")):
        plain_report().save(tmp_path)
    assert StudentReport.from_json((tmp_path / "report.json").read_text()) == plain_report()
