"""Run by torchrun from test_teacher_dtype.py: what "auto" becomes in each process."""

import argparse
import os
from pathlib import Path

import torch
from accelerate import PartialState
from conftest import rows
from test_teacher_dtype import decision, trained

from hf_tinybert import native_dtypes

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--largest_change", type=float, required=True)
    options = parser.parse_args()
    assert os.environ["WORLD_SIZE"] == "2"
    native_dtypes.LARGEST_CHANGE = options.largest_change
    rank, decisions = os.environ["RANK"], []
    for native in (True, rank == "0"):
        torch.cpu.get_capabilities = lambda native=native: {"avx512_bf16": native}
        trainer = trained(options.folder, rows(8), per_device_train_batch_size=4, teacher_dtype="auto")
        decisions.append(decision(trainer.model))
    (options.folder / f"rank{rank}.txt").write_text("native to both: {}, to one: {}".format(*decisions))
    PartialState().destroy_process_group()
