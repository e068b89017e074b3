"""Distillation of sentence embeddings: pooled last hidden states (Reimers and Gurevych, 2020)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..activations import Activations
from ..layer_mapping import LayerMapping
from .base import DistillationLoss

POOLINGS = ("mean", "first")


def pool(hidden: Tensor, attention_mask: Tensor | None = None, pooling: str = "mean") -> Tensor:
    """The sentence embeddings of hidden states.

    Args:
        hidden: (B, S, D).
        attention_mask: (B, S), true at real tokens; None if every token is real.
        pooling: `"mean"` over the real tokens (default), or `"first"`, the first real token.

    Returns:
        (B, D).

    Raises:
        ValueError: If the pooling is unknown.
    """
    _check_pooling(pooling)
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if attention_mask is None else attention_mask
    if pooling == "first":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.int().argmax(-1)]
    mask = mask.bool()[..., None]
    return hidden.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)


class SentenceLoss(DistillationLoss):
    """L = 1 − cos(e_s, e_t) of the sentence embeddings, the pooled hidden states of the last mapped layers.

    If the widths differ, the student's states are projected first.

    Args:
        weight: λ, default 1.
        pooling: `"mean"` over real tokens (default) or `"first"`: the one that the teacher was trained with.

    Raises:
        ValueError: If the pooling is unknown.
    """

    name = "sentence"
    reads = frozenset({"hidden_states"})
    projects = True
    projects_equal_widths = False
    citation = (
        "Reimers and Gurevych (2020). Making Monolingual Sentence Embeddings Multilingual using Knowledge "
        "Distillation. arXiv:2004.09813."
    )

    def __init__(self, weight: float = 1.0, pooling: str = "mean"):
        super().__init__(weight)
        _check_pooling(pooling)
        self.pooling = pooling

    @property
    def settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling}

    def hidden_layers(self, layer_mapping: LayerMapping) -> LayerMapping:
        """The last pair."""
        return layer_mapping[-1:]

    def forward(self, student: Activations, teacher: Activations, layer_mapping: LayerMapping) -> Tensor:
        """The cosine distance of the sentence embeddings, (B,)."""
        ((m, g),) = self.hidden_layers(layer_mapping)
        mask = student.attention_mask
        student_embedding = pool(self.student_states(student)[m].float(), mask, self.pooling)
        teacher_embedding = pool(teacher.hidden_states[g].float(), mask, self.pooling)
        return 1 - F.cosine_similarity(student_embedding, teacher_embedding, dim=-1)


def _check_pooling(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}: give one of {', '.join(POOLINGS)}.")
