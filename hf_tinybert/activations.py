"""What one forward pass hands to the losses.

Shapes throughout the package: B batch size, H attention heads, S sequence length, D hidden size, C classes.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class QueryKey:
    """Attention scores stored as their factors: scores = query·keyᵀ·scaling, before mask and softmax.

    Args:
        query: (B, H, S, D/H), after any rotary embedding.
        key: (B, H, S, D/H), likewise.
        scaling: The factor that the model applies to query·keyᵀ.
        value: (B, H, S, D/H); None unless a loss reads it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    value: Tensor | None = None

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """Query, key and, if present, value."""
        return (self.query, self.key) if self.value is None else (self.query, self.key, self.value)

    def scores(self) -> Tensor:
        """The scores themselves, (B, H, S, S) in float32."""
        return self.query.float() @ self.key.float().mT * self.scaling


@dataclass
class Activations:
    """One forward pass of a student or a teacher. A field that no loss reads is None.

    Args:
        attention_mask: (B, S), true at real tokens; None if every token is real.
        logits: (B, C) or (B, S, C).
        hidden_states: Index 0 is the embedding output and m the output of layer m; each (B, S, D).
        projected_states: Student only: {loss name: {m: (B, S, teacher's D)}}.
        attentions: Index m − 1 is layer m: `QueryKey`, or scores (B, H, S, S) if the model does not hand out its
            queries and keys; None for a layer that no loss reads.
        loss: Student only: the label loss, already normalised over the accumulated and global batch.
        prediction_head: What the logits mean: a `hf_tinybert.models.prediction_heads.PredictionHead`.
        logits_mask: (B, S), true at the tokens whose logits are predictions; None if all are.
    """

    attention_mask: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    projected_states: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    attentions: tuple[QueryKey | Tensor | None, ...] | None = None
    loss: Tensor | None = None
    prediction_head: Any = None
    logits_mask: Tensor | None = None


def token_mean(values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean of `values` over the real tokens of each sequence.

    Args:
        values: (B, S). Values at padding are ignored, even NaN.
        attention_mask: (B, S), true at real tokens; None if every token is real.

    Returns:
        (B,).
    """
    if attention_mask is None:
        return values.mean(-1)
    real = attention_mask.bool()
    return values.masked_fill(~real, 0).sum(-1) / real.sum(-1).clamp(min=1).to(torch.float32)
