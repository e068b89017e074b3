"""A student as an ONNX graph for any batch and length, in float32 and float16.

Three lines serve the folder of `export_onnx` and `quantize_onnx`, without torch:

    session = onnxruntime.InferenceSession("student/onnx/model_quantized.onnx")
    inputs = AutoTokenizer.from_pretrained("student")(["a fine film", "dull"], padding=True, return_tensors="np")
    logits = session.run(["logits"], dict(inputs))[0]
"""

import copy
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .agreement import QualityGate
from .comparison_rows import comparison_rows, warn_of_few_rows
from .layout import (
    CONVERTED,
    IDENTITY,
    ONNX,
    ONNX_FP16,
    Dataset,
    check_folder,
    check_types,
    files_of,
    head_and_limits,
    input_names,
    move,
    require,
    twin_of,
)
from .onnx_graphs import check_parity, gate_of_folder, graph_forward, load_graph, open_session, torch_forward, trace


def export_onnx(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    tolerance: float = 1e-4,
    calibration_dataset: Dataset | None = None,
    min_agreement: float | None = None,
) -> Path:
    """Write a model as an ONNX graph, with its configuration and tokenizer.

    The inputs are those that the tokenizer makes and the model takes, int64 of shape (B, S) with B and S free, or
    (B, choices, S) in multiple choice. The outputs are float32 and have the names of the model's (`logits`,
    `start_logits`, `last_hidden_state`, ...). Weights above 2 GB are stored in `model.onnx.data`. The graph runs in
    ONNX Runtime and is compared with torch: its values on random tokens of several shapes, then its answers on
    `calibration_dataset`. Files that were made from the graph before, such as int8, are removed.

    Args:
        model: The model. It does not change.
        processing_class: Its tokenizer.
        folder: The folder to write to. It may hold the same model, for example with other weights.
        tolerance: The largest difference allowed between ONNX and torch, as a share of the largest output, default
            1e-4.
        calibration_dataset: Tokenised rows without labels, of which 256 are compared, evenly spread. By default they
            are random tokens.
        min_agreement: The lowest agreement with torch that is allowed, from 0 to 1. By default 98 % of the answers
            have to be the same, or scores and embeddings to correlate by 0.99. 0 switches the comparison of answers
            off.

    Returns:
        The path of `onnx/model.onnx` in the folder, where transformers.js and others look for it.

    Raises:
        ValueError: If an output differs by more than `tolerance`, if the agreement is lower than `min_agreement`, if
            weights are NaN or infinite, or if `folder` holds another model. Nothing is written then.
        TypeError: If `model` or `processing_class` is something else.
        ImportError: Without the extra `export`.
    """
    require("export", "onnx", "onnxscript", "onnxruntime")
    check_types(model, processing_class)
    folder = Path(folder)
    twin = twin_of(model)
    check_folder(folder, twin.config, IDENTITY)
    names = input_names(twin, processing_class)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        path = Path(written, ONNX)
        path.parent.mkdir()
        trace(twin, names, path)
        check_parity(twin, path, tolerance)
        if min_agreement != 0:
            head, limits = head_and_limits(twin)
            rows = comparison_rows(calibration_dataset, processing_class, limits, head, names)
            gate = QualityGate(torch_forward(twin), head, rows, min_agreement)
            gate.check(ONNX, gate.measure(graph_forward(open_session(path))))
        if not (folder / "config.json").exists():  # it may lie there with weights of another dtype
            twin.config.save_pretrained(written)
        tokenizer = copy.deepcopy(processing_class)
        # A BERT tokenizer makes token types, DistilBERT takes none. Saved: keys of init_kwargs, values of attributes.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        tokenizer.save_pretrained(written)
        for part in (part for name in CONVERTED for part in files_of(folder / name)):
            part.unlink()
        move(Path(written), folder, last=ONNX)
    return folder / ONNX


def halve_onnx(
    folder: str | os.PathLike, calibration_dataset: Dataset | None = None, min_agreement: float | None = None
) -> Path:
    """Convert the graph that `export_onnx` wrote to float16; its inputs and outputs stay as they are.

    The file has half the size. GPUs compute in float16, for example WebGPU in a browser; ONNX Runtime on a CPU
    computes most of it in float32.

    Args:
        folder: The folder with `onnx/model.onnx`.
        calibration_dataset: Tokenised rows of the task without labels, as in `quantize_onnx`.
        min_agreement: The lowest agreement that is allowed, as in `export_onnx`.

    Returns:
        The path of `onnx/model_fp16.onnx` in the same folder.

    Raises:
        FileNotFoundError: Without `onnx/model.onnx`.
        ValueError: If a weight is outside the range of float16, or if the agreement is lower than `min_agreement`.
            Nothing is written then.
        ImportError: Without the extra `export`.
    """
    require("export", "onnx", "onnxruntime")
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    folder = Path(folder)
    graph = load_graph(folder)
    largest = float(np.finfo(np.float16).max)
    for tensor in graph.graph.initializer:
        # A constant such as that of the attention mask is clipped; weights would become others.
        weights = onnx.numpy_helper.to_array(tensor) if tensor.dims and tensor.data_type == tensor.FLOAT else []
        if np.abs(weights).max(initial=0) > largest:
            raise ValueError(f"Weight '{tensor.name}' is outside the range of float16: {ONNX_FP16} was not written.")
    half = convert_float_to_float16(graph, max_finite_val=largest, keep_io_types=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        path = Path(written, Path(ONNX_FP16).name)
        onnx.save(half, path)
        if min_agreement != 0:
            gate = gate_of_folder(folder, calibration_dataset, min_agreement)
            warn_of_few_rows(gate.rows, ONNX_FP16)
            gate.check(ONNX_FP16, gate.measure(graph_forward(open_session(path))))
        os.replace(path, folder / ONNX_FP16)
    return folder / ONNX_FP16


def load_onnx(path: str | os.PathLike) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load a graph as a function from model inputs to logits, on as many threads as torch uses.

    Args:
        path: An ONNX file, for example that of `export_onnx` or `quantize_onnx`.

    Returns:
        A function that takes a mapping of arrays, of which it ignores those that the graph does not take. It returns
        the graph's first output, and for question answering the start and end logits together, (B, S, 2).

    Raises:
        ImportError: Without the extra `export`.
    """
    require("export", "onnxruntime")
    session = open_session(path)
    names = [value.name for value in session.get_inputs()]
    spans = session.get_outputs()[0].name == "start_logits"

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = session.run(None, {name: np.asarray(inputs[name]) for name in names})
        return np.stack(outputs, axis=-1) if spans else outputs[0]

    return call
