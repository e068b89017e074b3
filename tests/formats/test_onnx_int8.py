"""The search for an int8 graph that gives the answers of float32."""

import re
import shutil
from ast import literal_eval
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import bert_config, build, word_tokenizer
from exported_students import NAMES, contents, random_inputs, real_rows, with_outlier, with_weights
from head_kinds import KINDS
from transformers import BertModel

from hf_tinybert.formats.agreement import MIN_AGREEMENT
from hf_tinybert.formats.layout import ONNX
from hf_tinybert.formats.onnx_export import export_onnx, load_onnx
from hf_tinybert.formats.onnx_graphs import gate_of_folder, load_graph
from hf_tinybert.formats.onnx_int8 import Int8Choice, layer_errors, quantize, quantize_onnx
from hf_tinybert.formats.onnx_tables import quantize_tables

LAYER = "bert.encoder.layer.1.output.dense"


@pytest.mark.parametrize("scale", [100, 500])
def test_a_model_with_an_outlier_token_passes(served, tmp_path, scale):
    folder = with_outlier(served, tmp_path / "out", scale)
    result = quantize_onnx(folder, real_rows())
    assert result.chosen.agreement >= MIN_AGREEMENT
    serve, int8 = load_onnx(folder / ONNX), load_onnx(result.path)
    inputs = random_inputs(NAMES, 2000, 12)  # none of those of the gate
    assert (int8(inputs).argmax(1) == serve(inputs).argmax(1)).mean() >= MIN_AGREEMENT


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "embeddings"])
def test_outlier_tokens_pass_for_every_kind_of_head(tmp_path, name):
    model_class, changes = (KINDS[name].model_class, KINDS[name].config) if name in KINDS else (BertModel, {})
    model, tokenizer = build(model_class, bert_config(2, 32, **changes)).eval(), word_tokenizer(tmp_path)
    folder = export_onnx(model, tokenizer, tmp_path / "out").parents[1]
    for scale in (1, 100, 500):
        outliers = with_outlier(folder, tmp_path / str(scale), scale)
        assert quantize_onnx(outliers).chosen.agreement >= 0.98


