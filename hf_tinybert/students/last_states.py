"""A model whose last hidden states are known: only its prediction head runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ..models.architectures import architecture_of
from ..models.forward import replaced_modules
from ..models.prediction_heads import Choices, prediction_head_of


class _LastStates(nn.Module):
    """Stands for an encoder whose last hidden states are known."""

    def __init__(self, states: Tensor):
        super().__init__()
        self._outputs = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)

    def forward(self, *args, **kwargs) -> BaseModelOutputWithPastAndCrossAttentions:
        return self._outputs


@contextmanager
def with_last_states(model: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """The encoder of a model does not run: its last hidden states, after any final norm, are (B, S, D) `states`."""
    base, architecture = model.base_model, architecture_of(model.config)
    encoder, final_norm = architecture.encoder(model), architecture.final_norm(model)
    places = [(base, next(name for name, child in base.named_children() if child is encoder), _LastStates(states))]
    if final_norm is not None and final_norm[0] is not encoder:
        places.append((*final_norm, nn.Identity()))
    with replaced_modules(places):
        yield


def head_inputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows, (B, S) each, as the inputs of a model: for multiple choice each is the only choice of an example."""
    is_choice = isinstance(prediction_head_of(model), Choices)
    return {name: tensor[:, None] if is_choice else tensor for name, tensor in inputs.items()}
