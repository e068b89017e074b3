"""Least squares and low-rank approximation from second moments of data, in float64.

Linear maps are matrices (inputs + 1, outputs) that act on rows; their last row is the bias.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Random combinations of the outputs that a penalty is chosen on, which takes less time than all outputs.
COMBINATIONS = 64
# The part of Σ‖x·prior‖² that an error has to fall by, for a gain to be more than the rounding of float32.
ROUNDING = 1e-10
# The smallest weight of a LayerNorm, relative to their root mean square, that a target is divided by.
SMALLEST_GAMMA = 1e-2


@dataclass
class Moments:
    """Second moments of regressors x, with a constant 1 appended, and targets y over the tokens added so far.

    Args:
        inputs: Σ xxᵀ, (inputs + 1, inputs + 1).
        cross: Σ xyᵀ, (inputs + 1, outputs).
    """

    inputs: Tensor | float = 0.0
    cross: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add tokens.

        Args:
            x: Regressors, (tokens, inputs).
            y: Targets, (tokens, outputs).
            weight: The weight of each token's squared error, (tokens, 1); default 1.
        """
        # Float32 sums over many tokens would lose the small eigenvalues.
        x = F.pad(x.double(), (0, 1), value=1.0)
        weighted = (x * weight).T
        self.inputs = self.inputs + weighted @ x
        self.cross = self.cross + weighted @ y.double()

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.inputs + other.inputs, self.cross + other.cross)

    def less(self, weight: Tensor) -> "Moments":
        """The moments of x and the targets y − xW, for a linear map W, (inputs + 1, outputs)."""
        return Moments(self.inputs, self.cross - self.inputs @ weight)

    def combined(self, combinations: Tensor) -> "Moments":
        """The moments of x and the targets yR, for combinations R, (outputs, any number)."""
        return Moments(self.inputs, self.cross @ combinations)

    def error(self, weight: Tensor) -> float:
        """Σ‖y − xW‖² − Σ‖y‖² over the tokens, for a linear map W, (inputs + 1, outputs)."""
        return (weight * (self.inputs @ weight - 2 * self.cross)).sum().item()


def ridge(moments: Moments, penalty: float, has_bias: bool = True) -> Tensor:
    """The linear map that minimises Σ‖y − xW‖² + penalty·mean(diag Σxxᵀ)·‖W‖².

    Args:
        moments: The moments of x and y.
        penalty: A positive number, relative to the mean square of x.
        has_bias: Whether the map has a bias. Without it the last row of W is zero.

    Returns:
        W, (inputs + 1, outputs).
    """
    end = len(moments.cross) if has_bias else -1
    gram = moments.inputs[:end, :end].clone()
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    solution = torch.cholesky_solve(moments.cross[:end], torch.linalg.cholesky(gram))
    return solution if has_bias else F.pad(solution, (0, 0, 0, 1))


def validated_ridge(
    fit: Moments, held_out: Moments, prior: Tensor, has_bias: bool = True, readout: Tensor | None = None
) -> Tensor:
    """Ridge regression on all tokens towards a prior, with the penalty that serves held-out tokens best.

    The penalty is found by descent over `PENALTIES` from the middle one: each is tried on the other tokens.

    Args:
        fit: The moments of the tokens that penalties are tried on.
        held_out: The moments of the held-out tokens.
        prior: The map that the penalty draws the solution to, (inputs + 1, outputs).
        has_bias: Whether the map has a bias. Without it the last row of the solution is that of the prior.
        readout: R, (outputs, any number): the error of a held-out token is that of yR; default the identity.

    Returns:
        (inputs + 1, outputs): the solution, or `prior` itself if no penalty has a smaller error than it, rounding of
        float32 aside.
    """
    combinations = _random_combinations(prior, readout)
    combined_prior = prior @ combinations
    signal = Moments(held_out.inputs).error(combined_prior)
    fit_part, held_out_part = (part.combined(combinations).less(combined_prior) for part in (fit, held_out))

    @cache
    def error(index: int) -> float:
        return held_out_part.error(ridge(fit_part, PENALTIES[index], has_bias))

    best = len(PENALTIES) // 2
    for step in (-1, 1):
        while 0 <= best + step < len(PENALTIES) and error(best + step) < error(best):
            best += step
    if error(best) >= -ROUNDING * signal:
        return prior
    return prior + ridge((fit + held_out).less(prior), PENALTIES[best], has_bias)


