"""Embedding tables of an ONNX graph in 8 or 4 bits, with scales of their own for each row, or in float16.

ONNX Runtime's quantiser gives a table one scale, so that one large row takes the precision of all others.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

BLOCK = 32  # values of a row that share a scale in 4 bits


def quantize_tables(graph: "onnx.ModelProto", bits: int) -> None:
    """Quantise every float32 table that the graph looks rows up in, in place.

    8 bits have one scale a row, 4 bits have one for each 32 values of a row, and 16 bits are float16. All use standard
    operators alone: onnxruntime-web's default build has no GatherBlockQuantized.

    Args:
        graph: The graph. Tables that other operators use as well keep their float32 values for those.
        bits: 16, 8 or 4.
    """
    from onnx import numpy_helper

    pack, look_up = {
        16: (_rows_of_16_bits, _look_up_16_bits),
        8: (_rows_of_8_bits, _look_up_8_bits),
        4: (_blocks_of_4_bits, _look_up_4_bits),
    }[bits]

    tables = {tensor.name: tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, list[onnx.TensorProto]] = {}
    for node in graph.graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != table.FLOAT:
            nodes.append(node)
        else:
            added[table.name] = pack(table.name, numpy_helper.to_array(table))
            nodes += look_up(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    for field, content in (("node", nodes), ("initializer", kept)):
        del getattr(graph.graph, field)[:]
        getattr(graph.graph, field).extend(content)
    for tensors in added.values():
        graph.graph.initializer.extend(tensors)


def _rows_of_16_bits(name: str, table: np.ndarray) -> list["onnx.TensorProto"]:
    from onnx import numpy_helper

    return [numpy_helper.from_array(table.astype(np.float16), f"{name}_16")]


def _look_up_16_bits(node: "onnx.NodeProto") -> list["onnx.NodeProto"]:
    from onnx import TensorProto, helper

    (table, ids), (output,) = node.input, node.output
    return [
        helper.make_node("Gather", [f"{table}_16", ids], [f"{output}_16"], f"{node.name}_16"),
        helper.make_node("Cast", [f"{output}_16"], [output], f"{node.name}_cast", to=TensorProto.FLOAT),
    ]


def _rows_of_8_bits(name: str, table: np.ndarray) -> list["onnx.TensorProto"]:
    from onnx import numpy_helper

    scales = np.abs(table).max(1, keepdims=True) / 127
    values = np.round(table / np.where(scales, scales, 1)).astype(np.int8)
    return [numpy_helper.from_array(values, f"{name}_8"), numpy_helper.from_array(scales, f"{name}_scales")]


def _look_up_8_bits(node: "onnx.NodeProto") -> list["onnx.NodeProto"]:
    from onnx import TensorProto, helper

    (table, ids), (output,) = node.input, node.output
    values, scales = f"{output}_8", f"{output}_scales"
    return [
        helper.make_node("Gather", [f"{table}_8", ids], [values], f"{node.name}_8"),
        helper.make_node("Gather", [f"{table}_scales", ids], [scales], f"{node.name}_scales"),
        helper.make_node("Cast", [values], [f"{values}_float"], f"{node.name}_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{values}_float", scales], [output], f"{node.name}_mul"),
    ]


def _blocks_of_4_bits(name: str, table: np.ndarray) -> list["onnx.TensorProto"]:
    """The value of largest magnitude in a block becomes 0, those of 0 become 8. Byte j holds values j and j + 16."""
    from onnx import numpy_helper

    rows, width = table.shape
    padded = np.pad(table, ((0, 0), (0, -width % BLOCK))).reshape(rows, -1, BLOCK)
    largest = np.take_along_axis(padded, np.abs(padded).argmax(2, keepdims=True), 2)
    scales = largest / -8
    values = (np.round(padded / np.where(scales, scales, 1)).clip(-8, 7) + 8).astype(np.uint8)
    packed = values[..., : BLOCK // 2] + 16 * values[..., BLOCK // 2 :]
    return [
        numpy_helper.from_array(packed, f"{name}_4"),
        numpy_helper.from_array(scales, f"{name}_scales"),
        numpy_helper.from_array(np.array([-1], np.int64), f"{name}_rest"),
        numpy_helper.from_array(np.array([0], np.int64), f"{name}_start"),
        numpy_helper.from_array(np.array([width], np.int64), f"{name}_width"),
        *(numpy_helper.from_array(np.float32(value), f"{name}_{value:g}") for value in (1 / 16, 16, 8)),
    ]


def _look_up_4_bits(node: "onnx.NodeProto") -> list["onnx.NodeProto"]:
    """A byte is 16 · high + low; the values are those of low and then those of high, less 8, times the scale."""
    from onnx import TensorProto, helper

    (table, ids), (output,) = node.input, node.output
    nodes = []

    def add(kind: str, inputs: list[str], name: str, **attributes) -> str:
        result = output if name == "values" else f"{output}_{name}"
        nodes.append(helper.make_node(kind, inputs, [result], f"{node.name}_{name}", **attributes))
        return result

    packed = add("Gather", [f"{table}_4", ids], "4")
    scales = add("Gather", [f"{table}_scales", ids], "scales")
    byte = add("Cast", [packed], "byte", to=TensorProto.FLOAT)
    high = add("Floor", [add("Mul", [byte, f"{table}_0.0625"], "shifted")], "high")
    low = add("Sub", [byte, add("Mul", [high, f"{table}_16"], "above")], "low")
    steps = add("Sub", [add("Concat", [low, high], "both", axis=-1), f"{table}_8"], "steps")
    blocks = add("Mul", [steps, scales], "blocks")
    shape = add("Concat", [add("Shape", [ids], "ids"), f"{table}_rest"], "shape", axis=0)
    rows = add("Reshape", [blocks, shape], "rows")
    add("Slice", [rows, f"{table}_start", f"{table}_width", f"{table}_rest"], "values")  # without the padding
    return nodes
