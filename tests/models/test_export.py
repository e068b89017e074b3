"""The exported files against the torch model they were made from."""

import copy
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from conftest import LABELS, VOCAB, bert_config, build, word_tokenizer
from head_kinds import KINDS
from short_runs import launch
from transformers import (
    AutoModelForSequenceClassification,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    ElectraForTokenClassification,
    ModernBertForMaskedLM,
    RobertaForMaskedLM,
)

from hf_tinybert.models import export
from hf_tinybert.models.export import export_onnx, load_onnx, quantize_onnx, save_half
from hf_tinybert.models.onnx_graphs import relative_error

SIZES = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"vocab_size": VOCAB, "max_position_embeddings": 64, "initializer_range": 0.2}
NAMES = ["input_ids", "attention_mask", "token_type_ids"]
SENTENCES = ["the film is very good .", "dull", "a book was not bright", "a bad play"]


OTHER_HEADS = {
    "ForSequenceClassification": ["logits"],
    "ForTokenClassification": ["logits"],
    "ForQuestionAnswering": ["start_logits", "end_logits"],
    "ForMultipleChoice": ["logits"],
    "ForMaskedLM": ["logits"],
    "Model": ["last_hidden_state", "pooler_output"],
}


def classifier(**changes):
    return build(BertForSequenceClassification, bert_config(2, 32, **changes)).eval()


