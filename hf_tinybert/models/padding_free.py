"""Transformer layers that compute on real tokens alone, in batches of sequences of any lengths in any order.

While a model is `padding_free`, its encoder packs the T real tokens of a batch (B, S, D) into one row (1, T, D), and
pads the last hidden states again. Embeddings and prediction heads receive padded batches as before. The attention
function (`capture`) pads query, key and value, runs under the model's own mask, and packs its output. No token attends
to another sequence, and losses and gradients are those of the padded batch, up to rounding.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .architectures import architecture_of, model_types


class RealTokens:
    """The T real tokens of a batch.

    The first token of each row counts as real even if it is padding (on the left), because prediction heads read it.
    The constructor waits for the device, once in each forward pass.

    Args:
        attention_mask: (B, S), nonzero at real tokens.
    """

    def __init__(self, attention_mask: Tensor):
        self.shape = attention_mask.shape
        self.places = F.pad(attention_mask.bool()[:, 1:], (1, 0), value=True).flatten().nonzero().squeeze(1)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, S, …) → (1, T, …)."""
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def pad(self, packed: Tensor) -> Tensor:
        """(1, T, …) → (B, S, …), zero at padding."""
        padded = packed.new_zeros(self.shape.numel(), *packed.shape[2:])
        return padded.index_copy(0, self.places, packed[0]).unflatten(0, self.shape)

    def pad_heads(self, packed: Tensor) -> Tensor:
        """(1, H, T, D/H) → (B, H, S, D/H), zero at padding."""
        return self.pad(packed.transpose(1, 2)).transpose(1, 2)


def check_padding_free(model: PreTrainedModel) -> None:
    """Check that the layers of a model can run on real tokens alone.

    Raises:
        ValueError: If its architecture is not known to compute each token by itself, attention aside.
    """
    if not architecture_of(model.config).computes_tokens_separately:
        possible = ", ".join(model_types("computes_tokens_separately"))
        raise ValueError(
            f"padding_free does not work with {type(model).__name__}, only with {possible}: set "
            "padding_free=False (train_sampling_strategy='group_by_length' leaves little padding)."
        )


@contextlib.contextmanager
def padding_free(model: PreTrainedModel) -> Iterator[None]:
    """Run the layers of a model on real tokens alone if its base model receives an `attention_mask` by name.

    The outputs of the base model have their usual shapes, zero at padding unless the base model normalises them.

    Args:
        model: A model that passes `check_padding_free`. Its attention function receives `real_tokens` (`RealTokens`)
            and must take it, as that of `capture.ActivationCapture` does.
    """
    base, encoder = model.base_model, architecture_of(model.config).encoder(model)
    hooks = [
        base.register_forward_pre_hook(_find_real_tokens, with_kwargs=True),
        encoder.register_forward_pre_hook(_pack_embeddings, with_kwargs=True),
        encoder.register_forward_hook(_pad_last_state, with_kwargs=True),
        base.register_forward_hook(_pad_recorded_states, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _find_real_tokens(base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
    mask = kwargs.get("attention_mask")
    if mask is None:
        return None
    tokens = RealTokens(mask)
    # transformers hands it down, through the encoder and its layers, to the attention function
    return (args, kwargs | {"real_tokens": tokens}) if len(tokens.places) < mask.numel() else None


def _pack_embeddings(encoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
    if "real_tokens" not in kwargs:
        return None
    embeddings, *others = args or (kwargs.pop("hidden_states"),)
    return (kwargs["real_tokens"].pack(embeddings), *others), kwargs


def _pad_last_state(encoder: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: ModelOutput) -> None:
    if "real_tokens" in kwargs:
        outputs.last_hidden_state = kwargs["real_tokens"].pad(outputs.last_hidden_state)


def _pad_recorded_states(base: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: ModelOutput) -> None:
    if "real_tokens" in kwargs and outputs.get("hidden_states"):
        tokens = kwargs["real_tokens"]  # the last one may be the last hidden state, which is padded already
        outputs.hidden_states = tuple(
            state if state is None or state.shape[:2] == tokens.shape else tokens.pad(state)
            for state in outputs.hidden_states
        )
