"""What every loss of the package keeps, found by walking the subclasses of `DistillationLoss`."""

import inspect
import json

import pytest
import torch

import hf_tinybert
from hf_tinybert.losses import AttentionLoss, DistillationLoss, PredictionLoss, RelationLoss, SentenceLoss, TaskLoss
from hf_tinybert.models.families import subclasses
from hf_tinybert.training.arguments import LOSSES as NAMED_LOSSES

# Classes without a name are what several losses share.
LOSSES = [
    loss
    for loss in subclasses(DistillationLoss)
    if loss.__module__.startswith("hf_tinybert.") and (hasattr(loss, "name") or not loss.__subclasses__())
]
OTHER_SETTINGS = [
    AttentionLoss(0.5, dtype=torch.float64, heads="mean"),
    PredictionLoss(0.5, temperature=3.0),
    RelationLoss(0.5, relation_heads=6, block=16),
    SentenceLoss(0.5, pooling="first"),
]
EXAMPLES = [loss(0.5) for loss in LOSSES] + OTHER_SETTINGS
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
every_example = pytest.mark.parametrize("loss", EXAMPLES, ids=repr)


@every_loss
def test_it_has_a_name_of_its_own_by_which_arguments_know_it(loss):
    assert [other for other in LOSSES if other.name == loss.name] == [loss]
    assert NAMED_LOSSES[loss.name] is loss


@every_loss
def test_it_is_exported(loss):
    assert loss.__name__ in hf_tinybert.__all__
    assert loss.__name__ in hf_tinybert.losses.__all__


@every_loss
def test_it_cites_its_paper(loss):
    if loss is TaskLoss:
        assert loss.citation is None
    else:
        assert "arXiv:" in loss.citation


@every_example
def test_its_settings_are_all_arguments_that_its_value_depends_on(loss):
    arguments = {*inspect.signature(type(loss)).parameters} - {"weight", "block"}
    assert set(loss.settings) == arguments


@every_example
def test_its_settings_survive_json_and_rebuild_it(loss):
    settings = json.loads(json.dumps(loss.settings))
    rebuilt = type(loss)(loss.weight, **settings)
    assert settings == loss.settings == rebuilt.settings
    state, rebuilt_state = ({k: v for k, v in vars(x).items() if k != "block"} for x in (loss, rebuilt))
    assert state == rebuilt_state


def test_other_settings_are_told_apart():
    for loss in OTHER_SETTINGS:
        assert loss.settings != type(loss)().settings


@every_loss
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite_numbers(loss, weight):
    with pytest.raises(ValueError, match="finite"):
        loss(weight=weight)


def test_a_loss_of_a_user_needs_neither_settings_nor_a_citation():
    class Own(DistillationLoss):
        name = "own"

    assert Own().settings == {}
    assert Own().citation is None
    assert repr(Own(2)) == "Own(weight=2.0)"
