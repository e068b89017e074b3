"""DistilBERT."""

from collections.abc import Mapping
from typing import ClassVar

from .base import Architecture
from .blocks import Attention, Block, FeedForward


class DistilBert(Architecture):
    """DistilBERT: BERT's layers by other names, without token types and pooler."""

    model_types = ("distilbert",)
    size_names: ClassVar[Mapping[str, str]] = {"intermediate_size": "hidden_dim"}
    fits_students = True
    computes_tokens_separately = True

    def encoder(self, model):
        return model.base_model.transformer

    def blocks(self, model):
        return [
            Block(
                Attention(
                    query=layer.attention.q_lin,
                    key=layer.attention.k_lin,
                    value=layer.attention.v_lin,
                    output=layer.attention.out_lin,
                    norm=layer.sa_layer_norm,
                    num_heads=model.config.num_attention_heads,
                ),
                FeedForward(
                    intermediate=layer.ffn.lin1,
                    activation=layer.ffn.activation,
                    output=layer.ffn.lin2,
                    norm=layer.output_layer_norm,
                ),
            )
            for layer in self.encoder(model).layer
        ]
