"""What is measured of one model in one engine, as plain data."""

from dataclasses import dataclass
from typing import Protocol

from .calibration import Calibration


@dataclass
class Measurement:
    """One model in one engine, compared with the reference: the teacher in the first engine.

    Attributes:
        model: "teacher" or "student".
        engine: "torch", "onnx" or "onnx_int8".
        metrics: {name: [value, low, high]}, with the ends of a 95 % percentile bootstrap interval over examples.
        differences: {name: [value, low, high]} of value − the reference's value. Both sides see the same resampled
            examples.
        retained: {name: value / the reference's value}; None if the reference's is not positive.
        agreement: What `Agreement` of `comparison` says: `top1` and `kl`, or `pearson` for scores.
        class_retention: {class: share}, of the decisions that the reference gets right; {} if the prediction head
            names no classes.
        parameters: The number of parameters.
        gigaflops: Of one row of `StudentReport.lengths["flops"]` tokens in torch; a multiplication and an addition
            count as two.
        megabytes: 10⁶ bytes, of weights and buffers in torch, else of the file.
        latency_ms: Milliseconds of the forward of one row, quantiles `p50` and `p95`.
        throughput: Rows per second of the forward in batches.
        engine_agreement: How far the answers are those of the same model in the first engine: the share of equal ones,
            or the correlation of scores (`formats.agreement`).
        calibration: How far the probabilities of its decisions can be trusted; None for scores, and if the logits were
            not held.
    """

    model: str
    engine: str
    metrics: dict[str, list[float]]
    differences: dict[str, list[float]]
    retained: dict[str, float | None]
    agreement: dict[str, float]
    class_retention: dict[str, float | None]
    parameters: int
    gigaflops: float
    megabytes: float
    latency_ms: dict[str, float]
    throughput: float
    engine_agreement: float = 1.0
    calibration: Calibration | None = None

    def __post_init__(self):
        if isinstance(self.calibration, dict):  # read from JSON
            self.calibration = Calibration(**self.calibration)

    @property
    def engine_name(self) -> str:
        """The engine as people write it."""
        return self.engine.replace("onnx", "ONNX").replace("_", " ")


class Measured(Protocol):
    """A report, as far as a figure of it needs to know."""

    measurements: list[Measurement]


def distinct_metrics(measurements: list[Measurement]) -> list[str]:
    """The names of the metrics, without those whose values repeat an earlier metric's in every measurement.

    The mean of one metric, `score`, is an example.
    """
    names = {str([m.metrics[name] for m in measurements]): name for name in reversed(measurements[0].metrics)}
    return list(reversed(names.values()))
