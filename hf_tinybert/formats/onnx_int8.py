"""A student as an int8 ONNX graph: the smallest of several choices that gives the answers of the float32 graph."""

import ast
import copy
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .agreement import QualityGate
from .comparison_rows import warn_of_few_rows
from .layout import ONNX_INT8, Dataset, require
from .onnx_graphs import gate_of_folder, graph_forward, load_graph, open_session, run_session
from .onnx_tables import quantize_tables

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that a node comes from, outermost first
MEASURED = 4  # batches on which the error of a layer is measured


@dataclass(frozen=True)
class Int8Choice:
    """How a graph is quantised.

    Attributes:
        weights: 7 (signed) or 8 (unsigned) bits of the weights of linear layers, with a scale for each output.
        embeddings: 16 (float16), 8 or 4 bits of the embedding tables (`onnx_tables`).
        float_layers: The layers that stay in float32: name of the node → name of the layer.
    """

    weights: int = 7
    embeddings: int = 8
    float_layers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Int8Attempt:
    """A choice that was tried.

    Attributes:
        choice: The choice.
        megabytes: The size of the file.
        agreement: The agreement with float32; None if it was not measured.
        refused_for: "agreement" if it is too low, "score" if `accept` refused the choice; None if it passed.
    """

    choice: Int8Choice
    megabytes: float
    agreement: float | None
    refused_for: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it passed the quality gate and was accepted."""
        return self.refused_for is None


@dataclass(frozen=True)
class Int8Graph:
    """What `quantize_onnx` wrote.

    Attributes:
        path: The file.
        attempts: All that was tried, in this order.
        chosen: The one that was written.
    """

    path: Path
    attempts: tuple[Int8Attempt, ...]
    chosen: Int8Attempt

    def to_markdown(self) -> str:
        """A table of what was tried."""
        lines = ["| weights | embeddings | layers in float32 | MB | agreement | result |", "|---|---|---|---|---|---|"]
        for attempt in self.attempts:
            choice = attempt.choice
            layers = ", ".join(name for _, name in choice.float_layers) or "–"
            value = "–" if attempt.agreement is None else f"{attempt.agreement:.4f}"
            result = "passed" if attempt.passed else f"refused for its {attempt.refused_for}"
            lines.append(
                f"| {choice.weights} bits | {choice.embeddings} bits | {layers} | {attempt.megabytes:.1f} | {value} | "
                f"{'written' if attempt is self.chosen else result} |"
            )
        return "\n".join(lines)


def quantize_onnx(
    folder: str | os.PathLike,
    calibration_dataset: Dataset | None = None,
    min_agreement: float | None = None,
    accept: Callable[[Path], bool] | None = None,
) -> Int8Graph:
    """Quantise the graph that `export_onnx` wrote to int8.

    Linear layers have 8-bit weights with a scale for each output channel and inputs that are quantised at run time
    (ONNX Runtime's dynamic quantisation), embedding tables have scales for each row; attention itself stays float32.
    Several choices are tried, and the smallest that passes the quality gate is written:

    1. Signed weights of 7 bits: CPUs with AVX2 but without VNNI are fastest with these, and sums of signed 8-bit
       weights saturate there (onnxruntime #6545).
    2. Unsigned weights of 8 bits.
    3. The same with 1, 2, 4, … or all of the layers in float32, those whose outputs have the largest error
       ‖Ŷ − Y‖ / ‖Y‖ on the rows, or with embedding tables in float16, or both. The smallest is tried first.
    4. The first of these that passes, with embedding tables in 4 bits. This is tried on 256 rows of the task alone:
       fewer may not hold the tokens whose error counts.

    Args:
        folder: The folder with `onnx/model.onnx`.
        calibration_dataset: Tokenised rows of the task without labels, of which 256 are compared, evenly spread.
            Without them, or with fewer rows, a warning says so; without them the rows are random tokens, which say
            little about real ones.
        min_agreement: The lowest agreement that is allowed, as in `export_onnx`. With 0 nothing is compared, and the
            first choice is written.
        accept: Called with the file of a choice whose agreement suffices; returns whether its score does too. Default:
            every choice passes.

    Returns:
        The path of `onnx/model_quantized.onnx` in the same folder, and what was tried.

    Raises:
        FileNotFoundError: Without `onnx/model.onnx`.
        ValueError: If no choice passes. Nothing is written then.
        ImportError: Without the extra `export`.
    """
    require("export", "onnx", "onnxruntime")
    folder = Path(folder)
    graph = _with_shapes(load_graph(folder))
    gate = None if min_agreement == 0 else gate_of_folder(folder, calibration_dataset, min_agreement)
    if gate:
        warn_of_few_rows(gate.rows, ONNX_INT8)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        attempts, chosen = _search(graph, gate, Path(written), accept or (lambda path: True))
        os.replace(Path(written, f"{attempts.index(chosen)}.onnx"), folder / ONNX_INT8)
    result = Int8Graph(folder / ONNX_INT8, tuple(attempts), chosen)
    if gate:
        logger.info("%s agrees with float32 by %.4f on %s.", ONNX_INT8, chosen.agreement, gate.rows)
        logger.info("Int8 choices that were tried:\n%s", result.to_markdown())
    return result


def _with_shapes(graph: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with the shapes of all tensors, which the quantiser asks for."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        quant_pre_process(graph, path, skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(path)


def _search(
    graph: "onnx.ModelProto", gate: QualityGate | None, folder: Path, accept: Callable[[Path], bool]
) -> tuple[list[Int8Attempt], Int8Attempt]:
    """All attempts, whose files are `0.onnx`, `1.onnx`, … in `folder`, and the one to write."""
    attempts: list[Int8Attempt] = []

    def attempt(choice: Int8Choice) -> Int8Attempt:
        path = folder / f"{len(attempts)}.onnx"
        quantize(graph, choice, path)
        value = gate.measure(graph_forward(open_session(path))) if gate else None
        refused_for = None
        if gate and value < gate.min_agreement:
            refused_for = "agreement"
        elif gate and not accept(path):
            refused_for = "score"
        attempts.append(Int8Attempt(choice, path.stat().st_size / 1e6, value, refused_for))
        return attempts[-1]

    if gate is None:
        return attempts, attempt(Int8Choice())
    chosen = next((tried for tried in map(attempt, _choices(graph, gate)) if tried.passed), None)
    if chosen is None:
        gate.check(ONNX_INT8, max(tried.agreement for tried in attempts))
        raise ValueError(f"None of the {len(attempts)} choices of int8 is accepted: {ONNX_INT8} was not written.")
    if not gate.rows.few:
        smaller = attempt(replace(chosen.choice, embeddings=4))
        chosen = smaller if smaller.passed else chosen
    return attempts, chosen


def _choices(graph: "onnx.ModelProto", gate: QualityGate) -> Iterator[Int8Choice]:
    """The choices in the order of their sizes; layers are measured once they are needed."""
    yield Int8Choice()
    yield Int8Choice(weights=8)
    errors = layer_errors(graph, gate)
    nodes = {node.name: node for node in graph.graph.node}
    worst = sorted(errors, key=errors.__getitem__, reverse=True)
    choices = [Int8Choice(8, 16)]
    for count in sorted({min(2**power, len(worst)) for power in range(len(worst).bit_length() + 1)}):
        layers = tuple((name, _layer_name(nodes[name])) for name in worst[:count])
        choices += [Int8Choice(8, bits, layers) for bits in (8, 16)]
    values = {tensor.name: math.prod(tensor.dims) for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    in_tables = sum(values[name] for name in {n.input[0] for n in nodes.values() if n.op_type == "Gather"} & {*values})

    def growth(choice: Int8Choice) -> int:
        """The bytes above those of 8 bits alone."""
        in_float32 = sum(values[nodes[name].input[1]] for name, _ in choice.float_layers)
        return 3 * in_float32 + (in_tables if choice.embeddings == 16 else 0)

    *smaller, _ = sorted(choices, key=growth)  # float32 layers and float16 tables are not int8
    yield from smaller


def quantize(graph: "onnx.ModelProto", choice: Int8Choice, path: Path) -> None:
    """Write the graph, quantised as `choice` says; `graph` does not change."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node for node, _ in choice.float_layers]
    quantize_dynamic(
        copy.deepcopy(graph),
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=choice.weights == 7,
        weight_type=QuantType.QInt8 if choice.weights == 7 else QuantType.QUInt8,
        nodes_to_exclude=[*nodes, *(f"{node}_MatMul" for node in nodes)],  # the quantiser splits a Gemm
    )
    quantized = onnx.load(path)
    quantize_tables(quantized, choice.embeddings)
    onnx.save(quantized, path)


def layer_errors(graph: "onnx.ModelProto", gate: QualityGate) -> dict[str, float]:
    """The error that 8 bits of weights and inputs make in the output of each linear layer, ‖Ŷ − Y‖ / ‖Y‖.

    Args:
        graph: The float32 graph.
        gate: Its rows are run, in float32.

    Returns:
        Name of the node → the largest error of `MEASURED` batches.
    """
    from onnx import helper, numpy_helper
    from onnxruntime import InferenceSession

    probed = copy.deepcopy(graph)
    weights = {tensor.name: tensor for tensor in probed.graph.initializer if len(tensor.dims) == 2}
    layers = [n for n in probed.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights]
    inputs = list(dict.fromkeys(node.input[0] for node in layers))
    del probed.graph.output[:]
    probed.graph.output.extend(map(helper.make_empty_tensor_value_info, inputs))
    session = InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    batches = gate.rows.batches[:: max(1, len(gate.rows.batches) // MEASURED)]
    errors = dict.fromkeys((node.name for node in layers), 0.0)
    for batch in batches:
        values = dict(zip(inputs, run_session(session, batch), strict=True))
        for node in layers:
            weight = numpy_helper.to_array(weights[node.input[1]])
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            error = _error(values[node.input[0]], weight.T if transposed else weight)
            errors[node.name] = max(errors[node.name], error)
    return errors


def _error(x: np.ndarray, weight: np.ndarray) -> float:
    x = x.reshape(-1, x.shape[-1])
    expected = x @ weight
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(_rounded(x, None) @ _rounded(weight, 0) - expected) / norm) if norm else 0.0


def _rounded(values: np.ndarray, axis: int | None) -> np.ndarray:
    """Values in 255 equal steps from the smallest to the largest along `axis`, with 0 among them."""
    low = np.minimum(values.min(axis, keepdims=True), 0)
    step = (np.maximum(values.max(axis, keepdims=True), 0) - low) / 255
    step = np.where(step, step, 1)
    zero = np.round(-low / step)
    return (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step


def _layer_name(node: "onnx.NodeProto") -> str:
    """The module that a node comes from, or the node's own name."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    return ast.literal_eval(scopes)[-2] if scopes else node.name
