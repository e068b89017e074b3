"""How much of its teacher a student retains, and at what cost: scores, agreement, size and speed on the same rows."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..models.checks import check_label_names
from ..models.forward import evaluation_mode
from ..models.prediction_heads import prediction_head_of
from .comparison import Agreement, compare
from .engines import ENGINES, Preprocess, Run, count_flops, latencies, predict, runs_of
from .measurement import Measurement
from .plots import plot_latency, plot_reliability, save_png
from .rendering import to_notes, to_table
from .rows import EvaluationRows, input_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class StudentReport:
    """Teacher and student measured on the same rows and machine: plain data, made by `StudentReport.measure`.

    Attributes:
        measurements: The teacher's, then the student's, one for each engine.
        rows: The number of rows.
        lengths: Tokens of a row: `mean`, `max`, and `flops`, those of the row nearest to the mean, whose operations
            are counted. In multiple choice all choices count.
        batch_size: Rows in a batch.
        resamples: The number of bootstrap resamples.
        machine: CPU, threads, device and versions.
    """

    measurements: list[Measurement]
    rows: int
    lengths: dict[str, float]
    batch_size: int
    resamples: int
    machine: dict[str, Any]

    @classmethod
    def measure(
        cls,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
        batch_size: int = 32,
        engines: Sequence[str] = ENGINES,
        calls: int = 100,
        resamples: int = 1000,
        seed: int = 0,
        preprocess_logits_for_metrics: Preprocess | None = None,
    ) -> "StudentReport":
        """Run both models in every engine on the same rows.

        Every kind of prediction head is served: classes, several labels, scores, tokens, spans, choices and masked
        tokens. Rows of similar length share a batch. The engines take turns, batch by batch, then for the latency of
        single rows. ONNX runs on the CPU in as many threads as torch and needs `pip install 'hf_tinybert[export]'`;
        torch runs on the device of the models, in their dtype.

        Args:
            teacher: The teacher, whose outputs in the first engine are the reference.
            student: The student, with the same kind of prediction head.
            dataset: Tokenised rows with `labels`, or `start_positions` and `end_positions` for spans. Rows for masked
                language modelling hold masked tokens, and labels that are −100 at the other tokens.
            processing_class: The tokenizer, which pads.
            compute_metrics: Trainer's, with metrics of which more is better. Question answering needs the task's
                `scorer(rows, dataset)`, which also scores every question once for all resamples.
            batch_size: Rows in a batch (default 32).
            engines: Some of "torch", "onnx" and "onnx_int8"; default all.
            calls: Single rows, spread evenly over the lengths, for the latency (default 100).
            resamples: Bootstrap resamples (default 1000).
            seed: The seed of the resamples (default 0).
            preprocess_logits_for_metrics: Trainer's: (logits, labels) → the tensor that `compute_metrics` receives.
                Logits are then not held, which masked language modelling with a large vocabulary needs.

        Raises:
            ValueError: If models, rows and engines do not fit; before anything is measured.
        """
        models = {"teacher": teacher, "student": student}
        _check(teacher, student, dataset, processing_class, engines)
        rows = EvaluationRows(dataset, [teacher, student], processing_class)
        agreement = Agreement(prediction_head_of(teacher), teacher.config.id2label, len(models) * len(engines))
        with TemporaryDirectory() as folder, ExitStack() as stack:
            for model in models.values():
                stack.enter_context(evaluation_mode(model))
            flops = {role: count_flops(model, rows.batch([rows.typical])) for role, model in models.items()}
            runs: list[Run] = []
            for role, model in models.items():
                runs += runs_of(role, model, engines, processing_class, Path(folder, role))
            outputs = predict(runs, rows, batch_size, agreement, preprocess_logits_for_metrics)
            milliseconds = latencies(runs, [rows.batch([number]) for number in rows.spread(calls)])
        scores = compare(outputs.predictions, compute_metrics, resamples, seed)
        measurements = []
        for index, run in enumerate(runs):
            p50, p95 = np.percentile(milliseconds[index], [50, 95]).tolist()
            measurements.append(
                Measurement(
                    model=run.model,
                    engine=run.engine,
                    metrics=scores[index].metrics,
                    differences=scores[index].differences,
                    retained=scores[index].retained,
                    agreement=agreement.agreement(index),
                    class_retention=agreement.class_retention(index),
                    parameters=models[run.model].num_parameters(),
                    gigaflops=flops[run.model] / 1e9,
                    megabytes=run.bytes / 1e6,
                    latency_ms={"p50": p50, "p95": p95},
                    throughput=len(rows) / outputs.seconds[index],
                    engine_agreement=outputs.engine_agreement[index],
                    calibration=outputs.calibrations[index],
                )
            )
        return cls(measurements, len(rows), rows.token_counts, batch_size, resamples, _machine(teacher, engines))

    @property
    def student(self) -> Measurement:
        """The student in the first engine."""
        return next(measurement for measurement in self.measurements if measurement.model == "student")

    @property
    def summary(self) -> dict[str, float]:
        """The student's metrics in the first engine, without intervals."""
        return {name: value for name, (value, _, _) in self.student.metrics.items()}

    def to_json(self) -> str:
        """The report as JSON, for `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "StudentReport":
        """The report that `to_json` wrote."""
        data = json.loads(text)
        return cls(**data | {"measurements": [Measurement(**fields) for fields in data["measurements"]]})

    def to_markdown(self) -> str:
        """One table with a row for each model and engine, and the notes to read it."""
        notes = to_notes(self.measurements, self.student, self.rows, self.lengths, self.batch_size, self.machine)
        return "\n".join(to_table(self.measurements)) + "\n\n" + "\n\n".join(notes) + "\n"

    def save(self, folder: str | Path, **figures: "Figure") -> None:
        """Write report.json, report.md, latency.png and, for a head that decides, reliability.png.

        Needs `pip install 'hf_tinybert[report]'`.

        Args:
            folder: The folder; it is made if it does not exist.
            figures: More figures, for example `losses=plot_losses(...)`. Each is written as NAME.png and shown in
                report.md.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.to_json(), encoding="utf8")
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf8")
        figures = {"latency": plot_latency(self), **figures}
        if any(measurement.calibration for measurement in self.measurements):
            figures["reliability"] = plot_reliability(self)
        for name, figure in figures.items():
            save_png(figure, folder / f"{name}.png")
        images = "".join(f"\n![{name}]({name}.png)\n" for name in figures)
        (folder / "report.md").write_text(self.to_markdown() + images, encoding="utf8")


