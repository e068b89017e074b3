"""The exported files against the torch model they were made from."""

import copy
import importlib.util
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from conftest import LABELS, VOCAB, bert_config, build, word_tokenizer
from exported_students import (
    NAMES,
    classifier,
    contents,
    logits,
    random_inputs,
    real_rows,
    with_outlier,
    with_weights,
)
from transformers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    ElectraForTokenClassification,
    ModernBertForMaskedLM,
    RobertaForMaskedLM,
)

from hf_tinybert.formats import onnx_export
from hf_tinybert.formats.agreement import MIN_AGREEMENT
from hf_tinybert.formats.half_weights import save_half
from hf_tinybert.formats.layout import ONNX, ONNX_FP16, ONNX_INT8
from hf_tinybert.formats.onnx_export import export_onnx, halve_onnx, load_onnx
from hf_tinybert.formats.onnx_graphs import relative_error
from hf_tinybert.formats.onnx_int8 import quantize_onnx

SIZES = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"vocab_size": VOCAB, "max_position_embeddings": 64, "initializer_range": 0.2}
SENTENCES = ["the film is very good .", "dull", "a book was not bright", "a bad play"]


OTHER_HEADS = {
    "ForSequenceClassification": ["logits"],
    "ForTokenClassification": ["logits"],
    "ForQuestionAnswering": ["start_logits", "end_logits"],
    "ForMultipleChoice": ["logits"],
    "ForMaskedLM": ["logits"],
    "Model": ["last_hidden_state", "pooler_output"],
}


