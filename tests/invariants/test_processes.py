"""One process and two (gloo, on the CPU) train the same student."""

from pathlib import Path

import pytest
import torch
from training import launch


def train(folder, processes, *flags):
    folder.mkdir()
    launch(Path(__file__).parent / "two_processes.py", processes, "--folder", folder, *flags)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    "flags",
    [[], ["--tokens"], ["--intermediate"], ["--intermediate", "--checkpointing"], ["--intermediate", "--kept"]],
)
def test_two_processes_equal_one(tmp_path, flags):
    (single,) = train(tmp_path / "one", 1, *flags)
    first, second = train(tmp_path / "two", 2, *flags)
    assert (single["world"], first["world"], second["world"]) == (1, 2, 2)
    for log, want in zip(first["logs"], single["logs"], strict=True):
        for name, value in want.items():
            assert log[name] == pytest.approx(value, rel=1e-4), name
    for part in ("student", "projections"):
        for name, want in single[part].items():
            assert torch.equal(first[part][name], second[part][name]), f"ranks differ in {name}"
            torch.testing.assert_close(
                first[part][name], want, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
