"""OpenVINO models against the torch model they were made from."""

import numpy as np
import pytest
import torch
from conftest import bert_config, build, word_tokenizer
from exported_students import NAMES, classifier, contents, logits, random_inputs, real_rows, with_outlier
from head_kinds import KINDS
from transformers import BertModel

from hf_tinybert.formats.agreement import MIN_AGREEMENT
from hf_tinybert.formats.layout import OPENVINO, OPENVINO_INT8
from hf_tinybert.formats.onnx_export import export_onnx
from hf_tinybert.formats.openvino_export import export_openvino, load_openvino, quantize_openvino

openvino = pytest.importorskip("openvino", reason="needs the extra openvino")


def test_answers_are_those_of_torch(served, tmp_path):
    folder = with_outlier(served, tmp_path / "out", 1)
    path = export_openvino(folder, real_rows())
    assert path == folder / OPENVINO
    assert sorted(file.name for file in path.parent.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]
    for batch, length in ((1, 1), (4, 7), (3, 60)):
        inputs = random_inputs(NAMES, batch, length)
        np.testing.assert_allclose(load_openvino(path)(inputs), logits(classifier(), inputs), atol=0.01)


@pytest.mark.slow
def test_a_refused_model_leaves_nothing(served, tmp_path):
    folder = with_outlier(served, tmp_path / "out", 1)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"openvino_model\.xml gives .*less than min_agreement=1\.01"):
        export_openvino(folder, real_rows(), 1.01)
    with pytest.raises(ValueError, match="needs rows of the task"):
        quantize_openvino(folder)
    assert contents(folder) == before
    with pytest.raises(FileNotFoundError, match="call export_onnx"):
        export_openvino(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 500])
def test_int8_passes_the_gate(served, tmp_path, capsys, scale):
    folder = with_outlier(served, tmp_path / "out", scale)
    path = quantize_openvino(folder, real_rows())
    assert path == folder / OPENVINO_INT8
    assert capsys.readouterr().out == ""
    inputs, exact = random_inputs(NAMES, 2000, 12), load_openvino(export_openvino(folder, min_agreement=0))
    assert (load_openvino(path)(inputs).argmax(1) == exact(inputs).argmax(1)).mean() >= MIN_AGREEMENT
    sizes = [(folder / name).with_suffix(".bin").stat().st_size for name in (OPENVINO, OPENVINO_INT8)]
    assert sizes[1] < 0.7 * sizes[0]
    with pytest.raises(ValueError, match=r"openvino_model_qint8_quantized\.xml gives .*less than min_agreement=1\.01"):
        quantize_openvino(folder, real_rows(), 1.01)


@pytest.mark.slow
def test_weights_of_layers_have_7_bits_beside_activations_in_8(served, tmp_path):
    """So that sums do not saturate on CPUs without VNNI."""
    folder = with_outlier(served, tmp_path / "out", 1)
    nodes = openvino.Core().read_model(quantize_openvino(folder, real_rows(), 0)).get_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    weights = [node.data.astype(int) for node in constants if node.get_element_type() == openvino.Type.i8]
    largest = [np.abs(values).max() for values in weights]
    assert len(largest) == 2 * 6 + 2 + 3  # layers, and embedding tables
    assert sum(value <= 64 for value in largest) == 2 * 6 + 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spans", "choices", "masked tokens", "embeddings"])
def test_other_kinds_of_heads(tmp_path, name):
    model_class, changes = (KINDS[name].model_class, KINDS[name].config) if name in KINDS else (BertModel, {})
    model = build(model_class, bert_config(1, 32, **changes)).eval()
    folder = export_onnx(model, word_tokenizer(tmp_path), tmp_path / "out", min_agreement=0).parents[1]
    serve = load_openvino(export_openvino(folder))
    inputs = {name: torch.from_numpy(value) for name, value in random_inputs(NAMES, 6, 9).items()}
    if name == "choices":
        inputs = {name: value.view(2, 3, 9) for name, value in inputs.items()}
    with torch.no_grad():
        outputs = model(**inputs)
    parts = [value.numpy() for value in outputs.values()]
    expected = np.stack(parts, -1) if name == "spans" else parts[0]
    values = serve({name: value.numpy() for name, value in inputs.items()})
    if values.shape[:2] == (6, 9):
        real = inputs["attention_mask"].numpy() == 1
        values, expected = values[real], expected[real]
    np.testing.assert_allclose(values, expected, atol=0.02 * np.abs(expected).max())
