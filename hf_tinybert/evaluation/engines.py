"""Models run in torch, ONNX and ONNX int8: their outputs on the same rows, operations, seconds and bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from timeit import timeit

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm, trange
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..formats.agreement import Answers, answers_of_logits, join_answers
from ..formats.agreement import agreement as measure_agreement
from ..formats.layout import size_of
from ..formats.onnx_export import export_onnx, load_onnx
from ..formats.onnx_int8 import quantize_onnx
from ..models.prediction_heads import PredictionHead, prediction_head_of
from .calibration import Calibration
from .comparison import Agreement
from .rows import Batch, EvaluationRows, input_columns

ENGINES = ("torch", "onnx", "onnx_int8")
PAUSE = 0.05  # seconds before an engine's turn: the threads of the one before spin on and would slow it down
TURN = 10  # latency calls of an engine in one turn
PADDING = np.finfo(np.float32).min / 2  # the logits of padding: softmax gives 0, and the sum of two is finite

Preprocess = Callable[[torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor | tuple[torch.Tensor, ...]], torch.Tensor]


@dataclass
class Run:
    """A model in an engine.

    Attributes:
        model: "teacher" or "student".
        engine: One of `ENGINES`.
        call: Returns the logits of a batch, which may hold more than the inputs of the model.
        bytes: The size of the model.
    """

    model: str
    engine: str
    call: Callable[[Batch], np.ndarray]
    bytes: int


@dataclass
class RunOutputs:
    """What several runs say about the same rows.

    Attributes:
        predictions: Of each run, what Trainer gives to `compute_metrics`, in the order of the rows.
        seconds: The time of each run for all rows.
        engine_agreement: Of each run, its agreement with the same model in the first engine (`formats.agreement`).
        calibrations: Of each run; None for scores, and if the logits were not held.
    """

    predictions: list[EvalPrediction]
    seconds: list[float]
    engine_agreement: list[float]
    calibrations: list[Calibration | None]


def runs_of(
    role: str, model: PreTrainedModel, engines: Sequence[str], processing_class: PreTrainedTokenizerBase, folder: Path
) -> Iterator[Run]:
    """One run for each engine. What int8 changes is measured on the rows of the report, and refuses nothing.

    Args:
        role: "teacher" or "student".
        model: The model.
        engines: Some of `ENGINES`.
        processing_class: The tokenizer.
        folder: Where the ONNX files are written.
    """
    exported = export_onnx(model, processing_class, folder, min_agreement=0) if set(engines) != {"torch"} else None
    for engine in engines:
        if engine == "torch":
            yield Run(role, engine, torch_forward(model), model.get_memory_footprint())
        else:
            path = exported if engine == "onnx" else quantize_onnx(folder, min_agreement=0).path
            yield Run(role, engine, load_onnx(path), size_of(path))


def torch_forward(model: PreTrainedModel) -> Callable[[Batch], np.ndarray]:
    """A function from a batch to the logits of `model`, in float32."""
    columns, head = input_columns(model), prediction_head_of(model)

    @torch.no_grad()
    def call(batch: Batch) -> np.ndarray:
        outputs = model(**{name: torch.from_numpy(batch[name]).to(model.device) for name in columns if name in batch})
        logits = head.logits(outputs)
        if logits is None:
            raise ValueError(f"{type(model).__name__} gives {list(outputs)}: the report needs a head with logits.")
        return logits.float().cpu().numpy()

    return call


def count_flops(model: PreTrainedModel, batch: Batch) -> int:
    """The floating-point operations of the matrix products of one forward: two for a multiplication and addition."""
    # The counter has no formula for the CPU kernel of sdpa, so that attention runs as matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch_forward(model)(batch)
    return counter.get_total_flops()


def predict(
    runs: Sequence[Run],
    rows: EvaluationRows,
    batch_size: int,
    agreement: Agreement,
    preprocess_logits: Preprocess | None = None,
) -> RunOutputs:
    """Run all rows; the runs take turns, batch by batch.

    Args:
        runs: The first one is the reference of the agreement.
        rows: The rows.
        batch_size: Rows in a batch.
        agreement: An empty one for as many models as there are runs; the rows are added to it.
        preprocess_logits: Trainer's `preprocess_logits_for_metrics`. Logits are then not held.

    Raises:
        ValueError: If the logits of the runs have different shapes.
    """
    chunks = rows.chunks(batch_size)
    outputs: list[list[np.ndarray]] = [[] for _ in runs]
    answers: list[list[Answers]] = [[] for _ in runs]
    labels, inputs, seconds = [], [], [0.0] * len(runs)
    _warm_up(runs, rows.batch(chunks[0]))
    for chunk in tqdm(chunks, desc="Predicting", leave=False):
        batch = rows.batch(chunk)
        labels.append(rows.labels(batch))
        inputs.append(batch["input_ids"])
        logits = []
        for index, run in enumerate(runs):
            sleep(PAUSE)
            start = perf_counter()
            logits.append(run.call(batch))
            seconds[index] += perf_counter() - start
        logits = [_without_padding(values, batch) for values in logits]
        for parts, values in zip(answers, logits, strict=True):
            parts.append(answers_of_logits(agreement.prediction_head, values, labels[-1]))
        if preprocess_logits is not None:
            agreement.add(logits, labels[-1])
            logits = [_preprocessed(preprocess_logits, rows, values, labels[-1]) for values in logits]
        for parts, values in zip(outputs, logits, strict=True):
            parts.append(values)
    whole_labels, whole_inputs = rows.join(labels, chunks), rows.join(inputs, chunks)
    if preprocess_logits is None:
        whole = [rows.join(parts, chunks, PADDING) for parts in outputs]
        agreement.add(whole, whole_labels)
        calibrations = [_calibration(agreement.prediction_head, logits, whole_labels) for logits in whole]
        whole = [rows.unstack(logits) for logits in whole]
    else:
        whole = [rows.join(parts, chunks) for parts in outputs]
        calibrations = [None] * len(runs)
    predictions = [EvalPrediction(values, rows.unstack(whole_labels), inputs=whole_inputs) for values in whole]
    return RunOutputs(predictions, seconds, _engine_agreement(runs, answers, len(rows)), calibrations)


def _calibration(head: PredictionHead, logits: np.ndarray, labels: np.ndarray) -> Calibration | None:
    """The calibration of what a head decides; None if it gives scores, decides nothing, gives NaN, or is of a kind of
    its own, whose labels are not the numbers of its logits."""
    if head.real_valued:
        return None
    decisions, targets = head.decisions(logits, labels)
    if not len(targets) or np.isnan(decisions).any() or targets.max() >= decisions.shape[-1]:
        return None
    return Calibration.measure(decisions, targets)


def _engine_agreement(runs: Sequence[Run], answers: Sequence[Sequence[Answers]], rows: int) -> list[float]:
    joined = [join_answers(batches) for batches in answers]
    first: dict[str, Answers] = {}
    for run, values in zip(runs, joined, strict=True):
        first.setdefault(run.model, values)
    return [measure_agreement(first[run.model], values, rows) for run, values in zip(runs, joined, strict=True)]


def _warm_up(runs: Sequence[Run], batch: Batch) -> None:
    """The first call of a run allocates memory and plans."""
    shapes = {run.model: run.call(batch).shape for run in runs}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"The logits have different shapes, {shapes}: they cannot be compared position by position.")


def _without_padding(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """Logits of tokens, (B, S, C), without what models say about padding."""
    if logits.ndim < 3 or "attention_mask" not in batch:
        return logits
    return np.where(batch["attention_mask"][..., None].astype(bool), logits, PADDING)


def _preprocessed(
    preprocess_logits: Preprocess, rows: EvaluationRows, logits: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    tensors = [
        tuple(map(torch.from_numpy, values)) if isinstance(values, tuple) else torch.from_numpy(values)
        for values in (rows.unstack(logits), rows.unstack(labels))
    ]
    return preprocess_logits(*tensors).numpy()


def latencies(runs: Sequence[Run], batches: Sequence[Batch]) -> list[list[float]]:
    """The milliseconds of each run for each batch of one row; the runs take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for start in trange(0, len(batches), TURN, desc="Latency", leave=False):
        for run, milliseconds in zip(runs, times, strict=True):
            sleep(PAUSE)
            run.call(batches[start])  # wakes the threads up
            for batch in batches[start : start + TURN]:
                milliseconds.append(1000 * timeit(partial(run.call, batch), number=1))
    return times
