"""One process and two (gloo, on the CPU) train the same student."""

import json
from pathlib import Path

import pytest
import torch
from invariants.two_processes import VARIANTS, train
from short_runs import launch


def test_two_processes_equal_one(tmp_path):
    """Every variant in one test, as starting processes takes longer than training in them."""
    launch(Path(__file__).parent / "two_processes.py", 2, "--folder", tmp_path / "two")
    ranks = [torch.load(tmp_path / f"two/rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for variant in VARIANTS:
        single, first, second = (
            train(VARIANTS[variant], tmp_path / "one" / variant),
            *(rank[variant] for rank in ranks),
        )
        for log, want in zip(first["logs"], single["logs"], strict=True):
            for name, value in want.items():
                assert log[name] == pytest.approx(value, rel=1e-4), (variant, name)
        for part in ("student", "projections", "losses"):
            for name, want in single[part].items():
                assert torch.equal(first[part][name], second[part][name]), f"{variant}: ranks differ in {name}"
                torch.testing.assert_close(
                    first[part][name], want, rtol=1e-4, atol=1e-4, msg=lambda m, n=(variant, name): f"{n}: {m}"
                )


@pytest.mark.slow
def test_losses_are_balanced_by_the_mean_norm_over_processes(tmp_path):
    """Reference: the norms of one process on the rows of each rank, one loss at a time."""

    def run(name, processes, *flags):
        (tmp_path / name).mkdir()
        launch(Path(__file__).parent / "balanced.py", processes, "--folder", tmp_path / name, *flags)
        return [json.loads((tmp_path / name / f"rank{rank}.json").read_text()) for rank in range(processes)]

    first, second = run("two", 2, "--balance")
    assert first["factors"] == second["factors"]
    norms = []
    for loss in range(4):
        alone = [run(f"{loss} {rank}", 1, "--loss", loss, "--first", 2 * rank)[0]["norm"] for rank in (0, 1)]
        norms.append(sum(alone) / 2)
    assert first["factors"] == pytest.approx([sum(norms) / 4 / norm for norm in norms], rel=1e-3)
