"""Run by torchrun from test_processes.py: the same two steps whatever the number of processes, written down."""

import argparse
import os
from pathlib import Path

import datasets
import torch
from conftest import bert_config, build, pad, rows
from extensions import ScaledLogits
from short_runs import distil
from transformers import BertForSequenceClassification, BertForTokenClassification, TrainerCallback

from hf_tinybert import AttentionLoss, EmbeddingLoss, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.training.companions import PROJECTIONS


class ProjectionRecorder(TrainerCallback):
    """Remembers the projections after each step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.last = {name: p.detach().clone() for name, p in getattr(model, PROJECTIONS).named_parameters()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--intermediate", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--padding_free", action="store_true")
    parser.add_argument("--parameters", action="store_true", help="a loss with parameters of its own")
    parser.add_argument("--teachers", type=int, default=1)
    options = parser.parse_args()
    datasets.config.HF_DATASETS_CACHE = f"{options.folder}/cache"
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    model_class = BertForTokenClassification if options.tokens else BertForSequenceClassification
    teachers = [build(model_class, bert_config(3 + k, 32), k) for k in range(1, options.teachers + 1)]
    student = build(model_class, bert_config(2, 16), 2)
    losses = [AttentionLoss(), HiddenLoss(2.0), EmbeddingLoss()]
    if not options.intermediate:
        losses += [PredictionLoss(), TaskLoss(0.5)]
    if options.parameters:
        losses.append(ScaledLogits())
    recorder = ProjectionRecorder()
    trainer, logs, gradients = distil(
        options.folder,
        student,
        teachers,
        losses,
        train_dataset=rows(16, token_labels=options.tokens),
        data_collator=pad,
        callbacks=[recorder],
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        max_steps=4 if options.cached else 2,
        save_strategy="steps",
        save_steps=2,
        activation_checkpointing=options.checkpointing,
        teacher_cache_gb=float(options.cached),
        padding_free=options.padding_free,
    )
    assert trainer.accelerator.num_processes == world
    cached = list(Path(datasets.config.HF_DATASETS_CACHE).glob("teacher_activations/*/layout.json"))
    assert len(cached) == options.cached
    torch.save(
        {
            "world": world,
            "logs": [{name: log[name] for name in log if name.endswith("loss")} for log in logs],
            "gradients": gradients,
            "student": student.state_dict(),
            "projections": recorder.last,
            "losses": losses[-1].state_dict(),
        },
        f"{options.folder}/rank{rank}.pt",
    )
