"""ALBERT, and BERT written as ALBERT so that its token embeddings may be narrower than its layers.

An ALBERT with as many groups as layers shares nothing between them: it is BERT with a linear map after the embeddings
(Lan et al., 2020, arXiv 1909.11942, section 3.1).
"""

import torch
import transformers
from torch import nn
from transformers import AlbertConfig, BertConfig, PretrainedConfig, PreTrainedModel

from .base import Architecture
from .blocks import Attention, Block, FeedForward

# BERT's names → ALBERT's, applied in this order.
RENAMED = (
    ("bert.", "albert."),
    ("pooler.dense.", "pooler."),
    ("encoder.layer.", "encoder.albert_layer_groups."),
    (".attention.self.", ".albert_layers.0.attention."),
    (".attention.output.", ".albert_layers.0.attention."),
    (".intermediate.dense.", ".albert_layers.0.ffn."),
    (".output.dense.", ".albert_layers.0.ffn_output."),
    (".output.LayerNorm.", ".albert_layers.0.full_layer_layer_norm."),
    ("cls.predictions.transform.", "predictions."),
    ("cls.predictions.", "predictions."),
)
EMBEDDING_PROJECTION = "encoder.embedding_hidden_mapping_in"


class Albert(Architecture):
    """ALBERT. Students can be initialised from it if each layer has a group of its own."""

    model_types = ("albert",)
    fits_students = True
    computes_tokens_separately = True
    drops_layers = False  # it counts its layers by its configuration

    def follow_sizes(self, config: PretrainedConfig, teacher_config: PretrainedConfig) -> None:
        super().follow_sizes(config, teacher_config)
        if not self.shares_layers(teacher_config):
            config.num_hidden_groups = config.num_hidden_layers

    def shares_layers(self, config):
        return config.num_hidden_groups != config.num_hidden_layers

    def layer_list(self, model):
        return None if self.shares_layers(model.config) else (self.encoder(model), "albert_layer_groups")

    def blocks(self, model):
        return [
            Block(
                Attention(
                    query=layer.attention.query,
                    key=layer.attention.key,
                    value=layer.attention.value,
                    output=layer.attention.dense,
                    norm=layer.attention.LayerNorm,
                    num_heads=model.config.num_attention_heads,
                ),
                FeedForward(
                    intermediate=layer.ffn,
                    activation=layer.activation,
                    output=layer.ffn_output,
                    norm=layer.full_layer_layer_norm,
                ),
            )
            for group in self.encoder(model).albert_layer_groups
            for layer in group.albert_layers
        ]

    def embedding_projection(self, model):
        return model.base_model.get_submodule(EMBEDDING_PROJECTION)


def albert_config(config: BertConfig) -> AlbertConfig:
    """The configuration of the ALBERT that has the outputs of a BERT."""
    values = config.to_dict()
    del values["model_type"], values["architectures"]
    dropout = values.pop("classifier_dropout")
    return AlbertConfig(
        **values,
        embedding_size=config.hidden_size,
        num_hidden_groups=config.num_hidden_layers,
        classifier_dropout_prob=config.hidden_dropout_prob if dropout is None else dropout,
    )


def albert_class(bert: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The ALBERT class with the head of a BERT class.

    Raises:
        ValueError: If there is none.
    """
    albert = getattr(transformers, bert.__name__.replace("Bert", "Albert", 1), None)
    if albert in (None, transformers.AlbertForPreTraining):  # the second head of the latter is another one
        raise ValueError(f"{bert.__name__} has no counterpart among ALBERT's classes: leave embedding_size at None.")
    return albert


@torch.no_grad()
def as_albert(bert: PreTrainedModel) -> PreTrainedModel:
    """An ALBERT with the outputs of a BERT, its embeddings as wide as its layers; in eval mode."""
    albert = albert_class(type(bert))(albert_config(bert.config)).to(bert.device, bert.dtype).eval()
    state = {}
    for name, tensor in bert.state_dict().items():
        for old, new in RENAMED:
            name = name.replace(old, new, 1)
        state[name] = tensor
    projection = albert.base_model.get_submodule(EMBEDDING_PROJECTION)
    nn.init.eye_(projection.weight)
    nn.init.zeros_(projection.bias)
    prefix = "" if albert.base_model is albert else f"{albert.base_model_prefix}."
    projected = {f"{prefix}{EMBEDDING_PROJECTION}.{key}": value for key, value in projection.state_dict().items()}
    albert.load_state_dict(state | projected)
    return albert
