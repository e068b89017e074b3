"""What every adapter says of its models, checked on a tiny model of every model type."""

import copy

import pytest
import torch
from conftest import VOCAB, build
from tiny_architectures import ALL, WITH_FINAL_NORM, drawn, forgotten, tiny_model
from torch import nn
from transformers import AlbertConfig, AlbertModel, AutoConfig, ElectraConfig, ElectraModel

from hf_tinybert.models.architectures import Albert, Architecture, Bert, architecture_of, model_types
from hf_tinybert.models.families import subclasses

FAMILIES = [family for family in subclasses(Architecture) if family.__module__.startswith("hf_tinybert")]
TYPES = sorted(model_type for family in FAMILIES for model_type in family.model_types)
FITTED = sorted(name for family in FAMILIES if family.fits_students for name in family.model_types)
UNSHARED = AlbertConfig(
    vocab_size=VOCAB,
    embedding_size=8,
    hidden_size=16,
    num_hidden_layers=3,
    num_hidden_groups=3,
    num_attention_heads=4,
    intermediate_size=32,
    initializer_range=0.3,
)


def model_of(model_type: str):
    """A tiny encoder; ALBERT with layers of their own, as students of it have."""
    return drawn(AlbertModel, UNSHARED) if model_type == "albert" else tiny_model(model_type).base_model


