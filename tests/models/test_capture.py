"""Captured scores against eager attention of the same weights, for every architecture that is promised."""

import copy
import logging

import pytest
import torch
from conftest import VOCAB, build
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_tinybert import capture
from hf_tinybert.activations import QueryKey
from hf_tinybert.models.capture import ActivationCapture

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
DISTILBERT = {
    "initializer_range": 0.3,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
MODERN = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
THROUGH_THE_INTERFACE = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**SIZES)),
    "xlm-roberta": (XLMRobertaForSequenceClassification, XLMRobertaConfig(**SIZES)),
    "camembert": (CamembertForSequenceClassification, CamembertConfig(**SIZES)),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(vocab_size=VOCAB, **DISTILBERT)),
    "electra": (ElectraForSequenceClassification, ElectraConfig(embedding_size=8, **SIZES)),
    "albert": (AlbertForSequenceClassification, AlbertConfig(embedding_size=8, **SIZES)),
    "modernbert": (ModernBertForSequenceClassification, ModernBertConfig(**SIZES, **MODERN)),
}
BY_FALLBACK = {
    "deberta-v2": (DebertaV2ForSequenceClassification, DebertaV2Config(**SIZES, **RELATIVE)),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig(**SIZES)),
}
ALL = THROUGH_THE_INTERFACE | BY_FALLBACK
LENGTHS = [12, 7, 3]


@pytest.fixture
def batch():
    mask = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(3, VOCAB, (3, 12), generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask}


def captured(model, batch):
    capture = ActivationCapture(model, range(1, 4), range(4))
    with torch.no_grad(), capture.enabled(), capture.recording() as scores:
        outputs = model(**batch, **capture.forward_arguments)
        return outputs, capture.read(outputs, batch["attention_mask"], scores)


def dense(entry):
    return entry.scores() if isinstance(entry, QueryKey) else entry


def eager_scores(model, batch, monkeypatch):
    """What the model's own eager code gives to its softmax, and the probabilities that it returns."""
    model.set_attn_implementation("eager")
    softmax, seen = F.softmax, []

    def recording(scores, *args, **kwargs):
        seen.append(scores)
        return softmax(scores, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "softmax", recording)
        outputs = model(**batch, output_attentions=True)
    assert len(seen) == len(outputs.attentions)
    return seen, outputs


@pytest.mark.parametrize("name", ALL)
def test_scores_equal_eager_scores_before_softmax(name, batch, monkeypatch):
    model = build(*ALL[name]).eval()
    _, activations = captured(model, batch)
    expected, outputs = eager_scores(model, batch, monkeypatch)
    real = batch["attention_mask"].bool()
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand_as(expected[0])
    for entry, want, probabilities in zip(activations.attentions, expected, outputs.attentions, strict=True):
        assert dense(entry).abs().max() > 0.1  # not a comparison of nothing with nothing
        attended = pairs & (want > -1e4)  # local attention of ModernBERT masks distant tokens as well
        torch.testing.assert_close(dense(entry)[attended], want[attended], rtol=1e-4, atol=1e-4)
        scores = dense(entry).masked_fill(~attended, -1e9)
        own = F.softmax(scores, dim=-1)
        torch.testing.assert_close(own[attended], probabilities[attended], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", THROUGH_THE_INTERFACE)
def test_no_fallback_no_change_of_logits_and_nothing_left_behind(name, batch):
    model = build(*THROUGH_THE_INTERFACE[name]).eval()
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = model(**batch).logits
    outputs, activations = captured(model, batch)
    assert before == "sdpa"
    assert all(isinstance(entry, QueryKey) for entry in activations.attentions)
    assert torch.equal(outputs.logits, expected)
    assert model.config._attn_implementation == before
    with torch.no_grad():
        assert not model(**batch).attentions


@pytest.mark.parametrize("name", ALL)
def test_hidden_states_are_embeddings_and_every_layer(name, batch):
    model = build(*ALL[name]).eval()
    _, activations = captured(model, batch)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).hidden_states
    assert len(activations.hidden_states) == 4
    for state, want in zip(activations.hidden_states, expected, strict=True):
        torch.testing.assert_close(state, want)