@pytest.mark.parametrize(
    ("model_class", "config", "outputs"),
    [
        (DistilBertForSequenceClassification, {"hidden_dim": 64}, ["logits"]),
        (BertForQuestionAnswering, {}, ["start_logits", "end_logits"]),
        (BertForMultipleChoice, {}, ["logits"]),
        *(
            pytest.param(model_class, {"pad_token_id": 0, "type_vocab_size": 2}, outputs, marks=pytest.mark.slow)
            for prefix in ("MPNet", "RobertaPreLayerNorm", "XLMRobertaXL")
            for suffix, outputs in OTHER_HEADS.items()
            for model_class in [getattr(transformers, prefix + suffix)]
        ),
        pytest.param(BertModel, {}, ["last_hidden_state", "pooler_output"], marks=pytest.mark.slow),
        pytest.param(RobertaForMaskedLM, {"pad_token_id": 0}, ["logits"], marks=pytest.mark.slow),
        pytest.param(ElectraForTokenClassification, {"embedding_size": 16}, ["logits"], marks=pytest.mark.slow),
        pytest.param(
            ModernBertForMaskedLM,
            {"num_hidden_layers": 2, "global_attn_every_n_layers": 2, "local_attention": 8}
            | {f"{name}_token_id": index for index, name in enumerate(["pad", "bos", "eos", "cls", "sep"])},
            ["logits"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_architectures_and_heads_at_any_shape(tmp_path, model_class, config, outputs):
    model = build(model_class, model_class.config_class(**SIZES | config)).eval()
    path = export_onnx(model, word_tokenizer(tmp_path), tmp_path / "out")
    session = onnxruntime.InferenceSession(path)
    assert [value.name for value in session.get_outputs()] == outputs
    names = [value.name for value in session.get_inputs()]
    assert ("token_type_ids" in names) == (not model_class.__name__.startswith(("DistilBert", "ModernBert", "MPNet")))
    assert set(transformers.AutoTokenizer.from_pretrained(path.parents[1])("good")) == set(names)
    serve, choices = load_onnx(path), 3
    for batch, length in [(1, 1), (1, 60), (4, 7), (3, 60)]:
        inputs = random_inputs(names, batch, length)
        if model_class.__name__.endswith("ForMultipleChoice"):
            choices += 1
            inputs = random_inputs(names, batch * choices, length)
            inputs = {name: value.reshape(batch, choices, length) for name, value in inputs.items()}
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        values = session.run(None, inputs)
        np.testing.assert_array_equal(serve(inputs), np.stack(values, -1) if "start_logits" in outputs else values[0])
        for name, value in zip(outputs, values, strict=True):
            want = expected[name].numpy()
            assert value.shape == want.shape
            if want.shape[:2] == (batch, length):
                real = inputs["attention_mask"] == 1
                value, want = value[real], want[real]
            np.testing.assert_allclose(value, want, atol=1e-5 * np.abs(want).max())


def test_the_lines_of_the_docstring(served, monkeypatch):
    lines = re.findall(r"^    (\S.*)$", onnx_export.__doc__, flags=re.MULTILINE)
    assert len(lines) == 3
    names = {"onnxruntime": onnxruntime, "AutoTokenizer": transformers.AutoTokenizer}
    monkeypatch.chdir(served.parent)
    exec("\n".join(lines), names)
    np.testing.assert_allclose(names["logits"], logits(classifier(), names["inputs"]), atol=0.3)


def test_graphs_agree_with_torch_and_padding_changes_nothing(served, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(served)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="np")
    expected = logits(classifier(), batch)
    single = [tokenizer([sentence], return_tensors="np") for sentence in SENTENCES]
    exact, int8 = load_onnx(served / ONNX), load_onnx(served / ONNX_INT8)
    np.testing.assert_allclose(exact(batch), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([exact(inputs) for inputs in single]), expected, atol=1e-5)
    inputs = random_inputs(NAMES, 2000, 20)  # none of those of the gate
    expected, quantised = logits(classifier(), inputs), int8(inputs)
    assert 0 < np.abs(quantised - expected).max() < 0.1 * np.abs(expected).max()
    assert (quantised.argmax(1) == expected.argmax(1)).mean() >= MIN_AGREEMENT


def test_a_graph_with_other_answers_is_refused_whatever_the_tolerance(served, tmp_path, monkeypatch):
    other = with_outlier(served, tmp_path / "other", 100) / ONNX
    monkeypatch.setattr(onnx_export, "trace", lambda twin, inputs, path: path.write_bytes(other.read_bytes()))
    with pytest.raises(ValueError, match=r"onnx/model\.onnx gives .*% of the model's answers on 256 rows of cal"):
        export_onnx(classifier(), word_tokenizer(tmp_path), tmp_path / "out", 100.0, real_rows())
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_alone(tmp_path, dtype, monkeypatch):
    model = classifier().to(dtype).train()
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = True
    handle = model.register_forward_hook(lambda *_: pytest.fail("the model itself was run"))
    config, state = copy.deepcopy(model.config), {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    monkeypatch.setattr(onnx_export, "trace", lambda twin, inputs, path: None)
    monkeypatch.setattr(onnx_export, "check_parity", lambda *_: None)
    export_onnx(model, word_tokenizer(tmp_path), tmp_path / "out", min_agreement=0)
    save_half(model, word_tokenizer(tmp_path), tmp_path / "half")
    handle.remove()
    assert model.training
    assert model.config.to_dict() == config.to_dict()
    assert model.config._attn_implementation == "eager"
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, state[name])


def test_a_graph_that_differs_from_torch_is_not_kept(served, tmp_path, monkeypatch):
    folder = shutil.copytree(served, tmp_path / "out")
    off = (served / ONNX_INT8).read_bytes()
    monkeypatch.setattr(onnx_export, "trace", lambda twin, inputs, path: path.write_bytes(off))
    before = contents(folder)
    with pytest.raises(ValueError, match=r"more than tolerance=0\.0001"):
        export_onnx(classifier(), word_tokenizer(tmp_path), folder)
    assert contents(folder) == before
    assert export_onnx(classifier(), word_tokenizer(tmp_path), folder, 0.2, min_agreement=0.9) == folder / ONNX
    assert not (folder / ONNX_INT8).exists()


def test_outputs_that_are_nan_are_no_parity(served):
    session = onnxruntime.InferenceSession(served / ONNX)
    inputs = {name: torch.from_numpy(value) for name, value in random_inputs(NAMES, 2, 5).items()}
    expected = [np.full((2, 3), np.nan, np.float32)]
    assert np.isnan(relative_error(session, inputs, expected))


def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    tokenizer, model = word_tokenizer(tmp_path), classifier()
    out = tmp_path / "out"
    for save in (export_onnx, save_half):
        with pytest.raises(TypeError, match="not Linear"):
            save(torch.nn.Linear(2, 2), tokenizer, out)
        with pytest.raises(TypeError, match="pass the model's tokenizer"):
            save(model, None, out)
        broken = classifier()
        broken.classifier.weight.data[0, 0] = np.nan
        with pytest.raises(ValueError, match=r"'classifier.weight' holds NaN"):
            save(broken, tokenizer, out)
    large = classifier()
    large.classifier.bias.data[0] = 1e5
    with pytest.raises(ValueError, match=r"'classifier.bias' holds NaN or infinity as torch.float16"):
        save_half(large, tokenizer, out)
    assert not out.exists()
    with pytest.raises(FileNotFoundError, match="call export_onnx"):
        quantize_onnx(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: export_onnx(model, tokenizer, out), lambda: quantize_onnx(out), lambda: load_onnx(out)):
        with pytest.raises(ImportError, match=r"pip install 'hf_tinybert\[export\]'"):
            call()


def test_a_folder_of_another_model_is_refused(tmp_path):
    tokenizer, full = word_tokenizer(tmp_path), tmp_path / "full"
    classifier().save_pretrained(full)
    before = contents(full)
    with pytest.raises(ValueError, match=r"dtype=torch\.float32, not torch\.float16"):
        save_half(classifier(), tokenizer, full)
    wider = build(BertForSequenceClassification, bert_config(2, 64))
    labels = classifier(id2label=dict(enumerate(list(LABELS.values())[::-1])))
    for model, name in [(wider, "hidden_size"), (labels, "id2label"), (build(BertModel, bert_config(2, 32)), "archi")]:
        with pytest.raises(ValueError, match=f"another model .{name}"):
            export_onnx(model, tokenizer, full)
    assert contents(full) == before


def test_the_graph_in_half_precision_answers_as_float32(served, tmp_path):
    folder = with_outlier(served, tmp_path / "out", 1)
    path = halve_onnx(folder, real_rows())
    assert path == folder / ONNX_FP16
    weights = [t for t in onnx.load(path).graph.initializer if np.prod(t.dims) >= 512]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    inputs = random_inputs(NAMES, 20, 12)
    session = onnxruntime.InferenceSession(path)
    (values,) = session.run(None, inputs)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, logits(classifier(), inputs), atol=0.02)


def test_a_graph_that_float16_changes_is_refused(served, tmp_path):
    def overflow(name, values):
        if name == "bert.encoder.layer.0.intermediate.dense.bias":
            values[:] = np.linspace(1e5, 2e5, len(values))

    folder = with_weights(served, tmp_path / "large", overflow)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"'bert\.encoder\.layer\.0\.intermediate\.dense\.bias' is outside the range"):
        halve_onnx(folder, real_rows())

    def underflow(name, values):
        if name.startswith("bert.embeddings.") and name.endswith("embeddings.weight"):
            values *= 1e-9

    small = with_weights(served, tmp_path / "small", underflow)
    with pytest.raises(ValueError, match=r"model_fp16.onnx gives .*% of the model's answers on 256 rows"):
        halve_onnx(small, real_rows())
    assert contents(folder) == before
    assert not (small / ONNX_FP16).exists()
