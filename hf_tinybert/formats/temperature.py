"""A temperature inside a model: softmax of its logits is then softmax(z/t) of the logits before."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.forward import evaluation_mode
from ..models.prediction_heads import prediction_head_of

CONFIG_KEY = "logit_temperature"


def fold_temperature(model: PreTrainedModel, temperature: float) -> PreTrainedModel:
    """A copy of a model whose logits are divided by a temperature.

    Weights and bias of the last linear layer are divided, so that every format of the copy is calibrated. The
    configuration keeps the temperature as `logit_temperature`, the product of all that were folded.

    Args:
        model: The model. It does not change.
        temperature: t > 0.

    Returns:
        The copy.

    Raises:
        ValueError: If the logits are not those of a last linear layer.
    """
    folded = copy.deepcopy(model)
    layers: list[nn.Linear] = []

    def record(layer: nn.Linear) -> Callable:
        return layer.register_forward_hook(lambda *_: layers.append(layer))

    with evaluation_mode(folded):
        hooks = [record(module) for module in folded.modules() if isinstance(module, nn.Linear)]
        before = _logits(folded)
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weights in layers[-1].parameters():
                weights.div_(temperature)
        after = _logits(folded)
    scale = before.abs().max()
    if not torch.allclose(after, before / temperature, rtol=0, atol=float(1e-2 * scale / temperature)):
        raise ValueError(
            f"The logits of {type(model).__name__} are not those of its last linear layer: no temperature can be "
            "folded into it."
        )
    setattr(folded.config, CONFIG_KEY, getattr(folded.config, CONFIG_KEY, 1.0) * temperature)
    return folded


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    """The logits of a few tokens."""
    head = prediction_head_of(model)
    ids = torch.arange(5, 9, device=model.device).view((1,) * (len(head.input_axes) - 1) + (4,))
    return head.logits(model(input_ids=ids % model.config.vocab_size)).float()
