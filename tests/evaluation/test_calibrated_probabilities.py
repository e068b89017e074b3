"""Temperatures and calibration errors against naive formulas."""

from dataclasses import replace

import numpy as np
import pytest
from plain_report import plain_report
from scipy import optimize, special

from hf_tinybert import StudentReport
from hf_tinybert.evaluation.calibration import Calibration, calibration_error, fit_temperature, reliability
from hf_tinybert.evaluation.plots import plot_reliability


def decisions(count: int = 2000, temperature: float = 2.5):
    """Logits, and labels drawn from softmax(z / temperature)."""
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(count, 4)).astype(np.float32)
    labels = [generator.choice(4, p=row) for row in special.softmax(logits.astype(float) / temperature, 1)]
    return logits, np.array(labels)


def test_the_temperature_has_the_highest_likelihood():
    logits, labels = decisions()

    def loss(t):
        return -special.log_softmax(logits.astype(float) / t, 1)[np.arange(len(labels)), labels].mean()

    best = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-3)
    assert best == pytest.approx(2.5, rel=0.1)
    one_hot = np.eye(4)[labels]
    assert fit_temperature(logits, one_hot) == pytest.approx(best, rel=1e-3)
    teacher = special.softmax(logits.astype(float) / 1.7, 1)
    assert fit_temperature(logits, teacher) == pytest.approx(1.7, rel=1e-3)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(0.1, rel=1e-3)  # always right


def test_padding_takes_no_part():
    logits, labels = decisions()
    padded = np.concatenate([logits, np.full((len(logits), 3), np.finfo(np.float32).min / 2)], axis=1)
    assert fit_temperature(padded, labels) == pytest.approx(fit_temperature(logits, labels))
    soft = special.softmax(padded.astype(float), 1)
    assert fit_temperature(padded, soft) == pytest.approx(1, rel=1e-3)


def test_the_error_is_that_of_the_definition():
    logits, labels = decisions()
    probabilities = special.softmax(logits.astype(float), 1)
    confidence, error = probabilities.max(1), 0.0
    for number in range(15):
        chosen = (confidence >= number / 15) & (confidence < (number + 1) / 15)
        if chosen.any():
            accuracy = (probabilities[chosen].argmax(1) == labels[chosen]).mean()
            error += chosen.mean() * abs(accuracy - confidence[chosen].mean())
    assert calibration_error(reliability(logits, labels)) == pytest.approx(error)
    measured = Calibration.measure(logits, labels)
    assert measured.error == pytest.approx(error)
    assert measured.error > 0.15
    assert measured.error_after < 0.04
    assert sum(share for share, _, _ in measured.bins_after) == pytest.approx(1)
    assert Calibration.measure(logits[:1], labels[:1]).decisions == 1


def test_without_labels_the_error_is_that_against_the_teacher():
    """With the teacher's probabilities, and with labels that are drawn from them many times."""
    logits, _ = decisions()
    teacher = special.softmax(logits.astype(float) / 1.7, 1)
    soft = Calibration.measure(logits, teacher)
    assert soft.temperature == pytest.approx(1.7, rel=1e-3)
    assert soft.error_after == pytest.approx(0, abs=0.005)
    generator = np.random.default_rng(0)
    drawn = [generator.choice(4, size=100, p=row) for row in teacher]
    many = Calibration.measure(np.repeat(logits, 100, axis=0), np.concatenate(drawn))
    assert soft.error == pytest.approx(many.error, abs=0.005)
    assert soft.error > 0.1


def test_the_report_tells_errors_and_draws_them():
    report = plain_report()
    assert "calibration" not in report.to_markdown()
    with pytest.raises(ValueError, match="has no calibration"):
        plot_reliability(report)
    calibration = Calibration.measure(*decisions())
    report.measurements = [replace(measurement, calibration=calibration) for measurement in report.measurements]
    assert "Expected calibration error of the probabilities: teacher 0." in report.to_markdown()
    again = StudentReport.from_json(report.to_json())
    assert again == report
    first, second = plot_reliability(again).axes
    assert (first.get_title(), second.get_title()) == ("teacher", "student")
    assert "error 0." in second.get_legend().get_texts()[0].get_text()
