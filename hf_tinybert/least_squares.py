"""Least squares and low-rank approximation from second moments of data, in float64."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass
class Moments:
    """Second moments of regressors x (a constant 1 appended) and targets y over the tokens added so far."""

    inputs: Tensor | float = 0.0  # [d + 1, d + 1]
    cross: Tensor | float = 0.0  # [d + 1, outputs]
    targets: Tensor | float = 0.0  # [outputs], the diagonal only

    def add(self, x: Tensor, y: Tensor, weight: Tensor | float = 1.0):
        # Float32 sums over many tokens would lose the small eigenvalues.
        x, y = F.pad(x.double(), (0, 1), value=1.0), y.double()
        self.inputs = self.inputs + (x * weight).T @ x
        self.cross = self.cross + (x * weight).T @ y
        self.targets = self.targets + (y.square() * weight).sum(0)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.inputs + other.inputs, self.cross + other.cross, self.targets + other.targets)

    def error(self, weight: Tensor) -> float:
        """Σ‖y − xW‖² for W [d + 1, outputs]."""
        return (self.targets.sum() + (weight * (self.inputs @ weight - 2 * self.cross)).sum()).item()


def ridge(moments: Moments, prior: Tensor, penalty: float) -> Tensor:
    """argmin_W Σ‖y − xW‖² + penalty·mean(diag Σxxᵀ)·‖W − prior‖², W and prior [d + 1, outputs]."""
    gram = moments.inputs.clone()
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    return prior + torch.cholesky_solve(moments.cross - moments.inputs @ prior, torch.linalg.cholesky(gram))


def validated_ridge(fit: Moments, held_out: Moments, prior: Tensor) -> Tensor:
    """`ridge` on all tokens, the penalty chosen by its error from `fit` to `held_out`; the prior where none beats it."""
    errors = {penalty: held_out.error(ridge(fit, prior, penalty)) for penalty in PENALTIES}
    best = min(errors, key=errors.get)
    return ridge(fit + held_out, prior, best) if errors[best] < held_out.error(prior) else prior


def principal_basis(second_moment: Tensor, width: int) -> Tensor:
    """The leading eigenvectors [D, width] of a second moment [D, D]; the identity where nothing is cut."""
    if width == len(second_moment):
        return torch.eye(width).to(second_moment)
    vectors = torch.linalg.eigh(second_moment).eigenvectors.flip(-1)[:, :width]
    # The sign of an eigenvector is arbitrary and differs between linear algebra libraries.
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def score_maps(query_moment: Tensor, key_moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A, B [rank, d] that minimise E(q·k − Aq·Bk)² over independent q and k with these second moments [d, d]."""
    query_root, query_inverse = _square_root(query_moment)
    key_root, key_inverse = _square_root(key_moment)
    left, values, right = torch.linalg.svd(query_root.T @ key_root)
    scale = values[:rank, None].sqrt()
    return scale * (left.T[:rank] @ query_inverse), scale * (right[:rank] @ key_inverse)


def value_maps(writer: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, d] with orthonormal rows and V [D, rank] that minimise E‖Wv − VAv‖², W [D, d] and E vvᵀ = moment."""
    root, inverse = _square_root(moment)
    left, values, right = torch.linalg.svd(writer @ root, full_matrices=False)
    rows, triangle = torch.linalg.qr((right[:rank] @ inverse).T)
    return rows.T, left[:, :rank] * values[:rank] @ triangle.T


def _square_root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """R with RRᵀ = moment, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(root > 1e-6 * root.max(), 1 / root, 0.0)
    return vectors * root, (vectors * inverse).T


def set_linear(linear: nn.Linear, weight: Tensor):
    """Store a solution [d + 1, outputs] that carries the bias in its last row."""
    linear.weight.copy_(weight[:-1].T)
    linear.bias.copy_(weight[-1])


def linear_weight(linear: nn.Linear) -> Tensor:
    """A linear map as [d + 1, outputs] in float64, its bias in the last row."""
    return torch.cat([linear.weight.T, linear.bias[None]]).double()


def project_inputs(weight: Tensor, basis: Tensor) -> Tensor:
    """The reader [D + 1, outputs] of h as a reader [D' + 1, outputs] of Pᵀh."""
    return torch.cat([basis.T @ weight[:-1], weight[-1:]])


def linear_moments(triples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Moments, Moments]:
    """Moments of the fitting and of the checking tokens; triples (x, y, check) of real tokens."""
    fit, check = Moments(), Moments()
    for x, y, is_check in triples:
        fit.add(x[~is_check], y[~is_check])
        check.add(x[is_check], y[is_check])
    return fit, check


def fit_norm(norm: nn.LayerNorm, pairs: Iterable[tuple[Tensor, Tensor]]):
    """γ and β of a LayerNorm by least squares in each dimension; pairs (input, wanted output), [tokens, D']."""
    sums = 0.0
    for x, y in pairs:
        x, y = F.layer_norm(x, x.shape[-1:], eps=norm.eps).double(), y.double()
        sums = sums + torch.stack([torch.ones_like(x), x, y, x * y, x * x]).sum(1)
    x, y, xy, xx = sums[1:] / sums[0]
    gamma = (xy - x * y) / (xx - x * x).clamp(min=1e-8)
    norm.weight.copy_(gamma)
    norm.bias.copy_(y - gamma * x)


def fit_output_projection(writer: nn.Linear, norm: nn.LayerNorm, tokens: Callable[[], Iterable[tuple]], rounds: int):
    """Alternating least squares of LayerNorm(residual + writer(x)) towards a target, starting from the writer given.

    `tokens()` yields (x, residual, target, check). With γ, β and each token's mean and deviation held, the sum that
    reaches the target is known and the writer is linear; with the writer held, γ and β are.
    """

    def sums_and_targets():
        return ((residual + writer(x), target) for x, residual, target, _ in tokens())

    fit_norm(norm, sums_and_targets())
    for _ in range(rounds):
        fit, check = Moments(), Moments()
        gamma = torch.where(norm.weight.abs() < 1e-2, 1e-2, norm.weight)
        for x, residual, target, is_check in tokens():
            total = residual + writer(x)
            deviation = (total.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
            wanted = (target - norm.bias) / gamma * deviation + total.mean(-1, keepdim=True) - residual
            for moments, rows in ((fit, ~is_check), (check, is_check)):
                # The LayerNorm divides errors by the deviation.
                moments.add(x[rows], wanted[rows], deviation[rows].pow(-2))
        set_linear(writer, validated_ridge(fit, check, linear_weight(writer)))
        fit_norm(norm, sums_and_targets())
