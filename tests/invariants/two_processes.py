"""Run by torchrun from test_processes.py: the same steps whatever the number of processes, once for each variant."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from conftest import bert_config, build, pad, rows
from extensions import ScaledLogits
from short_runs import companion_parameters, distil
from transformers import BertForSequenceClassification, BertForTokenClassification, TrainerCallback

from hf_tinybert import AttentionLoss, EmbeddingLoss, HiddenLoss, PredictionLoss, TaskLoss


@dataclass(frozen=True)
class Variant:
    """What differs from distilling a sequence classifier with all of TinyBERT's losses and the labels."""

    tokens: bool = False
    intermediate: bool = False
    checkpointing: bool = False
    cached: bool = False
    padding_free: bool = False
    parameters: bool = False  # a loss with parameters of its own
    teachers: int = 1


VARIANTS = {
    "plain": Variant(),
    "tokens": Variant(tokens=True),
    "teachers": Variant(teachers=2),
    "intermediate": Variant(intermediate=True),
    "checkpointing": Variant(intermediate=True, checkpointing=True),
    "cached": Variant(intermediate=True, cached=True),
    "padding_free": Variant(padding_free=True),
    "parameters": Variant(parameters=True),
}


class ProjectionRecorder(TrainerCallback):
    """Remembers the projections after each step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.last = {name: p.detach().clone() for name, p in companion_parameters(self.trainer).items()}


def train(variant: Variant, folder: Path) -> dict:
    """Train the variant and return what has to be equal."""
    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    world = int(os.environ.get("WORLD_SIZE", 1))
    model_class = BertForTokenClassification if variant.tokens else BertForSequenceClassification
    teachers = [build(model_class, bert_config(3 + k, 32), k) for k in range(1, variant.teachers + 1)]
    student = build(model_class, bert_config(2, 16), 2)
    losses = [AttentionLoss(), HiddenLoss(2.0), EmbeddingLoss()]
    if not variant.intermediate:
        losses += [PredictionLoss(), TaskLoss(0.5)]
    if variant.parameters:
        losses.append(ScaledLogits())
    recorder = ProjectionRecorder()
    trainer, logs, _ = distil(
        folder,
        student,
        teachers,
        losses,
        train_dataset=rows(16, token_labels=variant.tokens),
        data_collator=pad,
        callbacks=[recorder],
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        max_steps=4 if variant.cached else 2,
        save_strategy="steps",
        save_steps=2,
        activation_checkpointing=variant.checkpointing,
        teacher_cache_gb=float(variant.cached),
        padding_free=variant.padding_free,
    )
    assert trainer.accelerator.num_processes == world
    assert len(list(folder.glob("cache/teacher_activations/*/layout.json"))) == variant.cached
    return {
        "logs": [{name: log[name] for name in log if name.endswith("loss")} for log in logs],
        "student": student.state_dict(),
        "projections": recorder.last,
        "losses": losses[-1].state_dict(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    results = {name: train(variant, options.folder / name) for name, variant in VARIANTS.items()}
    torch.save(results, options.folder / f"rank{os.environ.get('RANK', 0)}.pt")
    PartialState().destroy_process_group()  # or a thread of it may abort the process while it ends
