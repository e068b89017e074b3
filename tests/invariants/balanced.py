"""Run by torchrun from test_processes.py: one step whose losses are balanced, over rows that start at `--first`."""

import argparse
import json
import os
from pathlib import Path

from accelerate import PartialState
from conftest import bert_config, build, rows
from short_runs import distil
from transformers import BertForSequenceClassification

from hf_tinybert import AttentionLoss, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.lineage import last_stage
from hf_tinybert.training.companions import PROJECTIONS

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--loss", type=int, nargs="*", default=[0, 1, 2, 3], help="which of the losses")
    parser.add_argument("--balance", action="store_true")
    options = parser.parse_args()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    teacher = build(BertForSequenceClassification, bert_config(4, 32), 1)
    student = build(BertForSequenceClassification, bert_config(2, 16), 2)
    losses = [AttentionLoss(), HiddenLoss(2.0), PredictionLoss(), TaskLoss(0.5)]
    data = rows(8)
    trainer, _, (gradients,) = distil(
        options.folder,
        student,
        teacher,
        [losses[i] for i in options.loss],
        train_dataset=data.select([*range(options.first, 8), *range(options.first)]),
        per_device_train_batch_size=2,
        balance_losses=options.balance,
    )
    assert trainer.accelerator.num_processes == world
    norm = sum(g.square().sum() for name, g in gradients.items() if PROJECTIONS not in name).sqrt().item()
    found = {"norm": norm, "factors": list(last_stage(student.config).factors.values())}
    Path(options.folder, f"rank{rank}.json").write_text(json.dumps(found))
    PartialState().destroy_process_group()  # or a thread of it may abort the process while it ends
