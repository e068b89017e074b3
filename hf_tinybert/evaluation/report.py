"""What a student keeps of its teacher and what it costs: scores, agreement, size and speed on the same rows."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial, reduce
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from timeit import timeit
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm, trange
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_pt_utils import nested_concat

from ..models.checks import check_label_names
from ..models.export import export_onnx, load_onnx, quantize_onnx
from ..models.forward import evaluation_mode, forward_columns
from ..models.prediction_heads import Classes, Regression, TokenClasses, prediction_head_of
from .comparison import compare
from .plots import plot_latency, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENGINES = ("torch", "onnx", "onnx_int8")
PAUSE = 0.05  # seconds before an engine's turn: the threads of the one before spin on and would slow it down
CLASSES = 5  # in the table's notes
TURN = 10  # latency calls of an engine in one turn

Batch = dict[str, np.ndarray]


@dataclass
class Measurement:
    """One model in one engine, beside the reference: the teacher in the first engine.

    - `metrics`: {name: [value, low, high]}; `differences`: the same of value − reference's value. The ends are 95 %
      percentile bootstrap intervals over rows; a difference sees the same resampled rows on both sides.
    - `retained`: {name: value / reference's value}; None where the reference's is not positive.
    - `agreement` and `class_retention`: what these functions of `comparison` give; no classes in regression.
    - `gigaflops`: of one row of `lengths["flops"]` tokens in torch, an addition and a multiplication being two.
    - `megabytes` (10⁶ bytes): weights and buffers in torch, else the file.
    - `latency_ms`: p50 and p95 of the forward of one row. `throughput`: rows/s of the forward in batches.
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

    @property
    def engine_name(self) -> str:
        """The engine as people write it."""
        return self.engine.replace("onnx", "ONNX").replace("_", " ")


@dataclass
class StudentReport:
    """Teacher and student measured on the same rows and machine: plain data, made by `StudentReport.measure`.

    `measurements`: the teacher's, then the student's, one an engine. `lengths`: tokens a row, `mean` and `max`, and
    `flops`, those of the row nearest to the mean, whose operations are counted.
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
    ) -> "StudentReport":
        """Run both models in every engine over `dataset`: tokenised rows with `labels`.

        For heads of one class a sequence or token, or regression. `compute_metrics` is Trainer's; more is
        better. Rows of similar length go together. The engines take turns, batch by batch, then for the latency of
        `calls` single rows, spread evenly over the lengths. ONNX runs on the CPU in torch's number of threads and
        needs `pip install 'hf_tinybert[export]'`; torch runs where the models are, as they are. Raises ValueError
        where models, rows and engines do not fit, before anything is measured.
        """
        models = {"teacher": teacher, "student": student}
        _check(teacher, student, dataset, processing_class, engines)
        taken = {*forward_columns(teacher), *forward_columns(student)} & {*dataset.column_names}
        rows = dataset.with_format(None).select_columns([*taken, "labels"])
        of_tokens = isinstance(rows[0]["labels"], list)
        collator = DataCollatorForTokenClassification if of_tokens else DataCollatorWithPadding
        collate = collator(processing_class, return_tensors="np")
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        by_length = np.argsort(lengths, kind="stable")
        near_mean = int(np.abs(lengths - lengths.mean()).argmin())
        spread = by_length[np.linspace(0, len(rows) - 1, calls).round().astype(int)]
        chunks = [by_length[start : start + batch_size] for start in range(0, len(rows), batch_size)]

        with TemporaryDirectory() as folder, ExitStack() as stack:
            for model in models.values():
                stack.enter_context(evaluation_mode(model))
            flops = {role: count_flops(model, collate([rows[near_mean]])) for role, model in models.items()}
            runs: list[_Run] = []
            for role, model in models.items():
                runs += _runs(role, model, engines, processing_class, Path(folder, role))
            logits, labels, seconds = _predict(runs, [collate(list(rows.select(chunk))) for chunk in chunks])
            latencies = _latencies(runs, [collate([rows[int(row)]]) for row in spread])

        original = np.argsort(by_length)
        logits, labels = [values[original] for values in logits], labels[original]
        qualities = compare(logits, labels, compute_metrics, teacher.config.id2label, resamples, seed)
        measurements = [
            Measurement(
                model=run.model,
                engine=run.engine,
                **quality,
                parameters=models[run.model].num_parameters(),
                gigaflops=flops[run.model] / 1e9,
                megabytes=run.bytes / 1e6,
                latency_ms={"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))},
                throughput=len(rows) / taken,
            )
            for run, quality, times, taken in zip(runs, qualities, latencies, seconds, strict=True)
        ]
        tokens = {"mean": float(lengths.mean()), "max": int(lengths.max()), "flops": int(lengths[near_mean])}
        return cls(measurements, len(rows), tokens, batch_size, resamples, _machine(teacher, engines))

    @property
    def student(self) -> Measurement:
        """The student in the first engine."""
        return next(found for found in self.measurements if found.model == "student")

    @property
    def summary(self) -> dict[str, float]:
        """The student's metrics in the first engine, without intervals."""
        return {name: value for name, (value, _, _) in self.student.metrics.items()}

    def to_json(self) -> str:
        """All of it; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "StudentReport":
        """The report that `to_json` wrote."""
        data = json.loads(text)
        return cls(**data | {"measurements": [Measurement(**found) for found in data["measurements"]]})

    def to_markdown(self) -> str:
        """One table, a row for each model and engine, and what has to be known to read it."""
        return "\n".join([*_table(self.measurements), "", *_notes(self)]) + "\n"

    def save(self, folder: str | Path, **figures: "Figure") -> None:
        """Write report.json, report.md and latency.png, and each of `figures` as NAME.png, shown in report.md.

        `save(folder, losses=plot_losses(...), attention=plot_attention(...))`; needs `hf_tinybert[report]`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.to_json(), encoding="utf8")
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf8")
        figures = {"latency": plot_latency(self), **figures}
        for name, figure in figures.items():
            save_png(figure, folder / f"{name}.png")
        images = "".join(f"\n![{name}]({name}.png)\n" for name in figures)
        (folder / "report.md").write_text(self.to_markdown() + images, encoding="utf8")


