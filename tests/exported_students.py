"""Tiny exported students and the rows to compare them on."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from conftest import VOCAB, bert_config, build, word_tokenizer
from transformers import BertForSequenceClassification

from hf_tinybert.formats.layout import ONNX, ONNX_INT8
from hf_tinybert.formats.onnx_export import export_onnx
from hf_tinybert.formats.onnx_int8 import quantize_onnx

NAMES = ["input_ids", "attention_mask", "token_type_ids"]
TABLES = ("word_embeddings.weight", "decoder.weight")  # the second if the head shares the table


def classifier(**changes):
    return build(BertForSequenceClassification, bert_config(2, 32, **changes)).eval()


def logits(model, inputs):
    with torch.no_grad():
        return model(**{name: torch.as_tensor(value) for name, value in inputs.items()}).logits.numpy()


def exported_classifier(folder: Path) -> Path:
    """A folder with the float32 and the int8 graph of `classifier()`."""
    folder.joinpath("words").mkdir()
    student = folder / "student"
    assert export_onnx(classifier(), word_tokenizer(folder / "words"), student) == student / ONNX
    assert quantize_onnx(student, real_rows()).path == student / ONNX_INT8
    return student


def random_inputs(names, batch, length):
    generator = np.random.default_rng(batch * 100 + length)
    lengths = [length, *generator.integers(1, length + 1, batch - 1)]
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
    inputs = {"input_ids": generator.integers(3, VOCAB, (batch, length)) * mask, "attention_mask": mask}
    inputs["token_type_ids"] = generator.integers(0, 2, (batch, length)) * mask
    return {name: inputs[name] for name in names}


def real_rows(count: int = 300) -> list[dict]:
    generator = np.random.default_rng(0)
    return [{"input_ids": generator.integers(5, VOCAB, 3 + n % 9).tolist()} for n in range(count)]


def with_weights(served: Path, folder: Path, change) -> Path:
    """A folder with the float32 graph of `served` alone, whose weights `change(name, values)` has changed in place."""
    shutil.copytree(served, folder, ignore=shutil.ignore_patterns("model_*.onnx"))
    graph = onnx.load(folder / ONNX)
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        change(tensor.name, values)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, folder / ONNX)
    return folder


def with_outlier(served: Path, folder: Path, scale: float) -> Path:
    """The same with one row of the token embeddings that is larger."""

    def change(name, values):
        if name.endswith(TABLES):
            values[7] *= scale

    return with_weights(served, folder, change)


def contents(folder: Path) -> dict:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
