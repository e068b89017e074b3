"""Weights in float16 against the model they were made from."""

import numpy as np
import pytest
import torch
from conftest import word_tokenizer
from exported_students import classifier, logits, real_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_tinybert.formats.half_weights import save_half

SENTENCES = ["the film is very good .", "dull", "a book was not bright", "a bad play"]


def test_half_precision_that_overflows_is_refused_and_leaves_nothing(tmp_path):
    model, tokenizer = classifier(), word_tokenizer(tmp_path)
    model.bert.encoder.layer[0].intermediate.dense.weight.data.mul_(3e4)
    with pytest.raises(ValueError, match=r"float16 gives .*%.*random tokens: less than min_agreement=0\.98"):
        save_half(model, tokenizer, tmp_path / "half")
    with pytest.raises(ValueError, match="of calibration_dataset"):
        save_half(model, tokenizer, tmp_path / "half", real_rows())
    assert not (tmp_path / "half").exists()
    assert save_half(model, tokenizer, tmp_path / "half", min_agreement=0).exists()


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
    inputs = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    np.testing.assert_allclose(logits(loaded, inputs), logits(model, inputs), atol=0.02)
