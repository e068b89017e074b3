"""Whole runs at toy size: a teacher and data on disk, a loss of a user's own, and runs that are killed."""

import multiprocessing
import os
import signal
import threading

import pytest
import torch
import transformers
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset, DatasetDict
from torch import nn
from tqdm.std import tqdm
from transformers import BertForSequenceClassification, BertModel, TrainerCallback

from hf_tinybert import GLUE, DistillationLoss, PredictionLoss, TaskLoss
from hf_tinybert.activations import token_mean
from hf_tinybert.models.families import subclasses


def save_encoder(folder):
    """A pre-trained encoder with its tokenizer and without a prediction head, in the folder "base"."""
    tokenizer = word_tokenizer(folder)
    tokenizer.save_pretrained(folder / "base")
    build(BertModel, bert_config(4, 32, dropout=0.1, vocab_size=len(tokenizer))).save_pretrained(folder / "base")
    return folder / "base"


def save_classifier(folder):
    """A teacher with a prediction head for SST-2, in the place of the encoder in `folder`."""
    build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **GLUE["sst2"].head)).save_pretrained(
        folder
    )


@pytest.fixture
def base(tmp_path):
    return save_encoder(tmp_path)


def sentences(folder, count: int = 20) -> DatasetDict:
    """Rows of SST-2; files that are there already are read again, so that what is cached of them is too."""
    words = [word for word in WORDS if word.isalpha()]
    rows = {
        "sentence": [f"the {words[i % 2]} {words[2 + i % 5]} {words[i % 13]}" for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    for path in (folder / f"sst2/{split}.parquet" for split in ("train", "validation")):
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            Dataset.from_dict(rows).to_parquet(path)
    return GLUE["sst2"].load(folder)


def texts(count: int = 30) -> Dataset:
    return Dataset.from_dict({"text": [" ".join(WORDS[(i * j) % 13] for j in range(i % 7)) for i in range(count)]})


class MappedState(DistillationLoss):
    """A loss with its own name, setting and parameter: the last hidden states, mapped to the teacher's width."""

    name = "mapped_state"
    reads = frozenset({"hidden_states"})

    def __init__(self, weight: float = 1.0, power: float = 2.0):
        super().__init__(weight)
        self.power = power
        self.map = nn.Parameter(torch.full((16, 32), 0.1))

    @property
    def settings(self):
        return {"power": self.power}

    def hidden_layers(self, layer_mapping):
        return layer_mapping[-1:]

    def forward(self, student, teacher, layer_mapping):
        student_layer, teacher_layer = layer_mapping[-1]
        difference = student.hidden_states[student_layer] @ self.map - teacher.hidden_states[teacher_layer]
        return token_mean(difference.abs().pow(self.power).mean(-1), student.attention_mask)


class SoftLabels(PredictionLoss):
    """The prediction loss by another name."""

    name = "soft_labels"


class HalfLabels(TaskLoss):
    """Half of the label loss."""

    name = "half_labels"

    def forward(self, student, teacher, layer_mapping):
        return student.loss / 2


class _Stop(TrainerCallback):
    """SIGKILL in a step of a training."""

    def __init__(self, folder: str, step: int):
        self.folder, self.step = folder, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.folder) and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_step(run, folder: str, step: int) -> None:
    """Do `run` in a process that dies by SIGKILL at a step of the training in `folder`."""
    _killed(run, lambda: transformers.trainer.DEFAULT_CALLBACKS.append(_Stop(folder, step)))


def killed_in(run, owner, name: str) -> None:
    """Do `run` in a process that dies by SIGKILL when it calls a function of `owner`."""
    _killed(run, lambda: setattr(owner, name, _die))


def killed_while_saving(run) -> None:
    """Do `run` in a process that dies by SIGKILL in the middle of writing its first checkpoint."""
    save = torch.save

    def save_until_optimizer(value, path, *args, **kwargs):
        return _die() if str(path).endswith("optimizer.pt") else save(value, path, *args, **kwargs)

    _killed(run, lambda: setattr(torch, "save", save_until_optimizer))


def use_own_locks() -> None:
    """In a forked process that may be killed: its bars must not hold the lock that those of the parent wait for."""
    lock = threading.RLock()
    for bar in (tqdm, *subclasses(tqdm)):
        bar.set_lock(lock)


def _killed(run, prepare) -> None:
    def target():
        use_own_locks()
        prepare()
        run()

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL


def assert_same_weights(model, expected) -> None:
    """Bitwise."""
    for (name, value), (_, wanted) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(value, wanted), name