@pytest.mark.parametrize("name", ALL)
def test_layers_above_the_last_one_captured_do_not_run(name, batch):
    model = build(*ALL[name]).eval()
    layers = capture._find_layers(model)
    ran, modules = [], dict(enumerate(getattr(*layers), start=1)) if layers else {}
    for m, module in modules.items():
        module.register_forward_hook(lambda *_, m=m: ran.append(m))
    _, everything = captured(model, batch)
    whole, config = list(ran), copy.deepcopy(model.config.to_dict())
    ran.clear()
    part = ActivationCapture(model, [1], [0, 2], truncate=True)
    with torch.no_grad(), part.enabled(), part.recording() as scores:
        outputs = model.base_model(**batch, **part.forward_arguments)
        activations = part.read(outputs, batch["attention_mask"], scores)
    assert ran == ([1, 2] if layers else [])
    assert layers or name == "albert"
    assert torch.equal(dense(activations.attentions[0]), dense(everything.attentions[0]))
    assert activations.attentions[1] is None  # not kept: no loss reads it
    for m in (0, 2):
        assert torch.equal(activations.hidden_states[m], everything.hidden_states[m])
    ran.clear()
    captured(model, batch)
    assert ran == whole
    assert model.config.to_dict() == config | ({"tie_last_hidden_states": None} if layers else {})


@pytest.mark.parametrize("name", BY_FALLBACK)
def test_the_fallback_is_logged(name, caplog):
    capture.logger.warning_once.__func__.cache_clear()
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        ActivationCapture(build(*BY_FALLBACK[name]), attention_layers=[1, 2, 3])
    finally:
        root.removeHandler(caplog.handler)
    assert "quadratic in the sequence length" in caplog.text


@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_masked_under_capture(name, implementation, batch):
    model = build(*ALL[name]).eval()
    model.set_attn_implementation(implementation)
    outputs, _ = captured(model, batch)
    short = {key: value[1:2, :7] for key, value in batch.items()}
    alone, _ = captured(model, short)
    torch.testing.assert_close(outputs.logits[1:2], alone.logits, rtol=1e-4, atol=1e-5)


def test_flash_attention_runs_under_its_own_name(batch, monkeypatch):
    """No flash kernel runs on a CPU: a stand-in checks what transformers' flash code relies on, the config's name."""
    model = build(*ALL["bert"]).eval()
    with torch.no_grad():
        expected = model(**batch).logits
    seen = []

    def flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
        seen.append((module.config._attn_implementation, attention_mask.shape))
        mask = attention_mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scaling).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    model.config._attn_implementation_internal = "flash_attention_2"
    monkeypatch.setattr(type(model), "_check_and_adjust_attn_implementation", lambda self, name, **kwargs: name)
    outputs, activations = captured(model, batch)
    assert seen == [("flash_attention_2", (3, 12))] * 3
    assert all(isinstance(entry, QueryKey) for entry in activations.attentions)
    torch.testing.assert_close(outputs.logits, expected)
    assert model.config._attn_implementation == "flash_attention_2"


def test_grouped_keys_are_repeated_for_every_head():
    attention = capture._hand_out_query_key("eager")
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    module = torch.nn.Module()
    output, (_, repeated, scaling, _) = attention(module, query, key, key, None)
    expected = F.scaled_dot_product_attention(query, key, key, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(output, expected)
    assert repeated.shape == query.shape
    assert scaling == 8**-0.5


def test_an_empty_capture_raises(batch):
    model = build(*ALL["bert"])
    empty = ActivationCapture(model, attention_layers=[1, 2, 3])
    outputs = model(**batch, output_attentions=True)  # plain sdpa returns no attentions
    with pytest.raises(RuntimeError, match="ran 3 layers but 0 attention scores"):
        empty.read(outputs)
    with pytest.raises(RuntimeError, match="hidden states of layers"):
        ActivationCapture(model, hidden_layers=[1]).read(outputs)


def test_a_lost_mask_function_raises(monkeypatch):
    model = build(*ALL["bert"])
    with ActivationCapture(model, attention_layers=[1, 2, 3]).enabled():
        name = model.config._attn_implementation
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, name)
    with (
        pytest.raises(RuntimeError, match="lost its mask"),
        ActivationCapture(model, attention_layers=[1, 2, 3]).enabled(),
    ):
        pass
