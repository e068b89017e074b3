"""Short training runs for the tests, with everything that happened recorded."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import pad, rows
from transformers import TrainerCallback

from hf_tinybert import DistillationArguments, DistillationTrainer

TESTS = Path(__file__).parent

# of whole runs: the student's size, and arguments
SIZE = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
# those of TinyBERT
TWO_PHASES = {"augmentation": None, "intermediate": {"augmented": True}, "labels": {"num_train_epochs": 0}}
QUICK = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def launch(script, processes: int, *flags, folder=None) -> str:
    """Run a script in one process, or in several through torchrun; returns what it printed.

    `accelerate launch --cpu --num_processes 2` starts one process (accelerate 1.15).
    """
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    paths = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(script), *map(str, flags)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def companion_parameters(trainer) -> dict[str, torch.nn.Parameter]:
    """What trains beside the student, named as in the trainer's docs: `{companion}.{parameter}`."""
    named = {name: module.named_parameters() for name, module in trainer.companions.items()}
    return {f"{companion}.{name}": p for companion, parameters in named.items() for name, p in parameters}


class GradientRecorder(TrainerCallback):
    """Keeps the gradients that the optimizer is given, step by step; with `trainer` also those of the companions."""

    def __init__(self):
        self.steps, self.trainer = [], None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = dict(model.named_parameters()) | (companion_parameters(self.trainer) if self.trainer else {})
        self.steps.append({name: p.grad.to("cpu", copy=True) for name, p in named.items() if p.grad is not None})


def arguments(folder, **changes) -> DistillationArguments:
    """One step over 8 rows in order, nothing clipped, nothing reported; change what the test is about."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    return DistillationArguments(**defaults | changes)


def distil(folder, student, teacher, losses=None, train_dataset=None, data_collator=pad, callbacks=(), **changes):
    """Train and return (trainer, logs of training steps, gradients of each step)."""
    recorder = GradientRecorder()
    trainer = DistillationTrainer(
        model=student,
        args=arguments(folder, **changes),
        train_dataset=rows(8) if train_dataset is None else train_dataset,
        eval_dataset=rows(8, seed=1),
        data_collator=data_collator,
        callbacks=[recorder, *callbacks],
        teacher_model=teacher,
        losses=losses,
    )
    for callback in (recorder, *callbacks):
        callback.trainer = trainer
    trainer.train()
    return trainer, [log for log in trainer.state.log_history if "loss" in log], recorder.steps


def assert_same_run(result, expected, rtol=1e-4, atol=1e-6):
    """The same losses, component by component, and the same gradients, up to rounding."""
    (_, logs, gradients), (_, expected_logs, expected_gradients) = result, expected
    assert len(gradients) == len(expected_gradients) > 0
    for log, want in zip(logs, expected_logs, strict=True):
        assert set(log) == set(want)
        for name in (name for name in want if name.endswith("loss")):
            assert abs(log[name] - want[name]) <= rtol * abs(want[name]) + atol, (name, log[name], want[name])
    for step, want_step in zip(gradients, expected_gradients, strict=True):
        assert set(step) == set(want_step)
        scale = max(want.abs().max().item() for want in want_step.values())
        for name, want in want_step.items():
            torch.testing.assert_close(
                step[name], want, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
            )
