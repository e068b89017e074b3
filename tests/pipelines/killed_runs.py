"""Runs of `task_distillation` that are killed by SIGKILL at random moments of every phase, and started again.

`python tests/pipelines/killed_runs.py FOLDER --kills 100 --seed 0` kills a hundred times and compares every run with
one that was left alone. A process is forked for each start, so that nothing is imported twice.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import transformers
from conftest import bert_config, build, word_tokenizer
from safetensors.torch import load_file
from short_runs import QUICK, SIZE
from toy_runs import MappedState, save_encoder, sentences, use_own_locks
from transformers import AutoConfig, BertForMaskedLM

import hf_tinybert.pipelines.runs
import hf_tinybert.pipelines.task_rows
import hf_tinybert.pipelines.task_run
import hf_tinybert.teachers.teacher
from hf_tinybert import GLUE, HiddenLoss, MaskedWords, task_distillation

OUT = "out"
LONGEST = 120.0  # seconds that one start may take
# phase → what runs only then: an owner and the name of its function
PHASES = {
    "augmentation": (MaskedWords, "__call__"),
    "fine-tuning": (hf_tinybert.pipelines.task_run.TaskRun, "fine_tuned"),
    "create_student": (hf_tinybert.pipelines.task_run, "create_student"),
    "activation cache": (hf_tinybert.teachers.teacher, "cache_activations"),
    "logit cache": (hf_tinybert.pipelines.task_rows, "cache_logits"),
    "training": (hf_tinybert.pipelines.runs.ResumableTrainer, "train"),
    "checkpoint": (transformers.Trainer, "_save_checkpoint"),
    "saving": (hf_tinybert.pipelines.runs, "_save"),
    "evaluation": (hf_tinybert.pipelines.task_run, "evaluate_task"),
}
NAMES = [*PHASES, "other"]
PLACES = ("teacher", "intermediate", "prediction", "student")  # the folders of the trainings


def run(folder: Path):
    """A run of every phase, with checkpoints in between, dropout, caches and parameters beside the student."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    tokenizer = word_tokenizer(folder)
    masked_lm = build(BertForMaskedLM, bert_config(1, 16, vocab_size=len(tokenizer)))
    return task_distillation(
        GLUE["sst2"],
        sentences(folder),
        str(folder / "base"),
        folder / OUT,
        student=SIZE | {"dropout": 0.1},
        augmentation=MaskedWords(masked_lm, tokenizer, copies=1, batch_tokens=64),
        intermediate={"losses": [MappedState(), HiddenLoss()], "augmented": True},
        save_strategy="steps",
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        **QUICK,
    )


@dataclass(frozen=True)
class Moment:
    """When a process is killed: a share of the time that a phase takes is over.

    Args:
        phase: The phase.
        share: The share of its time in a run that is left alone.
    """

    phase: str
    share: float


@dataclass
class Kills:
    """What was killed.

    Args:
        phases: The number of processes that were killed in each phase.
        starts: The number of processes that were started.
        runs: The number of runs that were finished and compared.
    """

    phases: Counter = field(default_factory=Counter)
    starts: int = 0
    runs: int = 0

    @property
    def count(self) -> int:
        """The number of processes that were killed."""
        return self.phases.total()


