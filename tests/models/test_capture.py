"""Captured scores against eager attention of the same weights, for every architecture that is promised."""

import copy
import logging

import pytest
import torch
from conftest import VOCAB
from tiny_architectures import ALL, BY_FALLBACK, THROUGH_THE_INTERFACE, WITH_FINAL_NORM, tiny_model
from torch.nn import functional as F
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_tinybert.activations import QueryKey
from hf_tinybert.models import capture
from hf_tinybert.models.architectures import architecture_of
from hf_tinybert.models.capture import ActivationCapture

LENGTHS = [12, 7, 3]
OWN_CODE = sorted(ALL.keys() - {"xlm-roberta", "camembert"})  # these two are generated from RoBERTa's


@pytest.fixture
def batch():
    mask = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(3, VOCAB, (3, 12), generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask}


def captured(model, batch, attention_layers=(1, 2, 3), hidden_layers=(0, 1, 2, 3), **options):
    """The outputs of one forward pass and what was captured of it."""
    activation_capture = ActivationCapture(model, attention_layers, hidden_layers, **options)
    with torch.no_grad(), activation_capture.enabled(), activation_capture.recording() as scores:
        module = model.base_model if options.get("truncate") else model
        outputs = module(**batch, **activation_capture.forward_arguments)
        return outputs, activation_capture.collect(outputs, batch["attention_mask"], scores)


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


