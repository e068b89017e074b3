"""Calibration batches: order, padding, held-out rows."""

import pytest
import torch
from conftest import bert_config, build
from torch import nn
from transformers import BertForMultipleChoice, BertModel, DistilBertConfig, DistilBertModel

from hf_tinybert.students.calibration import calibration_batches, module_input


@pytest.fixture(scope="module")
def model():
    return build(BertModel, bert_config(1, 16)).eval()


def test_rows_of_similar_length_share_a_batch_and_every_fourth_row_is_held_out(model):
    lengths = [5, 2, 9, 3, 4, 8, 6, 7]
    dataset = [{"input_ids": [index + 1] * length, "labels": 1} for index, length in enumerate(lengths)]
    batches = calibration_batches(dataset, None, model, 3)
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(3, 4), (3, 7), (2, 9)]
    held_out = torch.cat([batch.inputs["input_ids"][batch.held_out_rows, 0] for batch in batches])
    assert sorted(held_out.tolist()) == [4, 8]
    for batch in batches:
        assert set(batch.inputs) == {"input_ids", "attention_mask"}
        assert torch.equal(batch.mask, batch.inputs["input_ids"] != 0)
        tokens = batch.inputs["input_ids"][batch.mask]
        assert torch.equal(batch.held_out_tokens, (tokens == 4) | (tokens == 8))


def test_every_choice_is_a_row():
    model = build(BertForMultipleChoice, bert_config(1, 16))
    dataset = [{"input_ids": [[5, 6], [7, 8, 9]], "token_type_ids": [[0, 1], [0, 1, 1]]}]
    (batch,) = calibration_batches(dataset, None, model, 8)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]
    assert batch.embedding_inputs["token_type_ids"].tolist() == [[0, 1, 0], [0, 1, 1]]


def test_columns_that_the_model_does_not_take_are_left_out():
    model = DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=4))
    (batch,) = calibration_batches([{"input_ids": [5, 6], "token_type_ids": [0, 1]}], None, model, 8)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}


@torch.no_grad()
def test_the_input_of_a_module_is_what_it_is_called_with(model):
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    pooled = module_input(model, model.pooler, inputs)
    assert torch.equal(pooled, model(**inputs).last_hidden_state)
    with pytest.raises(ValueError, match="never runs"):
        module_input(model, nn.Identity(), inputs)
