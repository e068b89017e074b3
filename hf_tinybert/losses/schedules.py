"""What the λ of each loss is at a step: a schedule over training, and factors that balance the losses' gradients."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

SCHEDULES = {
    "constant": lambda t: 1.0,
    "linear_decay": lambda t: 1 - t,
    "linear_growth": lambda t: t,
    "cosine_decay": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


def scheduled_weight(weight: float, schedule: str, progress: float) -> float:
    """λ at t = `progress`, the share of all steps that is done: λ, λ·(1 − t), λ·t or λ·(1 + cos πt)/2 (`SCHEDULES`).

    Annealing distillation (Jafari et al., 2021, arXiv 2104.07163) starts with the teacher and ends with the labels.
    """
    return weight * SCHEDULES[schedule](progress)


def gradient_norm(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """‖∇L‖ over `parameters`; the graph stays, and no `.grad` and no hook of DDP sees it."""
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def balance_factors(weights: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
    """f_i by which every ‖λ_i·f_i·∇L_i‖ is the mean of all ‖λ_i·∇L_i‖, so that their sum stays.

    Raises ValueError, naming the loss, where one has no gradient to scale.
    """
    scaled = {name: abs(weight) * norms[name] for name, weight in weights.items()}
    for name, norm in scaled.items():
        if not 0 < norm < math.inf:
            raise ValueError(
                f"balance_losses: the {name} loss has weight {weights[name]:g} and gradient norm {norms[name]:g}, "
                "which no factor brings to the others': leave that loss or balance_losses out."
            )
    return {name: sum(scaled.values()) / len(scaled) / norm for name, norm in scaled.items()}
