"""Distillation of sentence embeddings: pooled last hidden states (Reimers and Gurevych, 2020, arXiv 2004.09813)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import DistillationLoss

POOLINGS = ("mean", "first")


def pool(hidden: Tensor, attention_mask: Tensor | None = None, pooling: str = "mean") -> Tensor:
    """Sentence embeddings of hidden states (B, S, D), (B, D): their mean over real tokens, or the first real token's.

    `attention_mask` is (B, S). Raises ValueError for an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}: give one of {', '.join(POOLINGS)}.")
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if attention_mask is None else attention_mask
    if pooling == "first":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.int().argmax(-1)]
    mask = mask.bool()[..., None]
    return hidden.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)


class SentenceLoss(DistillationLoss):
    """L = 1 − cos(e_s, e_t) of the sentence embeddings, the pooled hidden states of the last mapped layers.

    Where the widths differ the student's embedding is projected first.
    `pooling`: `"mean"` over real tokens (default) or `"first"`, what the teacher was trained with.
    """

    name = "sentence"
    reads = frozenset({"hidden_states"})
    projects = True
    projects_equal_widths = False

    def __init__(self, weight: float = 1.0, pooling: str = "mean"):
        super().__init__(weight)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r}: give one of {', '.join(POOLINGS)}.")
        self.pooling = pooling

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """(B,)."""
        ((m, g),) = self.hidden_layers(layer_mapping)
        states = self.student_states(student)[m], teacher.hidden_states[g]
        ours, theirs = (pool(hidden.float(), student.attention_mask, self.pooling) for hidden in states)
        return 1 - F.cosine_similarity(ours, theirs, dim=-1)
