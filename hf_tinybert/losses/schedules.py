"""How the weight λ of a loss changes over a training: by a schedule, and by factors that balance the gradients."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

# Name → the factor of λ at t, the share of all steps that is done, from 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear_decay": lambda t: 1 - t,
    "linear_growth": lambda t: t,
    "cosine_decay": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


def scheduled_weight(weight: float, schedule: str, progress: float) -> float:
    """The weight of a loss at one moment of its training.

    | schedule | weight at t |
    |---|---|
    | `"constant"` | λ |
    | `"linear_decay"` | λ·(1 − t) |
    | `"linear_growth"` | λ·t |
    | `"cosine_decay"` | λ·(1 + cos πt)/2 |

    Annealing distillation (Jafari et al., 2021, arXiv:2104.07163) starts with the teacher and ends with the labels.

    Args:
        weight: λ.
        schedule: One of `SCHEDULES`.
        progress: t, the share of all steps that is done, from 0 to 1.

    Returns:
        The weight at t.
    """
    return weight * SCHEDULES[schedule](progress)


def gradient_norm(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """‖∇L‖ over all parameters together. The graph stays, and neither `.grad` nor a hook of DDP sees the gradient.

    Args:
        value: L, a scalar.
        parameters: What L is differentiated by; those that it does not depend on count as 0.

    Returns:
        A scalar.
    """
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def balance_factors(weights: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
    """The factors f_i that make every ‖λ_i·f_i·∇L_i‖ the mean of all ‖λ_i·∇L_i‖, so that their sum stays.

    Args:
        weights: λ_i by the name of the loss.
        norms: ‖∇L_i‖ by the name of the loss.

    Returns:
        f_i by the name of the loss.

    Raises:
        ValueError: If a loss has no finite, positive gradient to scale; the message names it.
    """
    weighted_norms = {name: abs(weight) * norms[name] for name, weight in weights.items()}
    for name, norm in weighted_norms.items():
        if not 0 < norm < math.inf:
            raise ValueError(
                f"balance_losses: the {name} loss has weight {weights[name]:g} and gradient norm {norms[name]:g}, "
                "which no factor brings to the others': leave that loss or balance_losses out."
            )
    mean = sum(weighted_norms.values()) / len(weighted_norms)
    return {name: mean / norm for name, norm in weighted_norms.items()}
