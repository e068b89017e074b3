"""What one forward pass hands to the losses. B batch, H heads, S sequence, D hidden size throughout the package."""

from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor


@dataclass
class QueryKey:
    """Attention scores kept as their factors: scores = query·keyᵀ·scaling, before mask and softmax.

    `query` and `key` are (B, H, S, D/H), after any rotary embedding; `scaling` is the factor that the model applies.
    `value`, likewise, is None unless a loss reads it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    value: Tensor | None = None

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """Query, key and, where it is there, value."""
        return (self.query, self.key) if self.value is None else (self.query, self.key, self.value)

    def scores(self) -> Tensor:
        """The scores themselves, (B, H, S, S) in float32."""
        return self.query.float() @ self.key.float().mT * self.scaling


class Logits(Enum):
    """Over what the logits of a head are distributions.

    - CLASSES: a softmax over C, of an example (B, C) or of each token (B, S, C); one logit is a regression's score.
    - LABELS: a sigmoid each, (B, C): multi-label classification.
    - POSITIONS: (B, S, 2), the start and the end of an answer, each a softmax over the S real tokens.
    """

    CLASSES = "classes"
    LABELS = "labels"
    POSITIONS = "positions"


@dataclass
class Activations:
    """One forward pass of a student or a teacher. What no loss asked for is None.

    - `attention_mask`: (B, S), true at real tokens; None where every token is real.
    - `logits`: (B, C) or (B, S, C), and what they are, `kind`; `logits_mask` (B, S): the tokens whose logits are
      predictions, None where those of all real ones are.
    - `hidden_states`: index 0 is the embedding output, m the output of layer m; each (B, S, D).
    - `projected_states`: student only, {loss name: {m: (B, S, teacher's D)}}.
    - `attentions`: index m − 1 is layer m: `QueryKey`, or scores (B, H, S, S) where the model hides its factors; None
      for a layer that no loss reads.
    - `loss`: student only, the label loss, already normalised over the whole (accumulated, global) batch.
    """

    attention_mask: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    projected_states: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    attentions: tuple[QueryKey | Tensor | None, ...] | None = None
    loss: Tensor | None = None
    kind: Logits = Logits.CLASSES
    logits_mask: Tensor | None = None
