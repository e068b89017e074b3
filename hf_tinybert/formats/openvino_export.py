"""A student as an OpenVINO model, with weights in float16 or in int8."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .agreement import Forward, QualityGate
from .comparison_rows import warn_of_few_rows
from .layout import ONNX, OPENVINO, OPENVINO_INT8, Dataset, move, require
from .onnx_graphs import gate_of_folder

if TYPE_CHECKING:
    import openvino


def export_openvino(
    folder: str | os.PathLike, calibration_dataset: Dataset | None = None, min_agreement: float | None = None
) -> Path:
    """Convert the graph that `export_onnx` wrote to OpenVINO, with weights in float16.

    OpenVINO computes in the precision of the device, float32 on most CPUs. `openvino.compile_model` and
    optimum-intel's `from_pretrained` load the file.

    Args:
        folder: The folder with `onnx/model.onnx`.
        calibration_dataset: Tokenised rows of the task without labels, as in `quantize_onnx`.
        min_agreement: The lowest agreement that is allowed, as in `export_onnx`.

    Returns:
        The path of `openvino/openvino_model.xml` in the same folder; the weights are in the `.bin` beside it.

    Raises:
        FileNotFoundError: Without `onnx/model.onnx`.
        ValueError: If the agreement is lower than `min_agreement`. Nothing is written then.
        ImportError: Without the extra `openvino`.
    """
    require("openvino", "openvino", "onnxruntime")
    folder = Path(folder)
    model = _convert(folder)
    gate = None if min_agreement == 0 else gate_of_folder(folder, calibration_dataset, min_agreement)
    if gate:
        warn_of_few_rows(gate.rows, OPENVINO)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        value = _save(model, Path(written, OPENVINO), gate)
        if gate:
            gate.check(OPENVINO, value)
        move(Path(written), folder, last=OPENVINO)
    return folder / OPENVINO


def quantize_openvino(
    folder: str | os.PathLike, calibration_dataset: Dataset | None = None, min_agreement: float | None = None
) -> Path:
    """Convert the graph that `export_onnx` wrote to OpenVINO in int8, by NNCF.

    Two choices are tried, and the first that passes the quality gate is written:

    1. Activations in 8 bits, with their ranges on the rows, and weights in 7: sums of signed 8-bit weights saturate on
       CPUs with AVX2 but without VNNI, also if the CPU that the gate runs on has VNNI. It is the faster choice on CPUs
       with VNNI.
    2. Weights alone in 8 bits.

    Args:
        folder: The folder with `onnx/model.onnx`.
        calibration_dataset: Tokenised rows of the task without labels, of which 256 give the ranges of activations,
            and are compared, evenly spread.
        min_agreement: The lowest agreement that is allowed, as in `export_onnx`. With 0 nothing is compared, and the
            first choice is written.

    Returns:
        The path of `openvino/openvino_model_qint8_quantized.xml` in the same folder; the weights are in the `.bin`
        beside it.

    Raises:
        FileNotFoundError: Without `onnx/model.onnx`.
        ValueError: If no choice passes, or without rows. Nothing is written then.
        ImportError: Without the extra `openvino`.
    """
    require("openvino", "openvino", "nncf", "onnxruntime")
    folder = Path(folder)
    if calibration_dataset is None:
        raise ValueError(f"{OPENVINO_INT8} needs rows of the task for the ranges of activations: pass rows.")
    model = _convert(folder)
    gate = gate_of_folder(folder, calibration_dataset, min_agreement)
    # NNCF draws its progress bars on stdout.
    with tempfile.TemporaryDirectory(dir=folder) as written, redirect_stdout(sys.stderr):
        values = []
        for quantized in _int8_choices(model, gate):
            values.append(_save(quantized, Path(written, OPENVINO_INT8), gate))
            if values[-1] >= gate.min_agreement:
                break
        gate.check(OPENVINO_INT8, max(values))
        move(Path(written), folder, last=OPENVINO_INT8)
    return folder / OPENVINO_INT8


def load_openvino(path: str | os.PathLike) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load an OpenVINO model as a function from model inputs to logits, on as many threads as torch uses.

    Args:
        path: The `.xml` file of `export_openvino` or `quantize_openvino`.

    Returns:
        A function as that of `load_onnx`.

    Raises:
        ImportError: Without the extra `openvino`.
    """
    require("openvino", "openvino")
    forward = _compile(path)

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = list(forward(inputs).items())
        return np.stack([value for _, value in outputs], axis=-1) if outputs[0][0] == "start_logits" else outputs[0][1]

    return call


def _convert(folder: Path) -> "openvino.Model":
    import openvino

    if not (folder / ONNX).exists():
        raise FileNotFoundError(f"{folder} holds no {ONNX}: call export_onnx(model, tokenizer, folder) first.")
    return openvino.convert_model(folder / ONNX)


def _int8_choices(model: "openvino.Model", gate: QualityGate) -> Iterator["openvino.Model"]:
    import nncf

    rows = nncf.Dataset(gate.rows.batches, lambda batch: {name: values.numpy() for name, values in batch.items()})
    yield nncf.quantize(
        model.clone(),
        rows,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(gate.rows.batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),  # 7 bits
    )
    yield nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM)


def _save(model: "openvino.Model", path: Path, gate: QualityGate | None) -> float | None:
    """Save a model with its other weights in float16, and return its agreement."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=True)
    return gate.measure(_forward(path)) if gate else None


def _compile(path: str | os.PathLike) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A function from inputs, of which it takes those of the model, to named outputs."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings | {"INFERENCE_PRECISION_HINT": "f32"})
    names = [value.get_any_name() for value in compiled.inputs]
    outputs = [value.get_any_name() for value in compiled.outputs]

    def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = compiled({name: np.asarray(inputs[name]) for name in names})
        return {name: result[index] for index, name in enumerate(outputs)}

    return call


def _forward(path: Path) -> Forward:
    compiled = _compile(path)

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = compiled({name: values.numpy() for name, values in inputs.items()})
        return {name: torch.from_numpy(values) for name, values in outputs.items()}

    return forward
