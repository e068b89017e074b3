"""MPNet."""

from .base import Architecture
from .blocks import Attention, Block, FeedForward


class MPNet(Architecture):
    """MPNet: BERT's layers with one table of relative position biases for all of them.

    Attention losses compare QKᵀ·scaling without the bias. The bias is the same in all layers, is initialised from the
    teacher, and trains with the other weights.
    """

    model_types = ("mpnet",)
    fits_students = True
    scores_are_products = True

    def blocks(self, model):
        encoder = self.encoder(model)
        return [
            Block(
                Attention(
                    query=layer.attention.attn.q,
                    key=layer.attention.attn.k,
                    value=layer.attention.attn.v,
                    output=layer.attention.attn.o,
                    norm=layer.attention.LayerNorm,
                    num_heads=model.config.num_attention_heads,
                    position_bias=encoder.compute_position_bias,
                ),
                FeedForward(
                    intermediate=layer.intermediate.dense,
                    activation=layer.intermediate.intermediate_act_fn,
                    output=layer.output.dense,
                    norm=layer.output.LayerNorm,
                ),
            )
            for layer in encoder.layer
        ]

    def relative_bias(self, model):
        return self.encoder(model).relative_attention_bias
