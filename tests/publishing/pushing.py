"""Trainers that push to the Hub of `hub_server`, for the tests of this folder."""

import logging
from concurrent import futures

import pytest
import torch
from conftest import pad, rows, word_tokenizer
from short_runs import arguments
from transformers import PreTrainedModel, TrainerCallback

from hf_tinybert import DistillationTrainer

STUDENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PUSHED = STUDENT | {".gitattributes", "training_args.bin"}
STEPS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture
def make_trainer(tmp_path, student, teacher):
    """A function that builds a trainer that pushes: arguments of `DistillationTrainer`, then training arguments."""
    tokenizer = word_tokenizer(tmp_path)

    def make_trainer(folder="out", trainer_class=DistillationTrainer, trainer_arguments=None, **changes):
        defaults = {
            "model": student,
            "args": arguments(tmp_path / folder, **{"push_to_hub": True, **changes}),
            "train_dataset": rows(8),
            "data_collator": pad,
            "processing_class": tokenizer,
        }
        if trainer_class is DistillationTrainer:
            defaults["teacher_model"] = teacher
        return trainer_class(**defaults | (trainer_arguments or {}))

    return make_trainer


@pytest.fixture
def messages(caplog, monkeypatch):
    """A function that returns the messages of a level."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda level="WARNING": [record.getMessage() for record in caplog.records if record.levelname == level]


class PushByPush(TrainerCallback):
    """Waits for each push, because Trainer itself goes on and overwrites the files that it is pushing."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_save(self, *args, **kwargs):
        if self.trainer.push_in_progress is not None:
            futures.wait(self.trainer.push_in_progress.jobs)


def logits(model: PreTrainedModel, data=None) -> torch.Tensor:
    """The logits of a model in eval mode on some rows."""
    batch = pad(list(rows(4) if data is None else data))
    return model.eval()(**{name: values for name, values in batch.items() if name != "labels"}).logits
