"""Embeddings of many texts are those of each alone."""

import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from transformers import BertForSequenceClassification, BertModel

from hf_tinybert import sentence_embeddings

TEXTS = [" ".join(WORDS[(i * j) % 13] for j in range(1 + i % 7)) for i in range(20)]


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("model_class", [BertModel, BertForSequenceClassification])
def test_embeddings_of_many_are_those_of_each(tmp_path, pooling, model_class):
    tokenizer = word_tokenizer(tmp_path)
    model = build(model_class, bert_config(2, 16, dropout=0.1, vocab_size=len(tokenizer))).train()
    embeddings = sentence_embeddings(model, tokenizer, TEXTS, pooling, max_length=6, batch_size=3)
    assert model.training
    encoder = model.base_model.eval()
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=6, return_tensors="pt")
        (hidden,) = encoder(**inputs).last_hidden_state
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
