"""A layer in the form that students are fitted in: an attention and a feed-forward sublayer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """A function f with a residual connection and a LayerNorm.

    It computes LN(h + f(h)), as in BERT, or h + f(LN(h)), which is called pre-norm.

    Attributes:
        output: The output projection, the last linear map of f.
        norm: The LayerNorm.
        norm_first: Whether it is pre-norm.
    """

    output: nn.Linear
    norm: nn.LayerNorm
    norm_first: bool = False

    def read(self, hidden: Tensor) -> Tensor:
        """What f receives, (..., D)."""
        return self.norm(hidden) if self.norm_first else hidden

    def write(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """The output of the sublayer, (..., D).

        Args:
            hidden: h, (..., D).
            inputs: What the output projection receives.
        """
        total = hidden + self.output(inputs)
        return total if self.norm_first else self.norm(total)


@dataclass(frozen=True, kw_only=True)
class Attention(Sublayer):
    """The attention sublayer.

    Attributes:
        query: The linear map to the queries of all attention heads.
        key: The linear map to the keys.
        value: The linear map to the values.
        num_heads: H.
        position_bias: Computes what is added to the scaled scores, (1, H, S, S), from states (1, S, D); None if there
            is nothing.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    num_heads: int
    position_bias: Callable[[Tensor], Tensor] | None = None

    def context(self, read: Tensor, mask: Tensor) -> Tensor:
        """softmax(QKᵀ·scaling + bias)V of all attention heads side by side.

        Args:
            read: What the sublayer receives, (B, S, D).
            mask: (B, S), true at real tokens.

        Returns:
            (B, S, D).
        """
        query, key, value = (
            linear(read).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attention_mask = mask[:, None, None, :]
        if self.position_bias is not None:
            attention_mask = self.position_bias(read[:1]).masked_fill(~attention_mask, float("-inf"))
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return context.transpose(1, 2).flatten(2)

    def attend(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The output of the sublayer for states (B, S, D), (B, S, D)."""
        return self.write(hidden, self.context(self.read(hidden), mask))


@dataclass(frozen=True, kw_only=True)
class FeedForward(Sublayer):
    """The feed-forward sublayer.

    Attributes:
        intermediate: The linear map to the units.
        activation: The activation function.
    """

    intermediate: nn.Linear
    activation: Callable[[Tensor], Tensor]

    def units(self, read: Tensor) -> Tensor:
        """The activations of the units, (..., number of units), for what the sublayer receives, (..., D)."""
        return self.activation(self.intermediate(read))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The output of the sublayer, (..., D)."""
        return self.write(hidden, self.units(self.read(hidden)))


@dataclass(frozen=True)
class Block:
    """A layer."""

    attention: Attention
    feed_forward: FeedForward

    def run(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The output of the layer, (B, S, D).

        Args:
            hidden: (B, S, D).
            mask: (B, S), true at real tokens.
        """
        return self.feed_forward.feed_forward(self.attention.attend(hidden, mask))
