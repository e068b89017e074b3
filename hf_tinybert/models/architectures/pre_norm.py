"""Encoders that normalise the input of each sublayer, with a norm after the last layer."""

from torch import nn

from .base import Architecture
from .blocks import Attention, Block, FeedForward


class PreNorm(Architecture):
    """BERT's layers, each sublayer with its LayerNorm before it."""

    fits_students = True
    computes_tokens_separately = True

    def norms(self, layer: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """The LayerNorms before the attention and the feed-forward sublayer of a layer."""
        raise NotImplementedError

    def blocks(self, model):
        return [
            Block(
                Attention(
                    query=layer.attention.self.query,
                    key=layer.attention.self.key,
                    value=layer.attention.self.value,
                    output=layer.attention.output.dense,
                    norm=self.norms(layer)[0],
                    norm_first=True,
                    num_heads=model.config.num_attention_heads,
                ),
                FeedForward(
                    intermediate=layer.intermediate.dense,
                    activation=layer.intermediate.intermediate_act_fn,
                    output=layer.output.dense,
                    norm=self.norms(layer)[1],
                    norm_first=True,
                ),
            )
            for layer in self.encoder(model).layer
        ]


class RobertaPreLayerNorm(PreNorm):
    """RoBERTa-PreLayerNorm."""

    model_types = ("roberta-prelayernorm",)

    def norms(self, layer):
        return layer.attention.LayerNorm, layer.intermediate.LayerNorm


class XLMRobertaXL(PreNorm):
    """XLM-RoBERTa-XL, which does not normalise its embeddings."""

    model_types = ("xlm-roberta-xl",)

    def norms(self, layer):
        return layer.attention.self_attn_layer_norm, layer.LayerNorm
