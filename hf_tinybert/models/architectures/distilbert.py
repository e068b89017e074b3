"""DistilBERT."""

from collections.abc import Mapping
from typing import ClassVar

from .base import Architecture, Block


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
                query=layer.attention.q_lin,
                key=layer.attention.k_lin,
                value=layer.attention.v_lin,
                attention_output=layer.attention.out_lin,
                attention_norm=layer.sa_layer_norm,
                intermediate=layer.ffn.lin1,
                activation=layer.ffn.activation,
                output=layer.ffn.lin2,
                output_norm=layer.output_layer_norm,
                num_heads=model.config.num_attention_heads,
            )
            for layer in self.encoder(model).layer
        ]