def hidden_states(model):
    ids = torch.randint(3, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        states = model(input_ids=ids * mask, attention_mask=mask, output_hidden_states=True).hidden_states
    return states, mask.bool()


def test_no_model_type_has_two_adapters():
    assert len(TYPES) == len({*TYPES})
    assert {*TYPES} <= {*ALL}  # a new family takes a tiny model


@pytest.mark.parametrize("model_type", TYPES)
def test_the_adapter_of_a_model_type(model_type):
    model = model_of(model_type)
    architecture = architecture_of(model.config)
    assert model_type in architecture.model_types
    assert type(architecture).__doc__
    holder, name = architecture.layer_list(model)
    assert len(getattr(holder, name)) == model.config.num_hidden_layers == 3
    assert architecture.shares_layers(model.config) is False
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
    for size, value in sizes.items():
        assert architecture.size(model.config, size) == value
        architecture.set_size(model.config, size, 2 * value)
        assert architecture.size(model.config, size) == 2 * value
        architecture.set_size(model.config, size, value)
    with pytest.raises(ValueError, match="has no no_such_size: leave no_such_size at None"):
        architecture.size(model.config, "no_such_size")


@pytest.mark.parametrize("model_type", FITTED)
def test_blocks_compute_what_the_layers_compute(model_type):
    model = model_of(model_type)
    blocks, final_norm = (getattr(architecture_of(model.config), name)(model) for name in ("blocks", "final_norm"))
    states, mask = hidden_states(model)
    assert len(blocks) == 3
    with torch.no_grad():
        for block, state, expected in zip(blocks, states, states[1:], strict=False):
            output = block.run(state, mask)
            if final_norm is not None and block is blocks[-1]:
                output = getattr(*final_norm)(output)
            torch.testing.assert_close(output[mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert (states[1] - states[0]).abs().max() > 0.1


@pytest.mark.parametrize("model_type", FITTED)
def test_the_encoder_runs_the_layers_from_the_embeddings_to_the_last_state(model_type):
    model = model_of(model_type)
    architecture, calls = architecture_of(model.config), []
    architecture.encoder(model).register_forward_hook(
        lambda module, args, kwargs, output: calls.append(((args or (kwargs["hidden_states"],))[0], output[0])),
        with_kwargs=True,
    )
    states, _ = hidden_states(model)
    (start, end), projection = calls[0], architecture.embedding_projection(model)
    final_norm = architecture.final_norm(model)
    if final_norm is not None and final_norm[0] is model:
        end = getattr(*final_norm)(end)
    if model_type == "albert":  # its encoder projects the embeddings itself
        start = projection(start)
    assert torch.equal(start, states[0])
    assert torch.equal(end, states[-1])
    layers = getattr(*architecture.layer_list(model))
    assert all(layer in [*architecture.encoder(model).modules()] for layer in layers)


@pytest.mark.parametrize("model_type", FITTED)
def test_the_embedding_projection_maps_the_embeddings_to_the_layers(model_type):
    model = model_of(model_type)
    projection = architecture_of(model.config).embedding_projection(model)
    narrow = model.get_input_embeddings().embedding_dim
    assert (projection is None) == (narrow == 16)
    if projection is not None:
        assert (projection.in_features, projection.out_features) == (narrow, 16)


def test_an_electra_with_wide_embeddings_has_no_embedding_projection():
    model = build(ElectraModel, ElectraConfig(vocab_size=VOCAB, embedding_size=16, hidden_size=16))
    assert architecture_of(model.config).embedding_projection(model) is None


def test_layers_are_shared_if_there_are_fewer_groups():
    model = tiny_model("albert")
    assert isinstance(architecture_of(model.config), Albert)
    assert architecture_of(model.config).shares_layers(model.config)
    assert architecture_of(model.config).layer_list(model) is None


@pytest.mark.parametrize("model_type", ["albert", "electra"])
def test_the_embedding_size_follows_the_hidden_size_if_they_were_equal(model_type):
    sizes = {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 4}
    teacher = AutoConfig.for_model(model_type, **sizes)  # ELECTRA's configuration stores the groups unread
    config = copy.deepcopy(teacher)
    config.hidden_size, config.num_hidden_layers = 8, 2
    architecture_of(config).follow_sizes(config, teacher)
    assert config.embedding_size == 8
    assert model_type != "albert" or config.num_hidden_groups == 2


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_with_an_embedding_projection_has_the_same_outputs(model_type):
    model = tiny_model(model_type)
    projected = architecture_of(model.config).with_embedding_projection(model)
    assert (projected is model) == (model_type != "bert")
    for state, expected in zip(hidden_states(projected)[0], hidden_states(model)[0], strict=True):
        torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("model_type", ALL | WITH_FINAL_NORM)
def test_the_final_norm_makes_the_last_hidden_state(model_type):
    model = tiny_model(model_type).base_model
    final_norm, outputs = architecture_of(model.config).final_norm(model), []
    assert (final_norm is not None) == (model_type in WITH_FINAL_NORM)
    if final_norm:
        getattr(*final_norm).register_forward_hook(lambda module, args, output: outputs.append(output))
        states, _ = hidden_states(model)
        assert len(outputs) == 1
        assert torch.equal(outputs[0].flatten(), states[-1].flatten())


def test_an_unknown_model_type_has_what_all_families_share():
    model = tiny_model("eurobert").base_model
    architecture = architecture_of(model.config)
    assert type(architecture) is Architecture
    holder, name = architecture.layer_list(model)
    assert (holder, name) == (model, "layers")
    assert not architecture.fits_students
    assert not architecture.computes_tokens_separately
    assert architecture.size(model.config, "intermediate_size") == 32
    assert architecture.embedding_projection(model) is None
    with pytest.raises(NotImplementedError):
        architecture.blocks(model)


def test_the_layers_are_found_beside_a_smaller_list_of_the_same_length():
    model = tiny_model("bert").base_model
    model.extra = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert architecture_of(model.config).layer_list(model) == (model.encoder, "layer")


def test_an_adapter_that_a_user_defines_is_found_and_wins():
    class Longer(Bert):
        """BERT under the name of a user."""

        model_types = ("bert", "longer-bert")

    with forgotten({"adapter": Longer}):
        config = AutoConfig.for_model("bert")
        assert type(architecture_of(config)) is Longer
        assert "longer-bert" in model_types("fits_students")
        del Longer
    assert type(architecture_of(config)) is Bert
    assert "longer-bert" not in model_types("fits_students")
