"""One adapter for each family of encoders; a new family is a subclass of `Architecture`."""

from .albert import Albert
from .base import Architecture, architecture_of, model_types
from .bert import Bert, BertLike, Electra, Roberta
from .blocks import Attention, Block, FeedForward, Sublayer
from .deberta import DebertaV2
from .distilbert import DistilBert
from .mpnet import MPNet
from .pre_norm import RobertaPreLayerNorm, XLMRobertaXL

__all__ = [
    "Albert",
    "Architecture",
    "Attention",
    "Bert",
    "BertLike",
    "Block",
    "DebertaV2",
    "DistilBert",
    "Electra",
    "FeedForward",
    "MPNet",
    "Roberta",
    "RobertaPreLayerNorm",
    "Sublayer",
    "XLMRobertaXL",
    "architecture_of",
    "model_types",
]
