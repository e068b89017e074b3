"""BERT and the families that share its module names."""

from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from .albert import as_albert
from .base import Architecture
from .blocks import Attention, Block, FeedForward


class BertLike(Architecture):
    """The layers of BERT, whatever the embeddings."""

    fits_students = True
    computes_tokens_separately = True
    norm_first: ClassVar[bool] = False

    def norms(self, layer: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """The LayerNorms of the attention and the feed-forward sublayer of a layer."""
        return layer.attention.output.LayerNorm, layer.output.LayerNorm

    def blocks(self, model):
        return [
            Block(
                Attention(
                    query=layer.attention.self.query,
                    key=layer.attention.self.key,
                    value=layer.attention.self.value,
                    output=layer.attention.output.dense,
                    norm=self.norms(layer)[0],
                    norm_first=self.norm_first,
                    num_heads=model.config.num_attention_heads,
                ),
                FeedForward(
                    intermediate=layer.intermediate.dense,
                    activation=layer.intermediate.intermediate_act_fn,
                    output=layer.output.dense,
                    norm=self.norms(layer)[1],
                    norm_first=self.norm_first,
                ),
            )
            for layer in self.encoder(model).layer
        ]


class Bert(BertLike):
    """BERT. With narrower embeddings it becomes an ALBERT whose layers share nothing."""

    model_types = ("bert",)

    def with_embedding_projection(self, model: PreTrainedModel) -> PreTrainedModel:
        return as_albert(model)


class Roberta(BertLike):
    """RoBERTa, XLM-RoBERTa and CamemBERT."""

    model_types = ("roberta", "xlm-roberta", "camembert")


class Electra(BertLike):
    """ELECTRA, whose embeddings may be narrower than its layers."""

    model_types = ("electra",)

    def embedding_projection(self, model):
        factorised = model.base_model.embeddings.word_embeddings.embedding_dim != model.config.hidden_size
        return model.base_model.embeddings_project if factorised else None