def count_flops(model: PreTrainedModel, batch: Mapping[str, np.ndarray]) -> int:
    """Floating-point operations of the matrix products of one forward, two a multiplication and addition."""
    # the counter knows no operations for sdpa's CPU kernel, so attention is written out
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        _forward_of(model)(batch)
    return counter.get_total_flops()


@dataclass
class _Run:
    """A model in an engine: `call` takes a batch, inputs that are not the model's included, and gives logits."""

    model: str
    engine: str
    call: Callable[[Batch], np.ndarray]
    bytes: int


def _runs(
    role: str, model: PreTrainedModel, engines: Sequence[str], processing_class: PreTrainedTokenizerBase, folder: Path
) -> Iterator[_Run]:
    exported = export_onnx(model, processing_class, folder) if set(engines) != {"torch"} else None
    for engine in engines:
        if engine == "torch":
            yield _Run(role, engine, _forward_of(model), model.get_memory_footprint())
        else:
            path = exported if engine == "onnx" else quantize_onnx(folder)
            size = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))  # large ones keep weights beside
            yield _Run(role, engine, load_onnx(path), size)


def _forward_of(model: PreTrainedModel) -> Callable[[Batch], np.ndarray]:
    columns = forward_columns(model)

    @torch.no_grad()
    def call(batch: Batch) -> np.ndarray:
        outputs = model(**{name: torch.from_numpy(batch[name]).to(model.device) for name in columns if name in batch})
        if "logits" not in outputs:
            raise ValueError(f"{type(model).__name__} gives {list(outputs)}: the report needs a head with logits.")
        return outputs["logits"].float().cpu().numpy()

    return call


def _predict(runs: list[_Run], batches: list[Batch]) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """Logits of each run, labels, and the seconds that each run took."""
    logits: list[list[np.ndarray]] = [[] for _ in runs]
    seconds = [0.0] * len(runs)
    for run in runs:
        run.call(batches[0])  # the first call allocates and plans
    for batch in tqdm(batches, desc="Predicting", leave=False):
        for index, run in enumerate(runs):
            sleep(PAUSE)
            start = perf_counter()
            logits[index].append(run.call(batch))
            seconds[index] += perf_counter() - start
    labels = reduce(nested_concat, [batch["labels"] for batch in batches])  # tokens are padded with -100
    return [reduce(nested_concat, parts) for parts in logits], labels, seconds