class _Watched:
    """A forked process that does `run` and says which phase it is in."""

    def __init__(self, folder: Path):
        fork = multiprocessing.get_context("fork")
        self.phase = fork.RawValue("i", len(NAMES) - 1)
        self.process = fork.Process(target=self._run, args=(folder,))

    def _run(self, folder: Path) -> None:
        use_own_locks()
        for index, (owner, name) in enumerate(PHASES.values()):
            setattr(owner, name, self._reporting(index, getattr(owner, name)))
        with (folder / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            run(folder)

    def _reporting(self, index: int, function):
        def reporting(*args, **kwargs):
            before, self.phase.value = self.phase.value, index
            try:
                return function(*args, **kwargs)
            finally:
                self.phase.value = before

        return reporting

    def seconds(self) -> Iterator[tuple[str, float]]:
        """Until the process ends, the phase that it is in and the time since the last look."""
        self.process.start()
        start = last = time.monotonic()
        while self.process.is_alive():
            time.sleep(0.0005)
            now = time.monotonic()
            assert now - start < LONGEST, "hangs"
            yield NAMES[self.phase.value], now - last
            last = now
        self.process.join()


def start(folder: Path, moment: Moment | None, durations: dict[str, float]) -> str | None:
    """Start a run, or continue it, and kill its process at a moment.

    Args:
        folder: The folder of the run.
        moment: The moment; None leaves the process alone.
        durations: The seconds of each phase.

    Returns:
        The phase in which it was killed; None if it came to its end before.
    """
    watched, spent = _Watched(folder), 0.0
    for phase, seconds in watched.seconds():
        if moment is None or phase != moment.phase:
            continue
        spent += seconds
        if spent >= moment.share * durations[phase]:
            os.kill(watched.process.pid, signal.SIGKILL)
            watched.process.join()
            break
    if watched.process.exitcode == -signal.SIGKILL:
        return moment.phase
    assert watched.process.exitcode == 0, f"{moment}: {(folder / 'log').read_text()[-3000:]}"
    return None


def undisturbed(folder: Path) -> dict[str, float]:
    """Do the whole run in a process that is left alone; returns the seconds of each phase."""
    folder.mkdir()
    save_encoder(folder)
    watched, durations = _Watched(folder), Counter()
    for phase, seconds in watched.seconds():
        durations[phase] += seconds
    assert watched.process.exitcode == 0, (folder / "log").read_text()[-3000:]
    return dict(durations)


def moments(rng: random.Random) -> Iterator[list[Moment]]:
    """Moments of every phase alike, in lists of one to three that one run meets."""
    while True:
        phases = rng.sample(NAMES, len(NAMES))
        while phases:
            size = rng.randint(1, 3)
            yield [Moment(phase, rng.random()) for phase in sorted(phases[:size], key=NAMES.index)]
            phases = phases[size:]


def kill_and_compare(folder: Path, kills: int, seed: int = 0) -> Kills:
    """Kill runs at random moments, start them again until they are done, and compare them with one left alone.

    Args:
        folder: An empty folder.
        kills: The number of moments.
        seed: Of the moments.
    """
    whole, warm = folder / "whole", folder / "warm"
    warm.mkdir()
    save_encoder(warm)
    run(warm)  # what is imported here is imported in every process that is forked
    durations = [undisturbed(whole), undisturbed(folder / "again")]
    durations = {phase: 0.8 * min(seconds[phase] for seconds in durations) for phase in NAMES}
    done = Kills()
    print({phase: round(seconds, 2) for phase, seconds in durations.items()}, flush=True)
    for number, planned in enumerate(moments(random.Random(seed))):
        if done.count >= kills:
            return done
        killed = folder / f"killed-{number}"
        killed.mkdir()
        save_encoder(killed)
        for moment in [*planned, None]:
            phase = start(killed, moment, durations)
            done.starts += 1
            done.phases.update([phase] if phase else [])
        with explained(f"run {number}, {planned}"):
            assert_same_run(killed / OUT, whole / OUT)
        done.runs += 1
        print(number, planned, done.count, flush=True)


@contextmanager
def explained(what: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same files with the same weights, lineage and results, up to what tells the time."""
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {
        path.relative_to(expected) for path in expected.rglob("*")
    }
    for name in ("teacher", "intermediate", "student", "student_last"):
        weights, wanted = (load_file(run / name / "model.safetensors") for run in (folder, expected))
        assert weights.keys() == wanted.keys()
        assert all(weights[key].equal(value) for key, value in wanted.items()), name
        lineages = [
            getattr(AutoConfig.from_pretrained(run / name), "distillation", None) for run in (folder, expected)
        ]
        assert lineages[0] == lineages[1], name
    results, wanted = (json.loads((run / "results.json").read_text()) for run in (folder, expected))
    assert {**results, "seconds": 0} == {**wanted, "seconds": 0}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True)
    print(kill_and_compare(flags.folder, flags.kills, flags.seed))
