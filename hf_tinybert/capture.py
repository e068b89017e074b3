"""One forward pass of a transformers model → Activations, without ever forming S×S scores where that can be avoided.

A registered attention function runs sdpa, eager or flash attention as before and hands (query, key, scaling, value)
out where `output_attentions=True` expects attention weights, so that they arrive in `outputs.attentions`.
Architectures that do not route attention through transformers' interface fall back to eager, and the input of their
softmax is recorded.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .activations import Activations, QueryKey
from .heads import is_masked_lm, logits_of, read_logits
from .padding_free import RealTokens, check_padding_free, padding_free

logger = logging.get_logger(__name__)


class ActivationCapture:
    """Captures what the losses read from `model`: attention scores and hidden states of chosen layers.

    `with capture.enabled():` switches the attention function and puts the old one back at the end. Inside, call the
    model with `**capture.forward_arguments` under `capture.recording()`, then `capture.read(outputs, ...)`.
    Layers count from 1; 0 is the embedding output. `values` keeps the values too. `truncate` leaves out the layers
    above the last one captured, for a model whose head nobody reads; where they are no ModuleList (ALBERT) all run.
    `padding_free` runs the layers on real tokens alone; ValueError where they cannot (`padding_free`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention_layers: Iterable[int] = (),
        hidden_layers: Iterable[int] = (),
        values: bool = False,
        truncate: bool = False,
        padding_free: bool = False,
    ):
        if padding_free:
            check_padding_free(model)
        self.model = model
        self.padding_free = padding_free
        self.attention_layers = sorted(set(attention_layers))
        self.hidden_layers = sorted(set(hidden_layers))
        self.values = values
        self.depth = model.config.num_hidden_layers
        last = max([1, *self.attention_layers, *self.hidden_layers])
        self._layers = _find_layers(model) if truncate and last < self.depth else None
        if self._layers:
            self.depth = last
        self.records_softmax = bool(self.attention_layers) and not model._can_set_attn_implementation()
        if self.records_softmax:
            logger.warning_once(
                f"{type(model).__name__} computes attention without transformers' attention interface: its scores are "
                "recorded before the softmax of eager attention, which takes memory quadratic in the sequence length."
            )

    @property
    def forward_arguments(self) -> dict[str, Any]:
        """Keyword arguments that make the model's forward return what is captured."""
        arguments: dict[str, Any] = {"output_hidden_states": self.hidden_layers} if self.hidden_layers else {}
        if self.attention_layers and not self.records_softmax:
            arguments["output_attentions"] = True
        return arguments

    @contextlib.contextmanager
    def enabled(self):
        """Hand out query, key and value instead of attention weights; everything is as it was at the end."""
        with contextlib.ExitStack() as stack:
            if self._layers:
                stack.enter_context(_truncated(self.model.base_model, *self._layers, self.depth))
            if self.padding_free:
                stack.enter_context(padding_free(self.model))
            if self.padding_free or (self.attention_layers and not self.records_softmax):
                stack.callback(self.model.set_attn_implementation, self.model.config._attn_implementation)
                self.model.set_attn_implementation(_query_key_implementation(self.model.config._attn_implementation))
            yield

    @contextlib.contextmanager
    def recording(self):
        """Around one forward call; gives the list that `read` takes for architectures without the interface."""
        if not self.records_softmax:
            yield None
            return
        with _SoftmaxInputs() as recorder:
            yield recorder.scores

    def read(
        self,
        outputs: Mapping[str, Any],
        attention_mask: Tensor | None = None,
        recorded_scores: list[Tensor] | None = None,
        loss: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Activations:
        """Activations of one forward pass. Raises RuntimeError where a capture came back empty or incomplete.

        The choices of multiple choice, (B, choices, S), count as examples: all but the logits are (B·choices, …).
        """
        if attention_mask is not None and attention_mask.dim() == 3:
            attention_mask = attention_mask.flatten(0, 1)
        attentions = hidden_states = None
        if self.attention_layers:
            captured = recorded_scores if self.records_softmax else outputs.get("attentions") or ()
            if len(captured) != self.depth or not all(isinstance(entry, (tuple, Tensor)) for entry in captured):
                raise RuntimeError(
                    f"{type(self.model).__name__} ran {self.depth} layers but {len(captured)} attention scores were "
                    "captured, so an attention loss would train nothing or the wrong layers. Load the model with "
                    "attn_implementation='sdpa', or drop 'attention' from loss_type."
                )
            attentions = tuple(
                self._keep(entry) if m in self.attention_layers else None for m, entry in enumerate(captured, start=1)
            )
        if self.hidden_layers:
            hidden_states = outputs.get("hidden_states") or ()
            if len(hidden_states) <= self.hidden_layers[-1] or any(
                hidden_states[layer] is None for layer in self.hidden_layers
            ):
                raise RuntimeError(
                    f"{type(self.model).__name__} did not return the hidden states of layers {self.hidden_layers}: "
                    "drop 'hidden' and 'embedding' from loss_type for this architecture."
                )
        predicted = labels != -100 if labels is not None and is_masked_lm(self.model) else None
        kind = logits_of(self.model)
        return Activations(attention_mask, read_logits(outputs), hidden_states, {}, attentions, loss, kind, predicted)

    def _keep(self, entry: tuple | Tensor) -> QueryKey | Tensor:
        if isinstance(entry, Tensor):
            return entry
        *query_key, value = entry
        return QueryKey(*query_key, value if self.values else None)


def _find_layers(model: PreTrainedModel) -> tuple[nn.Module, str] | None:
    """The module and the attribute that hold the encoder's layers; None where that is not one ModuleList."""
    if model.config.model_type == "albert":
        return None  # counts its layers by its config
    depth = model.config.num_hidden_layers
    found = [
        (parent, name)
        for parent in model.base_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    return found[0] if len(found) == 1 else None


@contextlib.contextmanager
def _truncated(base_model: PreTrainedModel, parent: nn.Module, name: str, depth: int):
    layers, config = getattr(parent, name), base_model.config
    ties = getattr(config, "tie_last_hidden_states", None)
    setattr(parent, name, layers[:depth])
    parent.add_module("left_out", layers[depth:])  # so that they follow the others to another dtype or device
    # or the norm that follows the last layer (ModernBERT) would stand for the last hidden state
    config.tie_last_hidden_states = False
    try:
        yield
    finally:
        setattr(parent, name, layers)
        del parent.left_out
        config.tie_last_hidden_states = ties


def _query_key_implementation(base: str) -> str:
    """Register, once, the attention function that runs `base` and returns what is captured as its weights."""
    # transformers loads flash kernels by looking for "flash" in the name, which must not happen for ours
    name = "query_key_" + base.replace("flash", "fa")
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _hand_out_query_key(base))
        # without a mask function of the same name, padding would be attended to in silence
        AttentionMaskInterface.register(name, AttentionMaskInterface()[base])
    if name not in AttentionMaskInterface().valid_keys():
        raise RuntimeError(f"Attention '{name}' has lost its mask function: padding would be attended to.")
    return name


def _hand_out_query_key(base: str) -> Callable:
    def attention(
        module, query, key, value, attention_mask, scaling=None, real_tokens: RealTokens | None = None, **kwargs
    ):
        kwargs.pop("output_attentions", None)  # sdpa and flash only use it to warn
        if real_tokens is not None:
            query, key, value = map(real_tokens.pad_heads, (query, key, value))
        if base == "eager":
            output = _eager_attention(query, key, value, attention_mask, scaling, module.training, **kwargs)
        else:
            with _implementation(module.config, base):
                output, _ = ALL_ATTENTION_FUNCTIONS[base](
                    module, query, key, value, attention_mask, scaling=scaling, **kwargs
                )
        key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
        output = output if real_tokens is None else real_tokens.pack(output)
        return output, (query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, value)

    return attention


@contextlib.contextmanager
def _implementation(config, name: str):
    """Flash attention picks its kernel by the name in the config, so the base's own name has to stand there."""
    if "flash" not in name:
        yield
        return
    ours, config._attn_implementation_internal = config._attn_implementation_internal, name
    try:
        yield
    finally:
        config._attn_implementation_internal = ours


def _eager_attention(query, key, value, attention_mask, scaling, training, dropout=0.0, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(probabilities, p=dropout, training=training) @ value
    return output.transpose(1, 2).contiguous()


class _SoftmaxInputs(TorchFunctionMode):
    """Records what every softmax over (B, H, S, S) is given: the scores of eager attention, mask included."""

    def __init__(self):
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.softmax and args[0].dim() == 4 and args[0].shape[-1] == args[0].shape[-2]:
            self.scores.append(args[0])
        return func(*args, **(kwargs or {}))