def _random_combinations(prior: Tensor, readout: Tensor | None) -> Tensor:
    """R, (outputs, at most `COMBINATIONS`), so that E‖eR‖² is proportional to ‖e‖², or to ‖e·readout‖²."""
    readout = torch.eye(prior.shape[1]).to(prior) if readout is None else readout
    if readout.shape[1] <= COMBINATIONS:
        return readout
    generator = torch.Generator().manual_seed(0)
    return readout @ torch.randn(readout.shape[1], COMBINATIONS, generator=generator, dtype=prior.dtype).to(prior)


def principal_basis(second_moment: Tensor, width: int) -> Tensor:
    """The leading eigenvectors of a second moment.

    Args:
        second_moment: (D, D), symmetric.
        width: The number of eigenvectors.

    Returns:
        (D, `width`) with orthonormal columns; the identity if `width` is D.
    """
    if width == len(second_moment):
        return torch.eye(width).to(second_moment)
    vectors = torch.linalg.eigh(second_moment).eigenvectors.flip(-1)[:, :width]
    # The sign of an eigenvector is arbitrary and differs between linear algebra libraries.
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def score_maps(query_moment: Tensor, key_moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The maps A and B that minimise E(q·k − Aq·Bk)² over independent queries q and keys k.

    Args:
        query_moment: E qqᵀ, (d, d).
        key_moment: E kkᵀ, (d, d).
        rank: The size of Aq and Bk.

    Returns:
        A and B, each (rank, d).
    """
    query_root, query_inverse = _square_root(query_moment)
    key_root, key_inverse = _square_root(key_moment)
    left, values, right = torch.linalg.svd(query_root.T @ key_root)
    scale = values[:rank, None].sqrt()
    return scale * (left.T[:rank] @ query_inverse), scale * (right[:rank] @ key_inverse)


def value_maps(output_projection: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The maps A and V that minimise E‖Wv − VAv‖² over the values v of an attention head.

    Args:
        output_projection: W, the part of the output projection that this head's values go through, (D, d).
        moment: E vvᵀ, (d, d).
        rank: The size of Av.

    Returns:
        A, (rank, d) with orthonormal rows, and V, (D, rank).
    """
    root, inverse = _square_root(moment)
    left, values, right = torch.linalg.svd(output_projection @ root, full_matrices=False)
    rows, triangle = torch.linalg.qr((right[:rank] @ inverse).T)
    return rows.T, left[:, :rank] * values[:rank] @ triangle.T


def _square_root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """R with RRᵀ = moment, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(root > 1e-6 * root.max(), 1 / root, 0.0)
    return vectors * root, (vectors * inverse).T


def set_linear(linear: nn.Linear, weight: Tensor) -> None:
    """Store a linear map, (inputs + 1, outputs), in a layer; one without a bias leaves out the last row."""
    linear.weight.copy_(weight[:-1].T)
    if linear.bias is not None:
        linear.bias.copy_(weight[-1])


def linear_weight(linear: nn.Linear) -> Tensor:
    """The linear map of a layer, (inputs + 1, outputs) in float64; the last row is zero if it has no bias."""
    bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
    return torch.cat([linear.weight.T, bias[None]]).double()


def project_inputs(weight: Tensor, basis: Tensor) -> Tensor:
    """A linear map of hidden states h as one of their coordinates Pᵀh in a basis P.

    Args:
        weight: The map of h, (D + 1, outputs).
        basis: P, (D, D') with orthonormal columns.

    Returns:
        The map of Pᵀh, (D' + 1, outputs).
    """
    return torch.cat([basis.T @ weight[:-1], weight[-1:]])


def linear_moments(triples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Moments, Moments]:
    """The moments that `validated_ridge` needs.

    Args:
        triples: Batches of real tokens as (x, y, held_out): (tokens, inputs), (tokens, outputs), and (tokens,), true
            at held-out tokens.

    Returns:
        The moments of the other tokens and those of the held-out tokens.
    """
    fit, held_out = Moments(), Moments()
    for x, y, is_held_out in triples:
        fit.add(x[~is_held_out], y[~is_held_out])
        held_out.add(x[is_held_out], y[is_held_out])
    return fit, held_out


def fit_norm(norm: nn.LayerNorm, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Fit γ and β of a LayerNorm by least squares, in each dimension by itself.

    Args:
        norm: The LayerNorm, which is changed in place.
        pairs: Batches of (input, target output), each (tokens, D).
    """
    tokens, sums = 0, 0.0
    for x, y in pairs:
        x, y = F.layer_norm(x, x.shape[-1:], eps=norm.eps).double(), y.double()
        tokens = tokens + len(x)
        sums = sums + torch.stack([x.sum(0), y.sum(0), (x * y).sum(0), x.square().sum(0)])
    x, y, xy, xx = sums / tokens
    if norm.bias is None:
        norm.weight.copy_(xy / xx.clamp(min=1e-8))
        return
    gamma = (xy - x * y) / (xx - x * x).clamp(min=1e-8)
    norm.weight.copy_(gamma)
    norm.bias.copy_(y - gamma * x)


def fit_output_projection(
    projection: nn.Linear, norm: nn.LayerNorm, batches: Callable[[], Iterable[tuple]], rounds: int
) -> None:
    """Fit LayerNorm(residual + projection(x)) to a target by alternating least squares, from the present projection.

    If γ, β and each token's mean and deviation are fixed, the sum that the LayerNorm takes to the target is known, and
    the projection is a linear least-squares problem. If the projection is fixed, γ and β are one (`fit_norm`).

    Args:
        projection: The output projection of a sublayer, which is changed in place.
        norm: The LayerNorm that follows it, which is changed in place.
        batches: Returns batches of real tokens as (x, residual, target, held_out): (tokens, inputs), (tokens, D),
            (tokens, D), and (tokens,), true at held-out tokens. It is called 2·`rounds` + 1 times.
        rounds: The number of alternations.
    """

    def sums_and_targets() -> Iterable[tuple[Tensor, Tensor]]:
        return ((residual + projection(x), target) for x, residual, target, _ in batches())

    fit_norm(norm, sums_and_targets())
    for _ in range(rounds):
        fit, held_out = Moments(), Moments()
        # A target says nothing of the dimensions that γ all but removes: they keep their projection.
        removed = norm.weight.abs() <= SMALLEST_GAMMA * norm.weight.square().mean().sqrt()
        gamma, beta = torch.where(removed, 1.0, norm.weight), 0.0 if norm.bias is None else norm.bias
        for x, residual, target, is_held_out in batches():
            total = residual + projection(x)
            deviation = (total.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
            wanted = (target - beta) / gamma * deviation + total.mean(-1, keepdim=True) - residual
            for moments, rows in ((fit, ~is_held_out), (held_out, is_held_out)):
                # The LayerNorm divides errors by the deviation.
                moments.add(x[rows], wanted[rows], deviation[rows].pow(-2))
        prior = linear_weight(projection)
        solution = validated_ridge(fit, held_out, prior, has_bias=projection.bias is not None)
        set_linear(projection, torch.where(removed, prior, solution))
        fit_norm(norm, sums_and_targets())


def fit_added_projection(projection: nn.Linear, batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Fit residual + projection(x) to a target by ridge regression, from the present projection.

    The norm that the sum passes next divides errors by the deviation of each token's state, and so does the fit.

    Args:
        projection: The output projection of a pre-norm sublayer, which is changed in place.
        batches: Batches of real tokens as (x, residual, target, held_out): (tokens, inputs), (tokens, D),
            (tokens, D), and (tokens,), true at held-out tokens.
    """
    fit, held_out = Moments(), Moments()
    for x, residual, target, is_held_out in batches:
        variance = target.var(-1, correction=0, keepdim=True)
        weight = 1 / (variance + 1e-6 * variance.mean())
        for moments, rows in ((fit, ~is_held_out), (held_out, is_held_out)):
            moments.add(x[rows], (target - residual)[rows], weight[rows])
    prior = linear_weight(projection)
    set_linear(projection, validated_ridge(fit, held_out, prior, has_bias=projection.bias is not None))