def _check(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    engines: Sequence[str],
) -> None:
    if not engines or set(engines) - set(ENGINES):
        raise ValueError(f"engines={engines!r} is not understood: give some of {ENGINES}.")
    teacher_head, student_head = prediction_head_of(teacher), prediction_head_of(student)
    if type(teacher_head) is not type(student_head):
        raise ValueError(
            f"The student's logits are {student_head.name}, the teacher's {teacher_head.name}: give both a head of "
            "the same kind (and the same problem_type)."
        )
    missing = [name for name in teacher_head.label_names if name not in dataset.column_names]
    if missing or not len(dataset):
        raise ValueError(
            f"The report needs tokenised rows with {list(teacher_head.label_names)}; there are {len(dataset)} with "
            f"{dataset.column_names}: rename_column('label', 'labels'), and take a split that is labelled."
        )
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(
            f"processing_class is {type(processing_class).__name__}: pass the tokenizer, which pads the rows."
        )
    taken = {*input_columns(teacher), *input_columns(student)} & {*processing_class.model_input_names}
    if set(engines) != {"torch"} and (missing := taken - {*dataset.column_names}):
        raise ValueError(f"The rows lack {missing}, which the ONNX graphs take: tokenise with processing_class.")
    if teacher.device != student.device:
        raise ValueError(f"Teacher on {teacher.device}, student on {student.device}: move both to the same device.")
    check_label_names(student.config.id2label, teacher.config.id2label, "student")


def _machine(model: PreTrainedModel, engines: Sequence[str]) -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ["torch"] if set(engines) == {"torch"} else ["torch", "onnxruntime"]
    machine = {"cpu": (names or [platform.processor()])[0], "threads": torch.get_num_threads()}
    cuda = model.device.type == "cuda"
    machine["torch_device"] = torch.cuda.get_device_name(model.device) if cuda else str(model.device)
    return machine | {name: version(name) for name in packages}
