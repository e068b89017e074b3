"""One process and two (gloo, on the CPU) train the same student."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def launch(folder, processes, *flags):
    """Through torchrun: `accelerate launch --cpu --num_processes 2` starts one process (accelerate 1.15)."""
    folder.mkdir()
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(HERE / "two_processes.py"), "--folder", str(folder), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("flags", [[], ["--tokens"], ["--intermediate"], ["--intermediate", "--checkpointing"]])
def test_two_processes_equal_one(tmp_path, flags):
    (single,) = launch(tmp_path / "one", 1, *flags)
    first, second = launch(tmp_path / "two", 2, *flags)
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
