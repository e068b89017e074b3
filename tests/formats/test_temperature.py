"""A temperature inside a model, for every kind of head that decides."""

import pytest
import torch
from conftest import bert_config, build
from head_kinds import KINDS
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from hf_tinybert.formats.temperature import fold_temperature
from hf_tinybert.models.prediction_heads import prediction_head_of


@pytest.mark.parametrize("name", ["classes", "several labels", "tokens", "spans", "choices"])
def test_logits_are_divided(name):
    model = build(KINDS[name].model_class, bert_config(1, 16, **KINDS[name].config)).train()
    check(model, torch.randint(50, (2, 3, 7) if name == "choices" else (2, 7)))


def test_of_another_architecture():
    config = DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=1, n_heads=4)
    check(build(DistilBertForSequenceClassification, config), torch.randint(50, (2, 7)))


def check(model, ids):
    head, state = prediction_head_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_temperature(fold_temperature(model, 2.0), 1.5)
    assert folded.config.logit_temperature == 3
    assert not hasattr(model.config, "logit_temperature")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert folded.training == model.training
    with torch.no_grad():
        before, after = (head.logits(m.eval()(input_ids=ids)) for m in (model, folded))
    torch.testing.assert_close(after, before / 3)


def test_logits_of_no_linear_layer_are_refused():
    model = build(KINDS["classes"].model_class, bert_config(1, 16))
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    with pytest.raises(ValueError, match="not those of its last linear layer"):
        fold_temperature(model, 2.0)
