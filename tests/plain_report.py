"""A report without models: plain numbers that differ wherever they can."""

from dataclasses import replace

from hf_tinybert import StudentReport
from hf_tinybert.evaluation.measurement import Measurement

TEACHER = Measurement(
    model="teacher",
    engine="torch",
    metrics={"accuracy": [0.91, 0.885, 0.934], "score": [0.91, 0.885, 0.934]},
    differences={"accuracy": [0.0, 0.0, 0.0], "score": [0.0, 0.0, 0.0]},
    retained={"accuracy": 1.0, "score": 1.0},
    agreement={"top1": 1.0, "kl": 0.0},
    class_retention={"bad": 1.0, "good": 1.0, "absent": None},
    parameters=109_000_000,
    gigaflops=9.87,
    megabytes=438.0,
    latency_ms={"p50": 40.1, "p95": 55.5},
    throughput=31.4,
)
STUDENT = replace(
    TEACHER,
    model="student",
    metrics={"accuracy": [0.861, 0.832, 0.889], "score": [0.861, 0.832, 0.889]},
    differences={"accuracy": [-0.049, -0.07, -0.028], "score": [-0.049, -0.07, -0.028]},
    retained={"accuracy": 0.946, "score": 0.946},
    agreement={"top1": 0.927, "kl": 0.123},
    class_retention={"bad": 0.952, "good": 0.913, "absent": None},
    parameters=14_500_000,
    gigaflops=0.61,
    megabytes=58.0,
    latency_ms={"p50": 4.2, "p95": 6.3},
    throughput=412.0,
)
INT8 = replace(
    STUDENT,
    engine="onnx_int8",
    megabytes=14.7,
    latency_ms={"p50": 1.7, "p95": 2.6},
    agreement={"top1": 0.921, "kl": 0.131},
)


def plain_report() -> StudentReport:
    machine = {"cpu": "a CPU", "threads": 2, "torch_device": "cpu", "torch": "2.9"}
    lengths = {"mean": 23.4, "max": 64, "flops": 23}
    return StudentReport([TEACHER, STUDENT, INT8], 872, lengths, 32, 1000, machine)