@pytest.mark.parametrize("name", OWN_CODE)
def test_scores_equal_eager_scores_before_softmax(name, batch, monkeypatch):
    model = tiny_model(name)
    _, activations = captured(model, batch)
    expected, outputs = eager_scores(model, batch, monkeypatch)
    real = batch["attention_mask"].bool()
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand_as(expected[0])
    if name == "mpnet":  # softmax(log p) is p, and the shared bias is left out
        bias = model.base_model.encoder.compute_position_bias(outputs.logits[:, :1].expand(3, 12))
        expected = [want - bias for want in expected]
        outputs.attentions = [(probabilities.log() - bias).softmax(-1) for probabilities in outputs.attentions]
    for entry, want, probabilities in zip(activations.attentions, expected, outputs.attentions, strict=True):
        assert dense(entry).abs().max() > 0.1  # not a comparison of nothing with nothing
        attended = pairs & (want > -1e4)  # local attention of ModernBERT masks distant tokens as well
        torch.testing.assert_close(dense(entry)[attended], want[attended], rtol=1e-4, atol=1e-4)
        scores = dense(entry).masked_fill(~attended, -1e9)
        torch.testing.assert_close(F.softmax(scores, dim=-1)[attended], probabilities[attended], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_forward_pass_is_the_same_under_capture_and_nothing_is_left_behind(name, batch):
    model = tiny_model(name)
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
    outputs, activations = captured(model, batch)
    assert torch.equal(outputs.logits, expected.logits)
    assert len(activations.hidden_states) == 4
    for state, want in zip(activations.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, want)
    assert all(isinstance(entry, QueryKey) for entry in activations.attentions) == (name not in BY_FALLBACK)
    assert (name in THROUGH_THE_INTERFACE) == (before == "sdpa")
    assert model.config._attn_implementation == before
    with torch.no_grad():
        assert not model(**batch).attentions


def ran_layers(model):
    """The layers that run from now on, counted from 1, and the types of their outputs; None without a layer list."""
    ran, layer_list = [], architecture_of(model.config).layer_list(model)
    for m, layer in enumerate(getattr(*layer_list) if layer_list else (), start=1):
        layer.register_forward_hook(lambda _, args, output, m=m: ran.append((m, type(output))))
    return ran


@pytest.mark.parametrize("name", OWN_CODE)
def test_layers_above_the_last_one_captured_do_not_run(name, batch):
    model = tiny_model(name)
    ran, config = ran_layers(model), copy.deepcopy(model.config.to_dict())
    modules = [name for name, _ in model.named_modules()]
    _, everything = captured(model, batch)
    whole = list(ran)
    ran.clear()
    _, activations = captured(model, batch, [1], [0, 2], truncate=True)
    assert [m for m, _ in ran] == ([] if name == "albert" else [1, 2])  # ALBERT has no list of layers to shorten
    assert torch.equal(dense(activations.attentions[0]), dense(everything.attentions[0]))
    assert activations.attentions[1] is None  # no loss reads them
    assert activations.hidden_states[1] is None
    for m in (0, 2):
        assert torch.equal(activations.hidden_states[m], everything.hidden_states[m])
    ran.clear()
    captured(model, batch)
    assert ran == whole
    assert model.config.to_dict() == config
    assert [name for name, _ in model.named_modules()] == modules


@pytest.mark.parametrize("name", [*WITH_FINAL_NORM, "deberta-v2"])
def test_truncated_hidden_states_do_not_pass_the_final_norm(name, batch):
    model = tiny_model(name)
    ran, norm = ran_layers(model), architecture_of(model.config).final_norm(model)
    can_capture_attention = model._can_set_attn_implementation()
    for last in (1, 2):
        layers = [last] if can_capture_attention else []
        _, whole = captured(model, batch, layers, [0, last])
        ran.clear()
        _, truncated = captured(model, batch, layers, [0, last], truncate=True)
        assert [m for m, _ in ran] == [*range(1, last + 1)]
        for m in (0, last):
            assert torch.equal(truncated.hidden_states[m], whole.hidden_states[m])
        if layers:
            assert torch.equal(dense(truncated.attentions[last - 1]), dense(whole.attentions[last - 1]))
        if norm:  # not a norm that changes nothing
            state = whole.hidden_states[last]
            assert (getattr(*norm)(state) - state).abs().max() > 0.1
    assert (norm is None) == (name == "deberta-v2")


def test_layers_return_tensors_and_tuples(batch):
    """Both kinds are among the models of the test above."""
    outputs = set()
    for name in WITH_FINAL_NORM:
        ran = ran_layers(model := tiny_model(name))
        captured(model, batch, [], [1])
        outputs |= {kind for _, kind in ran}
    assert outputs == {torch.Tensor, tuple}


@pytest.mark.parametrize("name", ["xlm-roberta-xl", "roberta-prelayernorm"])
def test_a_truncated_model_with_a_final_norm_runs_without_padding(name, batch):
    model, real = tiny_model(name), batch["attention_mask"].bool()
    _, whole = captured(model, batch, [2], [0, 2])
    _, truncated = captured(model, batch, [2], [0, 2], truncate=True, padding_free=True)
    for m in (0, 2):
        torch.testing.assert_close(truncated.hidden_states[m][real], whole.hidden_states[m][real])


def test_layers_in_several_lists_all_run(batch):
    """XLM keeps the attentions, norms and feed-forward sublayers of all layers in a list each."""
    from transformers import XLMConfig, XLMModel

    model = XLMModel(XLMConfig(vocab_size=VOCAB, emb_dim=16, n_layers=3, n_heads=4)).eval()
    assert architecture_of(model.config).layer_list(model) is None
    _, whole = captured(model, batch, [], [1])
    _, truncated = captured(model, batch, [], [1], truncate=True)
    assert torch.equal(truncated.hidden_states[1], whole.hidden_states[1])


def test_compiled_after_the_whole_model_was_compiled_it_is_truncated_as_well(batch):
    model = tiny_model("megatron-bert")
    encoder = torch.compile(model.base_model, backend="eager")
    for last, truncate in ((3, False), (1, True)):
        with torch.no_grad():
            expected = model.base_model(**batch, output_hidden_states=True).hidden_states[last]
        part = ActivationCapture(model, (), [last], truncate=truncate)
        with torch.no_grad(), part.enabled():
            activations = part.collect(encoder(**batch, **part.forward_arguments))
        torch.testing.assert_close(activations.hidden_states[last], expected)


@pytest.mark.parametrize("name", BY_FALLBACK)
def test_the_fallback_is_logged(name, caplog):
    capture.logger.warning_once.__func__.cache_clear()
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        ActivationCapture(tiny_model(name), attention_layers=[1, 2, 3])
    finally:
        root.removeHandler(caplog.handler)
    assert "quadratic in the sequence length" in caplog.text


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_masked_under_capture(name, implementation, batch):
    model = tiny_model(name)
    model.set_attn_implementation(implementation)
    outputs, _ = captured(model, batch)
    short = {key: value[1:2, :7] for key, value in batch.items()}
    alone, _ = captured(model, short)
    torch.testing.assert_close(outputs.logits[1:2], alone.logits, rtol=1e-4, atol=1e-5)


def test_flash_attention_runs_under_its_own_name(batch, monkeypatch):
    """No flash kernel runs on a CPU: a stand-in checks what transformers' flash code relies on, the config's name."""
    model = tiny_model("bert")
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


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_grouped_keys_are_repeated_for_every_head(implementation, batch):
    """EuroBERT with two key heads for four query heads."""
    model_class, config = WITH_FINAL_NORM["eurobert"]
    config = copy.deepcopy(config)
    config.num_key_value_heads = 2
    model = model_class(config).eval()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = model(**batch).logits
    outputs, activations = captured(model, batch)
    torch.testing.assert_close(outputs.logits, expected)
    for entry in activations.attentions:
        assert entry.key.shape == entry.query.shape == (3, 4, 12, 4)
        assert torch.equal(entry.key[:, 0], entry.key[:, 1])
        assert entry.scaling == 4**-0.5


def test_an_empty_capture_raises(batch):
    model = tiny_model("bert")
    outputs = model(**batch, output_attentions=True)  # plain sdpa returns no attentions
    with pytest.raises(RuntimeError, match="ran 3 layers but 0 attention scores"):
        ActivationCapture(model, attention_layers=[1, 2, 3]).collect(outputs)
    with pytest.raises(RuntimeError, match="hidden states of layers"):
        ActivationCapture(model, hidden_layers=[1]).collect(outputs)


def test_a_lost_mask_function_raises(monkeypatch):
    model = tiny_model("bert")
    with ActivationCapture(model, attention_layers=[1, 2, 3]).enabled():
        name = model.config._attn_implementation
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, name)
    with (
        pytest.raises(RuntimeError, match="lost its mask"),
        ActivationCapture(model, attention_layers=[1, 2, 3]).enabled(),
    ):
        pass