def layer_nodes(graph) -> dict[str, onnx.NodeProto]:
    """Module → the node of its weights."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    scopes = [next(p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes") for node in nodes]
    return {literal_eval(scope)[-2]: node for scope, node in zip(scopes, nodes, strict=True)}


def node_of(graph, layer: str) -> onnx.NodeProto:
    return layer_nodes(graph)[layer]


def test_layers_stay_in_float_by_their_measured_error(served, tmp_path):
    """One input of a layer is large, and its weights are zero: in 8 bits only that input is left."""

    graph = load_graph(served)
    inner, output = (node_of(graph, f"bert.encoder.layer.1.{name}.dense") for name in ("intermediate", "output"))

    def change(name, values):
        if name == inner.input[1]:
            values[:, 3] *= 3000
        if name == output.input[1]:
            values[3] = 0

    folder = with_weights(served, tmp_path / "out", change)
    graph = load_graph(folder)
    errors = layer_errors(graph, gate_of_folder(folder, real_rows(), None))
    assert len(errors) == 2 * 6 + 2
    assert max(errors, key=errors.get) == output.name
    result = quantize_onnx(folder, real_rows())
    assert [attempt.choice.weights for attempt in result.attempts[:3]] == [7, 8, 8]
    layers = [node for node, _ in result.chosen.choice.float_layers]
    assert layers == sorted(errors, key=errors.get, reverse=True)[: len(layers)]
    assert result.chosen.choice.float_layers[0] == (output.name, LAYER)
    floats = [t for t in onnx.load(result.path).graph.initializer if t.data_type == t.FLOAT and np.prod(t.dims) >= 512]
    assert len(floats) == len(layers)
    assert [64, 32] in [list(tensor.dims) for tensor in floats]
    assert f"| {LAYER}" in result.to_markdown()
    assert result.to_markdown().count("written") == 1
    assert "refused for its agreement" in result.to_markdown()


def test_errors_of_layers_are_those_of_their_outputs(served, tmp_path):
    """Against a graph in which that layer alone is quantised, by ONNX Runtime."""
    graph, gate = load_graph(served), gate_of_folder(served, real_rows(), None)
    errors, node = layer_errors(graph, gate), node_of(graph, "bert.encoder.layer.0.intermediate.dense")
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    others = tuple((name, name) for name in errors if name != node.name)
    quantize(graph, Int8Choice(8, 8, others), tmp_path / "one.onnx")
    quantize(graph, Int8Choice(8, 8, tuple((name, name) for name in errors)), tmp_path / "none.onnx")
    measured = []
    for batch in gate.rows.batches[:: len(gate.rows.batches) // 4]:
        inputs = {name: values.numpy() for name, values in batch.items()}
        exact, one = (
            onnxruntime.InferenceSession(tmp_path / name).run([node.output[0]], inputs)[0]
            for name in ("none.onnx", "one.onnx")
        )
        measured.append(np.linalg.norm(one - exact) / np.linalg.norm(exact))
    assert errors[node.name] == pytest.approx(max(measured), rel=0.1)


def test_nothing_is_written_if_no_choice_passes(served, tmp_path):
    folder = with_outlier(served, tmp_path / "out", 1)
    before = contents(folder)
    for dataset, says in ((None, "256 rows of random tokens"), (real_rows(), "256 rows of calibration_dataset")):
        with pytest.raises(ValueError, match=rf"model_quantized.onnx gives .*% .* {says}: less than min_.*=1\.01"):
            quantize_onnx(folder, dataset, 1.01)
        assert contents(folder) == before
    sizes = []
    with pytest.raises(ValueError, match="None of the 12 choices of int8 is accepted"):
        quantize_onnx(folder, real_rows(), 0.1, lambda path: sizes.append(path.stat().st_size))
    # the nodes of a quantised layer take up to 3 kB, more than a layer of this size saves
    assert all(later > earlier - 3000 for earlier, later in pairwise(sizes[1:])), sizes
    assert sizes[-1] > sizes[1] + 5000
    assert contents(folder) == before
    result = quantize_onnx(folder, real_rows(), 0.1, lambda path: path.name == "1.onnx")
    assert [attempt.passed for attempt in result.attempts] == [False, True, False]
    assert result.chosen is result.attempts[1]
    assert result.to_markdown().count("refused for its score") == 2
    result = quantize_onnx(folder, min_agreement=0)
    assert [attempt.agreement for attempt in result.attempts] == [None]
    assert result.path.exists()


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_tables_are_rounded_row_by_row(served, tmp_path, bits):
    """Against the rounding of each row, or each 32 values, by itself; layers stay in float32."""
    folder = with_outlier(served, tmp_path / "out", 100)
    graph = load_graph(folder)
    rounded = with_outlier(served, tmp_path / "rounded", 100)
    expected = load_graph(rounded)
    for tensor in expected.graph.initializer:
        if "embeddings.weight" in tensor.name:
            values = onnx.numpy_helper.to_array(tensor).copy()
            for row in values:
                if bits == 16:
                    row[:] = row.astype(np.float16)
                elif bits == 8:
                    step = np.abs(row).max() / 127 or 1
                    row[:] = np.round(row / step) * step
                else:
                    step = row[np.abs(row).argmax()] / -8 or 1
                    row[:] = np.clip(np.round(row / step), -8, 7) * step
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(expected, rounded / ONNX)
    layers = tuple((node.name, layer) for layer, node in layer_nodes(graph).items())
    quantize(graph, Int8Choice(8, bits, layers), tmp_path / "tables.onnx")
    inputs = random_inputs(NAMES, 16, 12)
    values = load_onnx(tmp_path / "tables.onnx")(inputs)
    np.testing.assert_allclose(values, load_onnx(rounded / ONNX)(inputs), atol=1e-5)
    assert np.abs(values - load_onnx(folder / ONNX)(inputs)).max() > (1e-4 if bits < 16 else 1e-6)


@pytest.mark.parametrize("width", [20, 32, 72])
def test_tables_of_4_bits_run_without_operators_of_one_runtime(width):
    """Rows that do not fill their last block, looked up by ids of any rank."""
    table = np.random.default_rng(0).normal(size=(9, width)).astype(np.float32)
    expected = np.zeros_like(table)
    for start in range(0, width, 32):
        for row, values in zip(expected[:, start : start + 32], table[:, start : start + 32], strict=True):
            step = values[np.abs(values).argmax()] / -8
            row[:] = np.clip(np.round(values / step), -8, 7) * step
    for ids in (np.arange(9), np.arange(18).reshape(2, 1, 9) % 9):
        inputs = [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ids.shape)]
        outputs = [onnx.helper.make_empty_tensor_value_info("rows")]
        nodes = [onnx.helper.make_node("Gather", ["table", "ids"], ["rows"], "look_up")]
        tables = [onnx.numpy_helper.from_array(table, "table")]
        graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, tables)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
        model.ir_version = 10
        quantize_tables(model, 4)
        assert {node.domain for node in model.graph.node} == {""}
        assert max(np.prod(tensor.dims) for tensor in model.graph.initializer) == 9 * 16 * -(-width // 32)
        (values,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"ids": ids})
        np.testing.assert_allclose(values, expected[ids], atol=1e-6)


def test_rows_that_say_little_are_said_and_the_agreement_is_logged(served, tmp_path, caplog):
    folder = shutil.copytree(served, tmp_path / "out")
    with caplog.at_level("INFO", "hf_tinybert.formats"):
        quantize_onnx(folder, min_agreement=0.9)
        assert (
            "256 rows of random tokens: pass 256 rows of the task or more (calibration_dataset, or --data)"
            in caplog.text
        )
        caplog.clear()
        few = quantize_onnx(folder, real_rows(50), 0.9)
        assert "50 rows of calibration_dataset: pass 256" in caplog.text
        caplog.clear()
        result = quantize_onnx(folder, real_rows(), 0.9)
    assert [attempt.choice.embeddings for attempt in few.attempts] == [8]
    assert [attempt.choice.embeddings for attempt in result.attempts] == [8, 4]
    agreement, table = (record.getMessage() for record in caplog.records if record.name.startswith("hf_tinybert"))
    assert re.search(r"agrees with float32 by (1\.0|0\.9)", agreement)
    assert result.to_markdown() in table
    with pytest.raises(ValueError, match="Row 1 of calibration_dataset: 'input_ids' has 65 tokens"):
        quantize_onnx(folder, [{"input_ids": [5]}, {"input_ids": [5] * 65}])


def test_a_graph_of_something_else_is_refused(served, tmp_path):
    folder = shutil.copytree(served, tmp_path / "out")
    graph = onnx.load(folder / ONNX)
    del graph.metadata_props[:]
    onnx.save(graph, folder / ONNX)
    with pytest.raises(ValueError, match="write it again with export_onnx"):
        quantize_onnx(folder)


def test_every_large_weight_is_quantised(served, tmp_path):
    quantize(load_graph(served), Int8Choice(), tmp_path / "int8.onnx")
    exact, int8 = (
        [t for t in onnx.load(path).graph.initializer if np.prod(t.dims) >= 512]
        for path in (served / ONNX, tmp_path / "int8.onnx")
    )
    assert len(int8) == len(exact) > 12
    assert {t.data_type for t in int8} == {onnx.TensorProto.INT8}
    # One scale for each output channel.
    scales = [t for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.name.endswith("_scale")]
    assert {64, 32} <= {int(np.prod(t.dims)) for t in scales}
