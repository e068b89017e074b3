"""A report as Markdown: one table and the notes to read it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..formats.agreement import MIN_AGREEMENT, MIN_CORRELATION
from .measurement import Measurement, distinct_metrics

CLASSES = 5  # in the notes
AGREEMENTS = {"top1": "same answer", "kl": "KL", "pearson": "correlation"}


def to_table(measurements: Sequence[Measurement]) -> list[str]:
    """The lines of a table with a row for each model and engine."""
    names, agreements = distinct_metrics(measurements), measurements[0].agreement
    header = ["", "engine"]
    for name in names:
        header += [f"{name} (95 %)", "retained"]
    header += [AGREEMENTS[name] for name in agreements]
    header += ["parameters", "MB", "GFLOP", "ms p50 / p95", "rows/s"]
    lines = [header, ["---"] * len(header)]
    for m in measurements:
        cells = [m.model, m.engine_name]
        for name in names:
            cells += ["{:.3f} ({:.3f} to {:.3f})".format(*m.metrics[name]), _percent(m.retained[name])]
        cells += [_percent(value) if name == "top1" else f"{value:.3f}" for name, value in m.agreement.items()]
        cells += [f"{m.parameters / 1e6:.1f} M", f"{m.megabytes:.1f}", f"{m.gigaflops:.3g}"]
        cells += ["{p50:.1f} / {p95:.1f}".format(**m.latency_ms), f"{m.throughput:.0f}"]
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def to_notes(
    measurements: Sequence[Measurement],
    student: Measurement,
    rows: int,
    lengths: Mapping[str, float],
    batch_size: int,
    machine: Mapping[str, Any],
) -> list[str]:
    """The paragraphs below the table.

    Args:
        measurements: All of them, the reference first.
        student: The student in the first engine.
        rows: The number of rows.
        lengths: Tokens a row: `mean`, `max` and `flops`.
        batch_size: Rows in a batch.
        machine: Names and values.
    """
    engine = measurements[0].engine_name
    differences = [
        "{} {:+.3f} ({:+.3f} to {:+.3f})".format(name, *student.differences[name])
        for name in distinct_metrics(measurements)
    ]
    return [
        f"Retained and agreement are against the teacher in {engine}; 95 %: bootstrap interval over examples. Student "
        f"− teacher in {engine}: {', '.join(differences)}.",
        *_engine_notes(measurements),
        *_calibration_notes(measurements),
        *_class_notes(student),
        f"{rows} rows of {lengths['mean']:.0f} tokens on average, {lengths['max']:.0f} at most. ms: forward of one "
        f"row; rows/s: in batches of {batch_size}; GFLOP: one row of {lengths['flops']:.0f} tokens. "
        f"{', '.join(f'{name} {value}' for name, value in machine.items())}.",
    ]


def _engine_notes(measurements: Sequence[Measurement]) -> list[str]:
    """A warning for each model that an engine changes by more than an export allows."""
    notes, engine = [], measurements[0].engine_name
    for m in measurements:
        value, correlates = m.engine_agreement, "pearson" in m.agreement
        if value < (MIN_CORRELATION if correlates else MIN_AGREEMENT):
            changes = f"correlates by {value:.3f} with" if correlates else f"gives {_percent(value)} of the answers of"
            notes.append(
                f"Warning: the {m.model} in {m.engine_name} {changes} the same model in {engine}. An export to this "
                "format looks for another choice, or refuses it."
            )
    return notes


def _calibration_notes(measurements: Sequence[Measurement]) -> list[str]:
    """The expected calibration errors of teacher and student in the first engine."""
    measured = [m for m in measurements if m.calibration and m.engine == measurements[0].engine]
    errors = [
        f"{m.model} {m.calibration.error:.3f}, {m.calibration.error_after:.3f} at temperature "
        f"{m.calibration.temperature:.2f}"
        for m in measured
    ]
    return [f"Expected calibration error of the probabilities: {'; '.join(errors)}."] if errors else []


def _class_notes(student: Measurement) -> list[str]:
    classes = sorted(student.class_retention.items(), key=lambda item: (item[1] is None, item[1] or 0.0))
    if not classes:
        return []
    number = f", {CLASSES} lowest of {len(classes)}" if len(classes) > CLASSES else ""
    shares = ", ".join(f"{name} {_percent(share)}" for name, share in classes[:CLASSES])
    return [f"Share of the teacher's correct predictions in which the student is correct too{number}: {shares}."]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
