"""Encoders that normalise the input of each sublayer, with a norm after the last layer."""

from .bert import BertLike


class RobertaPreLayerNorm(BertLike):
    """RoBERTa-PreLayerNorm."""

    model_types = ("roberta-prelayernorm",)
    norm_first = True

    def norms(self, layer):
        return layer.attention.LayerNorm, layer.intermediate.LayerNorm


class XLMRobertaXL(BertLike):
    """XLM-RoBERTa-XL, which does not normalise its embeddings."""

    model_types = ("xlm-roberta-xl",)
    norm_first = True

    def norms(self, layer):
        return layer.attention.self_attn_layer_norm, layer.LayerNorm