def logits(model, inputs):
    with torch.no_grad():
        return model(**{name: torch.as_tensor(value) for name, value in inputs.items()}).logits.numpy()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with the float32 and the int8 graph of `classifier()`; tests that write take another."""
    folder = tmp_path_factory.mktemp("served") / "student"
    folder.parent.joinpath("words").mkdir()
    assert export_onnx(classifier(), word_tokenizer(folder.parent / "words"), folder) == folder / "model.onnx"
    assert quantize_onnx(folder, min_agreement=0.9) == folder / "model_int8.onnx"
    return folder


def random_inputs(names, batch, length):
    generator = np.random.default_rng(batch * 100 + length)
    lengths = [length, *generator.integers(1, length + 1, batch - 1)]
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
    inputs = {"input_ids": generator.integers(3, VOCAB, (batch, length)) * mask, "attention_mask": mask}
    inputs["token_type_ids"] = generator.integers(0, 2, (batch, length)) * mask
    return {name: inputs[name] for name in names}


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
    assert set(transformers.AutoTokenizer.from_pretrained(path.parent)("good")) == set(names)
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
    lines = re.findall(r"^    (\S.*)$", export.__doc__, flags=re.MULTILINE)
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
    exact, int8 = load_onnx(served / "model.onnx"), load_onnx(served / "model_int8.onnx")
    np.testing.assert_allclose(exact(batch), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([exact(inputs) for inputs in single]), expected, atol=1e-5)
    inputs = random_inputs(NAMES, 200, 20)
    expected, quantised = logits(classifier(), inputs), int8(inputs)
    assert 0 < np.abs(quantised - expected).max() < 0.1 * np.abs(expected).max()
    assert (quantised.argmax(1) == expected.argmax(1)).mean() > 0.95


def with_outlier(served, folder, scale: float) -> Path:
    """A folder with the graph of `served`, in which one row of the token embeddings is larger."""
    shutil.copytree(served, folder)
    (folder / "model_int8.onnx").unlink()
    graph = onnx.load(folder / "model.onnx")
    names = ("word_embeddings.weight", "decoder.weight")  # the second if the head shares the table
    (table,) = [tensor for tensor in graph.graph.initializer if tensor.name.endswith(names)]
    values = onnx.numpy_helper.to_array(table).copy()
    values[7] *= scale
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    onnx.save(graph, folder / "model.onnx")
    return folder


def real_rows(count: int = 300) -> list[dict]:
    generator = np.random.default_rng(0)
    return [{"input_ids": generator.integers(5, VOCAB, 3 + n % 9).tolist()} for n in range(count)]


@pytest.mark.parametrize("scale", [100, 500])
def test_int8_of_a_model_with_outliers_is_refused_and_leaves_nothing(served, tmp_path, scale):
    folder = with_outlier(served, tmp_path / "out", scale)
    before = contents(folder)
    for dataset, says in ((None, "256 rows of random tokens"), (real_rows(), "256 rows of calibration_dataset")):
        with pytest.raises(ValueError, match=rf"model_int8.onnx gives .*% .* {says}: less than min_agreement=0\.98"):
            quantize_onnx(folder, dataset)
        assert contents(folder) == before
    serve = load_onnx(folder / "model.onnx")
    int8 = load_onnx(quantize_onnx(folder, real_rows(), min_agreement=0.05))
    inputs = random_inputs(NAMES, 256, 12)
    assert (int8(inputs).argmax(1) == serve(inputs).argmax(1)).mean() < 0.98
    (folder / "model_int8.onnx").unlink()
    assert quantize_onnx(folder, min_agreement=0).exists()


def test_rows_that_say_little_are_said_and_the_agreement_is_logged(served, caplog):
    with caplog.at_level("INFO", "hf_tinybert.models.export"):
        quantize_onnx(served, min_agreement=0.9)
        assert "256 rows of random tokens: pass 256 rows of the task or more as calibration_dataset" in caplog.text
        caplog.clear()
        quantize_onnx(served, real_rows(50), 0.9)
        assert "50 rows of calibration_dataset: pass 256" in caplog.text
        caplog.clear()
        quantize_onnx(served, real_rows(), 0.9)
    (record,) = [record for record in caplog.records if record.name == "hf_tinybert.models.export"]
    assert re.search(r"agrees with float32 by (1\.0|0\.9)", record.getMessage())
    with pytest.raises(ValueError, match="Row 1 of calibration_dataset: 'input_ids' has 65 tokens"):
        quantize_onnx(served, [{"input_ids": [5]}, {"input_ids": [5] * 65}])


def test_a_graph_of_something_else_is_refused(served, tmp_path):
    folder = shutil.copytree(served, tmp_path / "out")
    graph = onnx.load(folder / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(ValueError, match="write it again with export_onnx"):
        quantize_onnx(folder)


def test_half_precision_that_overflows_is_refused_and_leaves_nothing(tmp_path):
    model, tokenizer = classifier(), word_tokenizer(tmp_path)
    model.bert.encoder.layer[0].intermediate.dense.weight.data.mul_(3e4)
    with pytest.raises(ValueError, match=r"float16 gives .*%.*random tokens: less than min_agreement=0\.98"):
        save_half(model, tokenizer, tmp_path / "half")
    with pytest.raises(ValueError, match="of calibration_dataset"):
        save_half(model, tokenizer, tmp_path / "half", real_rows())
    assert not (tmp_path / "half").exists()
    assert save_half(model, tokenizer, tmp_path / "half", min_agreement=0).exists()


def test_a_graph_with_other_answers_is_refused_whatever_the_tolerance(served, tmp_path, monkeypatch):
    other = with_outlier(served, tmp_path / "other", 100) / "model.onnx"
    monkeypatch.setattr(export, "trace", lambda twin, inputs, path: path.write_bytes(other.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.onnx gives .*% of its answers on 256 rows of calibration_dataset"):
        export_onnx(classifier(), word_tokenizer(tmp_path), tmp_path / "out", 100.0, real_rows())
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, "embeddings"])
def test_int8_with_outliers_is_refused_for_every_kind_of_head(tmp_path, name):
    model_class, changes = (KINDS[name].model_class, KINDS[name].config) if name in KINDS else (BertModel, {})
    model, tokenizer = build(model_class, bert_config(2, 32, **changes)).eval(), word_tokenizer(tmp_path)
    folder = export_onnx(model, tokenizer, tmp_path / "out").parent
    assert quantize_onnx(folder, min_agreement=0.9).exists()
    for scale in (100, 500):
        outliers = with_outlier(folder, tmp_path / str(scale), scale)
        with pytest.raises(ValueError, match=r"less than min_agreement=0\.9[89]"):
            quantize_onnx(outliers)


def test_every_large_weight_is_quantised(served):
    weights = {
        name: [t for t in onnx.load(served / name).graph.initializer if np.prod(t.dims) >= 512]
        for name in ("model.onnx", "model_int8.onnx")
    }
    assert len(weights["model_int8.onnx"]) == len(weights["model.onnx"]) > 12
    assert {t.data_type for t in weights["model_int8.onnx"]} == {onnx.TensorProto.UINT8}
    # One scale for each output channel.
    scales = [t for t in onnx.load(served / "model_int8.onnx").graph.initializer if t.name.endswith("_scale")]
    assert {64, 32} <= {int(np.prod(t.dims)) for t in scales}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_alone(tmp_path, dtype, monkeypatch):
    model = classifier().to(dtype).train()
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = True
    handle = model.register_forward_hook(lambda *_: pytest.fail("the model itself was run"))
    config, state = copy.deepcopy(model.config), {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    monkeypatch.setattr(export, "trace", lambda twin, inputs, path: None)
    monkeypatch.setattr(export, "check_parity", lambda *_: None)
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


def test_half_weights_come_back(tmp_path):
    model = classifier()
    folder = save_half(model, word_tokenizer(tmp_path), tmp_path / "half")
    half = AutoModelForSequenceClassification.from_pretrained(folder)
    assert half.dtype == torch.float16
    for name, value in half.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half())
    model.save_pretrained(tmp_path / "full")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    np.testing.assert_allclose(logits(loaded, inputs), logits(model, inputs), atol=0.02)


def contents(folder: Path) -> dict:
    return {file.name: file.read_bytes() for file in folder.glob("*")}


def test_a_graph_that_differs_from_torch_is_not_kept(served, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in contents(served).items():
        (folder / name).write_bytes(content)
    off = (served / "model_int8.onnx").read_bytes()
    monkeypatch.setattr(export, "trace", lambda twin, inputs, path: path.write_bytes(off))
    before = contents(folder)
    with pytest.raises(ValueError, match=r"more than tolerance=0\.0001"):
        export_onnx(classifier(), word_tokenizer(tmp_path), folder)
    assert contents(folder) == before
    assert export_onnx(classifier(), word_tokenizer(tmp_path), folder, tolerance=0.2) == folder / "model.onnx"
    assert not (folder / "model_int8.onnx").exists()


def test_outputs_that_are_nan_are_no_parity(served):
    session = onnxruntime.InferenceSession(served / "model.onnx")
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


@pytest.mark.slow
def test_latency_benchmark(tmp_path):
    recipe = Path(__file__).parents[2] / "recipes/benchmarks/latency.py"
    flags = ("--size", 2, 32, 64, 4, "--size", 1, 16, 32, 4, "--lengths", 16, "--rounds", 2, "--calls", 3)
    launch(recipe, 1, *flags, "--pause", 0, "--batch_size", 4, folder=tmp_path)
    rows = json.loads((tmp_path / "runs/latency.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == ["torch", "onnx", "int8"] * 2
    assert [row["× same engine"] for row in rows[:3]] == [1, 1, 1]
    assert all(0 < row["p50 ms"] <= row["p95 ms"] and row["sequences/s"] > 0 for row in rows)
