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

    8 bits have one scale a row and use standard operators: Gather, Cast and Mul. 4 bits have one scale for each 32
    values of a row, and use GatherBlockQuantized of ONNX Runtime 1.20 or later. 16 bits are float16 and use Gather and
    Cast.

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
    if bits == 4 and added and not any(opset.domain == "com.microsoft" for opset in graph.opset_import):
        graph.opset_import.add(domain="com.microsoft", version=1)


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
    """The value of largest magnitude in a block becomes −8."""
    from onnx import TensorProto, helper, numpy_helper

    rows, width = table.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :width] = table
    padded = padded.reshape(rows, blocks, BLOCK)
    largest = np.take_along_axis(padded, np.abs(padded).argmax(2, keepdims=True), 2)
    scales = largest / -8
    values = np.round(padded / np.where(scales, scales, 1)).clip(-8, 7).astype(np.int8)
    flat = values.reshape(rows, -1)[:, :width].reshape(-1)
    flat = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0xF
    packed = flat[::2] | flat[1::2] << 4  # the first of two values lies in the lower bits
    quantized = helper.make_tensor(f"{name}_4", TensorProto.INT4, table.shape, packed.tobytes(), raw=True)
    return [quantized, numpy_helper.from_array(scales[..., 0], f"{name}_scales")]


def _look_up_4_bits(node: "onnx.NodeProto") -> list["onnx.NodeProto"]:
    from onnx import helper

    table, ids = node.input
    inputs, settings = [f"{table}_4", ids, f"{table}_scales"], {"gather_axis": 0, "quantize_axis": 1}
    return [
        helper.make_node(
            "GatherBlockQuantized",
            inputs,
            list(node.output),
            f"{node.name}_4",
            domain="com.microsoft",
            block_size=BLOCK,
            **settings,
        )
    ]
