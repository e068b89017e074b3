"""The weights of a model: checked for NaN, and identified by a digest."""

import hashlib

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def check_weights(teacher: PreTrainedModel) -> None:
    """Check that all weights of the teacher are finite.

    Raises:
        ValueError: If a weight is NaN or infinite; the message names it.
    """
    for name, parameter in teacher.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ValueError(f"The teacher's weight '{name}' holds NaN or infinity: reload or retrain the teacher.")


def weights_digest(model: PreTrainedModel) -> str:
    """The SHA-256 of all weights and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
