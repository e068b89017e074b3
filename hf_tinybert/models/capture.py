"""One forward pass of a transformers model → `Activations`, without S×S scores if the model allows it.

A registered attention function runs sdpa, eager or flash attention as before and returns (query, key, scaling, value)
where `output_attentions=True` expects attention weights, so that they arrive in `outputs.attentions`. Architectures
that do not use transformers' attention interface fall back to eager attention. What their linear maps compute is
recorded if attention losses compare nothing else (`Architecture.scores_are_products`), and the input of their softmax
if not.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from ..activations import Activations, QueryKey
from .architectures import Architecture, Attention, architecture_of
from .forward import replaced_modules
from .padding_free import RealTokens, check_padding_free, padding_free
from .prediction_heads import prediction_head_of
from .recording_hooks import RecordingHooks

logger = logging.get_logger(__name__)


class ActivationCapture:
    """Captures what the losses read from `model`: attention and hidden states of some layers, and the logits.

    `with capture.enabled():` switches the attention function; at the end the model is as it was, so that it is the
    plain model for everybody else. Inside, call the model with `**capture.forward_arguments` under
    `capture.recording()`, then `capture.collect(outputs, ...)`.

    Args:
        model: The student or a teacher.
        attention_layers: Layers whose attention is captured, counted from 1.
        hidden_layers: Layers whose hidden states are captured, counted from 1; 0 is the embedding output.
        values: Whether to capture the values beside queries and keys.
        truncate: Whether to leave out the layers above the last captured one, for a model whose head nobody reads.
            Architectures that cannot (ALBERT) run all layers.
        padding_free: Whether the layers run on real tokens alone.

    Raises:
        ValueError: If `padding_free` is not possible with this architecture.
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
        self.prediction_head = prediction_head_of(model)
        self.padding_free = padding_free
        self.attention_layers = sorted(set(attention_layers))
        self.hidden_layers = sorted(set(hidden_layers))
        self.values = values
        self.depth = model.config.num_hidden_layers
        last = max([1, *self.attention_layers, *self.hidden_layers])
        architecture = architecture_of(model.config)
        self._stand_ins: list[tuple[nn.Module, str, nn.Module]] = []
        if truncate and last < self.depth and architecture.drops_layers and architecture.layer_list(model) is not None:
            self.depth = last
            self._stand_ins = _truncated(model, architecture, last)
        self._recording_hooks = RecordingHooks(model)
        parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        self._configs = list({id(part.config): part.config for part in parts}.values())
        has_interface = not self.attention_layers or model._can_set_attn_implementation()
        self.records_linears = not has_interface and architecture.scores_are_products
        self.records_softmax = not has_interface and not self.records_linears
        if self.records_softmax:
            logger.warning_once(
                f"{type(model).__name__} computes attention without transformers' attention interface: its scores are "
                "recorded before the softmax of eager attention, which takes memory quadratic in the sequence length."
            )

    @property
    def records_calls(self) -> bool:
        """Whether attention is recorded while the model runs, and not returned by it."""
        return self.records_softmax or self.records_linears

    @property
    def forward_arguments(self) -> dict[str, Any]:
        """Keyword arguments that make the model's forward return what is captured."""
        arguments: dict[str, Any] = {"output_hidden_states": self.hidden_layers} if self.hidden_layers else {}
        if self.attention_layers and not self.records_calls:
            arguments["output_attentions"] = True
        return arguments

    @contextlib.contextmanager
    def enabled(self) -> Iterator[None]:
        """Return query, key and value in place of attention weights; at the end the model is as it was before."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced_modules(self._stand_ins))  # the same each time: compiled code knows them
            stack.enter_context(self._recording_hooks.in_place())
            if self.padding_free:
                stack.enter_context(padding_free(self.model))
            if self.padding_free or (self.attention_layers and not self.records_calls):
                stack.enter_context(_handing_out(self._configs))
            yield

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Tensor | tuple] | None]:
        """Around one forward call; yields the list that `collect` takes for architectures without the interface."""
        if self.records_linears:
            blocks = architecture_of(self.model.config).blocks(self.model)
            with _linear_outputs([block.attention for block in blocks]) as recorded:
                yield recorded
        elif self.records_softmax:
            with _SoftmaxInputs() as recorder:
                yield recorder.scores
        else:
            yield None

    def collect(
        self,
        outputs: Mapping[str, Any],
        attention_mask: Tensor | None = None,
        recorded_scores: list[Tensor | tuple] | None = None,
        loss: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Activations:
        """The activations of one forward pass.

        Args:
            outputs: What the model returned.
            attention_mask: (B, S), or (B, choices, S) in multiple choice, whose choices count as examples: all but
                the logits are then (B·choices, …).
            recorded_scores: What `recording` yielded.
            loss: The label loss.
            labels: (B, S) in masked language modelling: −100 where there is nothing to predict.

        Returns:
            What the losses read; the legend of the shapes is that of `Activations`.

        Raises:
            RuntimeError: If nothing, or not every layer, was captured.
        """
        if attention_mask is not None and attention_mask.dim() == 3:
            attention_mask = attention_mask.flatten(0, 1)
        return Activations(
            attention_mask,
            self.prediction_head.logits(outputs),
            self._hidden_states(outputs) if self.hidden_layers else None,
            attentions=self._attentions(outputs, recorded_scores) if self.attention_layers else None,
            loss=loss,
            prediction_head=self.prediction_head,
            logits_mask=self.prediction_head.mask(labels, attention_mask),
        )

    def _attentions(self, outputs, recorded_scores) -> tuple[QueryKey | Tensor | None, ...]:
        captured = recorded_scores if self.records_calls else outputs.get("attentions") or ()
        if len(captured) != self.depth or not all(isinstance(entry, (tuple, Tensor)) for entry in captured):
            raise RuntimeError(
                f"{type(self.model).__name__} ran {self.depth} layers but {len(captured)} attention scores were "
                "captured, so an attention loss would train nothing or the wrong layers. Load the model with "
                "attn_implementation='sdpa', or drop 'attention' from loss_type."
            )
        return tuple(
            self._query_key(entry) if m in self.attention_layers else None for m, entry in enumerate(captured, start=1)
        )

    def _query_key(self, entry: tuple | Tensor) -> QueryKey | Tensor:
        if isinstance(entry, Tensor):
            return entry
        query, key, scaling, value = entry
        return QueryKey(query, key, scaling, value if self.values else None)

    def _hidden_states(self, outputs) -> tuple[Tensor | None, ...]:
        hidden_states = outputs.get("hidden_states") or ()
        if len(hidden_states) <= self.hidden_layers[-1] or any(hidden_states[m] is None for m in self.hidden_layers):
            raise RuntimeError(
                f"{type(self.model).__name__} did not return the hidden states of layers {self.hidden_layers}: "
                "drop 'hidden' and 'embedding' from loss_type for this architecture."
            )
        # some models return all of them: what no loss reads is not kept, nor cached
        return tuple(states if m in self.hidden_layers else None for m, states in enumerate(hidden_states))


def _truncated(
    model: PreTrainedModel, architecture: Architecture, depth: int
) -> list[tuple[nn.Module, str, nn.Module]]:
    """What stands in for parts of a model of which only the first `depth` layers run: (parent, name, module).

    The norm that follows all layers (MegatronBert, ModernBERT) does nothing. With it, the last hidden state returned
    would be LN(h) of the last layer that runs, not its output h.
    """
    parent, name = architecture.layer_list(model)
    stand_ins = [(parent, name, getattr(parent, name)[:depth])]
    if final_norm := architecture.final_norm(model):
        stand_ins.append((*final_norm, nn.Identity()))
    return stand_ins


@contextlib.contextmanager
def _handing_out(configs: Sequence[PreTrainedConfig]) -> Iterator[None]:
    """The models of these configurations run attention functions that return query, key and value.

    `set_attn_implementation` would search every module of the model, twice in each step.
    """
    names = [config._attn_implementation for config in configs]
    for config, name in zip(configs, names, strict=True):
        config._attn_implementation = _query_key_implementation(name)
    try:
        yield
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation = name


def _query_key_implementation(base: str) -> str:
    """Register, once, the attention function that runs `base` and returns what is captured as its weights."""
    # transformers loads flash kernels if it finds "flash" in the name, which must not happen for this function
    name = "query_key_" + base.replace("flash", "fa")
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _query_key_attention(base))
        # without a mask function of the same name, padding would be attended to in silence
        AttentionMaskInterface.register(name, AttentionMaskInterface()[base])
    if name not in AttentionMaskInterface().valid_keys():
        raise RuntimeError(f"Attention '{name}' has lost its mask function: padding would be attended to.")
    return name


def _query_key_attention(base: str) -> Callable:
    def attention(
        module, query, key, value, attention_mask, scaling=None, real_tokens: RealTokens | None = None, **kwargs
    ):
        kwargs.pop("output_attentions", None)  # sdpa and flash attention only use it for a warning
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
def _implementation(config, name: str) -> Iterator[None]:
    """Flash attention chooses its kernel by the name in the configuration, so the real name has to stand there."""
    if "flash" not in name:
        yield
        return
    registered, config._attn_implementation_internal = config._attn_implementation_internal, name
    try:
        yield
    finally:
        config._attn_implementation_internal = registered


def _eager_attention(query, key, value, attention_mask, scaling, training, dropout=0.0, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(probabilities, p=dropout, training=training) @ value
    return output.transpose(1, 2).contiguous()


@contextlib.contextmanager
def _linear_outputs(layers: list[Attention]) -> Iterator[list[tuple]]:
    """Around one forward call; yields the list of (query, key, scaling, value) of the layers that have run."""
    recorded: list[tuple] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            linears, outputs = (layer.query, layer.key, layer.value), {}

            def record(linear, args, output, layer=layer, linears=linears, outputs=outputs):
                outputs[linear] = output.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
                if len(outputs) == len(linears):
                    query, key, value = (outputs[linear] for linear in linears)
                    recorded.append((query, key, query.shape[-1] ** -0.5, value))

            for linear in linears:
                stack.enter_context(linear.register_forward_hook(record))
        yield recorded


class _SoftmaxInputs(TorchFunctionMode):
    """Records the input of every softmax over (B, H, S, S): the scores of eager attention, mask included."""

    def __init__(self):
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.softmax and args[0].dim() == 4 and args[0].shape[-1] == args[0].shape[-2]:
            self.scores.append(args[0])
        return func(*args, **(kwargs or {}))
