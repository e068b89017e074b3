"""One process and two (gloo, on the CPU) train the same student."""

import json
from pathlib import Path

import pytest
import torch
from short_runs import launch


def train(folder, processes, *flags):
    folder.mkdir()
    launch(Path(__file__).parent / "two_processes.py", processes, "--folder", folder, *flags)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--tokens"],
        ["--teachers", "2"],
        ["--intermediate"],
        ["--intermediate", "--checkpointing"],
        ["--intermediate", "--cached"],
        ["--padding_free"],
        ["--parameters"],
    ],
)
def test_two_processes_equal_one(tmp_path, flags):
    (single,) = train(tmp_path / "one", 1, *flags)
    first, second = train(tmp_path / "two", 2, *flags)
    assert (single["world"], first["world"], second["world"]) == (1, 2, 2)
    for log, want in zip(first["logs"], single["logs"], strict=True):
        for name, value in want.items():
            assert log[name] == pytest.approx(value, rel=1e-4), name
    for part in ("student", "projections", "losses"):
        for name, want in single[part].items():
            assert torch.equal(first[part][name], second[part][name]), f"ranks differ in {name}"
            torch.testing.assert_close(
                first[part][name], want, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
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
