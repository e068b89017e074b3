"""Least squares and low-rank maps against naive float64 formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_tinybert.least_squares import (
    PENALTIES,
    Moments,
    fit_added_projection,
    fit_norm,
    fit_output_projection,
    linear_moments,
    linear_weight,
    principal_basis,
    project_inputs,
    ridge,
    score_maps,
    set_linear,
    validated_ridge,
    value_maps,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def towards(prior, moments, penalty):
    return prior + ridge(moments.less(prior), penalty)


def test_moments_measure_the_weighted_squared_error():
    x, y, weight, token_weight = normal(50, 4), normal(50, 3), normal(5, 3), torch.rand(50, 1).double()
    moments = Moments()
    moments.add(x[:20], y[:20], token_weight[:20])
    moments.add(x[20:], y[20:], token_weight[20:])
    residual, combinations = y - torch.cat([x, torch.ones(50, 1)], 1) @ weight, normal(3, 2)
    for part, matrix in ((moments, torch.eye(3).double()), (moments.combined(combinations), combinations)):
        naive = (token_weight * ((residual @ matrix).square() - (y @ matrix).square())).sum()
        assert part.error(weight @ matrix) == pytest.approx(naive.item(), rel=1e-10)
    left = moments.less(weight)
    torch.testing.assert_close(left.cross, torch.cat([x, torch.ones(50, 1)], 1).T @ (token_weight * residual))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_ridge_is_least_squares_with_zeros_as_extra_rows(penalty, has_bias):
    x, y = normal(50, 4), normal(50, 3)
    moments = Moments()
    moments.add(x, y)
    features = torch.cat([x, torch.ones(50, 1)], 1) if has_bias else x
    strength = (penalty * features.square().sum(0).mean()).sqrt()
    width = features.shape[1]
    rows = torch.cat([features, strength * torch.eye(width, dtype=torch.float64)])
    naive = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(width, 3)])).solution
    solution = ridge(moments, penalty, has_bias)
    torch.testing.assert_close(solution[:width], naive)
    assert has_bias or not solution[-1].any()


def test_validated_ridge_keeps_a_prior_that_nothing_beats_and_finds_a_better_one():
    x, truth = normal(40, 30), normal(31, 2)
    y = torch.cat([x, torch.ones(40, 1)], 1) @ truth
    fit, held_out = Moments(), Moments()
    fit.add(x[:20], y[:20] + 3 * normal(20, 2))
    held_out.add(x[20:], y[20:])
    assert torch.equal(validated_ridge(fit, held_out, truth), truth)
    wrong = truth + normal(31, 2)
    better = validated_ridge(fit, held_out, wrong)
    assert (better - truth).norm() < (wrong - truth).norm()
    assert any(
        torch.allclose(better, towards(wrong, fit + held_out, penalty)) for penalty in PENALTIES
    )  # on all tokens


def test_random_combinations_of_many_outputs_choose_the_penalty_of_all():
    x, prior, readout = normal(90, 30), torch.zeros(31, 200).double(), normal(200, 150)
    y = torch.cat([x, torch.ones(90, 1)], 1) @ (0.3 * normal(31, 200)) + 3 * normal(90, 200)
    fit, held_out = Moments(), Moments()
    fit.add(x[:60], y[:60])
    held_out.add(x[60:], y[60:])
    for matrix in (None, readout):
        combined = [part if matrix is None else part.combined(matrix) for part in (fit, held_out)]
        best = min(PENALTIES, key=lambda penalty: combined[1].error(ridge(combined[0], penalty)))
        chosen = validated_ridge(fit, held_out, prior, readout=matrix)
        torch.testing.assert_close(chosen, ridge(fit + held_out, best))


def test_validated_ridge_does_not_fit_noise():
    x, prior = normal(64, 30), normal(31, 2)
    y = torch.cat([x, torch.ones(64, 1)], 1) @ (prior + 0.3 * normal(31, 2)) + 3 * normal(64, 2)
    fit, held_out = Moments(), Moments()
    fit.add(x[:32], y[:32])
    held_out.add(x[32:], y[32:])
    chosen = validated_ridge(fit, held_out, prior)
    assert not torch.equal(chosen, prior)
    assert (chosen - prior).norm() < 0.5 * (towards(prior, fit + held_out, 1e-5) - prior).norm()


def test_principal_basis_captures_as_much_as_the_singular_vectors():
    x = normal(200, 8) * torch.arange(1, 9)
    basis = principal_basis(x.T @ x, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    captured = (x @ basis).square().sum()
    torch.testing.assert_close(captured, torch.linalg.svdvals(x)[:3].square().sum())
    assert torch.equal(principal_basis(x.T @ x, 8), torch.eye(8, dtype=torch.float64))


def test_score_maps_are_the_best_low_rank_scores():
    query, key = normal(60, 6) @ normal(6, 6), normal(70, 6) @ normal(6, 6)
    scores = query @ key.T
    left, values, right = torch.linalg.svd(scores)
    query_map, key_map = score_maps(query.T @ query, key.T @ key, 3)
    expected = left[:, :3] * values[:3] @ right[:3]
    torch.testing.assert_close((query @ query_map.T) @ (key @ key_map.T).T, expected)


def test_value_maps_are_the_best_low_rank_output():
    output_projection, values = normal(10, 6), normal(80, 6) @ normal(6, 6)
    outputs = values @ output_projection.T
    rows, narrow = value_maps(output_projection, values.T @ values, 2)
    torch.testing.assert_close(rows @ rows.T, torch.eye(2, dtype=torch.float64))
    left, singular, right = torch.linalg.svd(outputs, full_matrices=False)
    torch.testing.assert_close(values @ rows.T @ narrow.T, left[:, :2] * singular[:2] @ right[:2])


def test_maps_survive_a_moment_of_low_rank():
    query = normal(60, 2) @ normal(2, 6)
    query_map, key_map = score_maps(query.T @ query, query.T @ query, 4)
    torch.testing.assert_close((query @ query_map.T) @ (query @ key_map.T).T, query @ query.T, atol=1e-6, rtol=1e-6)


def test_fit_norm_is_a_line_fitted_in_each_dimension():
    x, y = normal(90, 5).float(), normal(90, 5).float()
    norm = nn.LayerNorm(5)
    with torch.no_grad():
        fit_norm(norm, [(x[:30], y[:30]), (x[30:], y[30:])])
    normalised = F.layer_norm(x, (5,)).double()
    for column in range(5):
        line = torch.stack([normalised[:, column], torch.ones(90, dtype=torch.float64)], 1)
        gamma, beta = torch.linalg.lstsq(line, y[:, column : column + 1].double()).solution.flatten()
        assert norm.weight[column].item() == pytest.approx(gamma.item(), rel=1e-4, abs=1e-5)
        assert norm.bias[column].item() == pytest.approx(beta.item(), rel=1e-4, abs=1e-5)


def test_fit_output_projection_comes_nearer_to_a_sublayer_that_exists():
    x, residual = normal(300, 6).float(), normal(300, 8).float()
    truth, norm = nn.Linear(6, 8), nn.LayerNorm(8)
    projection, fitted = nn.Linear(6, 8), nn.LayerNorm(8)
    held_out = torch.arange(300) % 4 == 3
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        target = norm(residual + truth(x))
        errors = []
        for rounds in (0, 1, 6):
            fit_output_projection(projection, fitted, lambda: [(x, residual, target, held_out)], rounds)
            errors.append((fitted(residual + projection(x)) - target).square().mean() / target.var())
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.02


@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0])
@torch.no_grad()
def test_dimensions_that_the_norm_all_but_removes_keep_their_projection(scale):
    x, residual = normal(300, 6).float(), normal(300, 8).float()
    truth, norm = nn.Linear(6, 8), nn.LayerNorm(8)
    norm.weight.uniform_(0.5, 2)
    norm.weight[:3] = torch.tensor([0.0, -1e-6, 5e-3])
    norm.weight.mul_(scale)
    target, projection, fitted = norm(residual + truth(x)), nn.Linear(6, 8), nn.LayerNorm(8)
    noise = 0.1 * torch.randn(8, 6)
    projection.weight.copy_(truth.weight + noise)
    projection.bias.copy_(truth.bias)
    fit_output_projection(projection, fitted, lambda: [(x, residual, target, torch.arange(300) % 4 == 3)], rounds=1)
    removed = slice(0, 3 if scale else 8)
    torch.testing.assert_close(projection.weight[removed], truth.weight[removed] + noise[removed], rtol=0, atol=0)
    error = (projection.weight - truth.weight)[3:].norm()
    assert error < 0.8 * noise[3:].norm() or not scale


def test_linear_maps_are_taken_from_a_layer_projected_and_stored():
    linear, basis, x = nn.Linear(6, 4), torch.linalg.qr(normal(6, 3)).Q, normal(9, 3)
    narrow = nn.Linear(3, 4)
    with torch.no_grad():
        set_linear(narrow, project_inputs(linear_weight(linear), basis))
        # A hidden state that lies in the basis is mapped exactly.
        torch.testing.assert_close(narrow(x.float()), linear((x @ basis.T).float()))


@torch.no_grad()
def test_layers_without_a_bias():
    norm_of = nn.LayerNorm(8, bias=False)
    linear, x = nn.Linear(6, 4, bias=False), normal(90, 5)
    assert not linear_weight(linear)[-1].any()
    set_linear(linear, torch.cat([normal(6, 4), torch.zeros(1, 4)]))
    norm, y = nn.LayerNorm(5, bias=False), normal(90, 5).float()
    fit_norm(norm, [(x[:30].float(), y[:30]), (x[30:].float(), y[30:])])
    normalised = F.layer_norm(x, (5,))
    expected = (normalised * y).sum(0) / normalised.square().sum(0)
    torch.testing.assert_close(norm.weight, expected.float(), rtol=1e-4, atol=1e-5)
    residual, truth = normal(300, 8).float(), nn.Linear(6, 8, bias=False)
    inputs, projection, held_out = normal(300, 6).float(), nn.Linear(6, 8, bias=False), torch.arange(300) % 4 == 3
    target = norm_of(residual + truth(inputs))
    fit_output_projection(projection, norm_of, lambda: [(inputs, residual, target, held_out)], 6)
    assert (norm_of(residual + projection(inputs)) - target).square().mean() < 0.02 * target.var()


@torch.no_grad()
def test_an_added_projection_weighs_tokens_by_the_deviation_of_their_states():
    x, residual = normal(300, 6).float(), normal(300, 8).float()
    scale = torch.where(torch.arange(300) % 2 == 0, 1.0, 100.0)[:, None]
    noise = scale * torch.randn(300, 8)
    projection, truth, held_out = nn.Linear(6, 8), nn.Linear(6, 8), torch.arange(300) % 8 > 5
    target = scale * residual + truth(x) + 0.1 * noise
    fit_added_projection(projection, [(x, scale * residual, target, held_out)])
    assert (projection.weight - truth.weight).norm() < 0.15 * truth.weight.norm()


def test_linear_moments_separate_the_held_out_tokens():
    x, y, held_out = normal(30, 4), normal(30, 2), torch.arange(30) % 3 == 0
    fit, validation = linear_moments((x[i::2], y[i::2], held_out[i::2]) for i in range(2))
    weight = normal(5, 2)
    for moments, rows in ((fit, ~held_out), (validation, held_out)):
        naive = (y[rows] - torch.cat([x[rows], torch.ones(len(x[rows]), 1)], 1) @ weight).square().sum()
        naive -= y[rows].square().sum()
        assert moments.error(weight) == pytest.approx(naive.item(), rel=1e-10)