def _latencies(runs: list[_Run], rows: list[Batch]) -> list[list[float]]:
    """Milliseconds of each run on each row."""
    times: list[list[float]] = [[] for _ in runs]
    for start in trange(0, len(rows), TURN, desc="Latency", leave=False):
        for run, taken in zip(runs, times, strict=True):
            sleep(PAUSE)
            run.call(rows[start])  # wakes the threads up
            for row in rows[start : start + TURN]:
                taken.append(1000 * timeit(partial(run.call, row), number=1))
    return times


def _check(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    engines: Sequence[str],
) -> None:
    if not engines or set(engines) - set(ENGINES):
        raise ValueError(f"engines={engines!r} is not understood: give some of {ENGINES}.")
    for model in (teacher, student):
        if not isinstance(prediction_head_of(model), Classes | TokenClasses | Regression):
            raise ValueError(
                f"The report covers heads of one class or score a sequence or token, not {type(model).__name__} with "
                "spans, choices, masked tokens or multi-label logits: take Trainer.evaluate with the task's scorer."
            )
    if "labels" not in dataset.column_names or not len(dataset):
        raise ValueError(
            f"The report needs tokenised rows with a column 'labels'; there are {len(dataset)} with "
            f"{dataset.column_names}: rename_column('label', 'labels'), and take a split that is labelled."
        )
    taken = {*forward_columns(teacher), *forward_columns(student)} & {*processing_class.model_input_names}
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


def _table(measurements: Sequence[Measurement]) -> list[str]:
    reference = measurements[0]
    names = _distinct(measurements)
    agreements = {"top1": "same answer", "kl": "KL", "pearson": "correlation"}
    head = ["", "engine"]
    for name in names:
        head += [f"{name} (95 %)", "retained"]
    head += [agreements[name] for name in reference.agreement]
    head += ["parameters", "MB", "GFLOP", "ms p50 / p95", "rows/s"]
    lines = [head, ["---"] * len(head)]
    for m in measurements:
        cells = [m.model, m.engine_name]
        for name in names:
            cells += ["{:.3f} ({:.3f} to {:.3f})".format(*m.metrics[name]), _percent(m.retained[name])]
        cells += [_percent(value) if name == "top1" else f"{value:.3f}" for name, value in m.agreement.items()]
        cells += [f"{m.parameters / 1e6:.1f} M", f"{m.megabytes:.1f}", f"{m.gigaflops:.3g}"]
        cells += ["{p50:.1f} / {p95:.1f}".format(**m.latency_ms), f"{m.throughput:.0f}"]
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _distinct(measurements: Sequence[Measurement]) -> list[str]:
    """The metrics, less those that repeat an earlier one everywhere, as a mean over one metric does."""
    names = {str([m.metrics[name] for m in measurements]): name for name in reversed(measurements[0].metrics)}
    return list(reversed(names.values()))


def _notes(report: StudentReport) -> list[str]:
    engine, student, lengths = report.measurements[0].engine_name, report.student, report.lengths
    differences = [
        "{} {:+.3f} ({:+.3f} to {:+.3f})".format(name, *student.differences[name])
        for name in _distinct(report.measurements)
    ]
    classes = sorted(student.class_retention.items(), key=lambda item: (item[1] is None, item[1] or 0.0))
    of = f", {CLASSES} lowest of {len(classes)}" if len(classes) > CLASSES else ""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    paragraphs = [
        f"Retained and agreement are against the teacher in {engine}; 95 %: bootstrap interval over rows. Student − "
        f"teacher in {engine}: {', '.join(differences)}.",
        f"Of the rows that the teacher has right the student has right too{of}: "
        f"{', '.join(f'{name} {_percent(share)}' for name, share in classes[:CLASSES])}.",
        f"{report.rows} rows of {lengths['mean']:.0f} tokens on average, {lengths['max']:.0f} at most. ms: forward of "
        f"one row; rows/s: in batches of {report.batch_size}; GFLOP: one row of {lengths['flops']:.0f} tokens. "
        f"{machine}.",
    ]
    return "\n\n".join(paragraphs if classes else [paragraphs[0], paragraphs[2]]).split("\n")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
