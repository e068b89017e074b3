"""How a trainer publishes its student: the parts of Trainer's Hub methods that fail early, try again, and lose nothing."""

import shlex
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi, ModelCard
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from ..lineage import DataRecord, Lineage
from .hub import PushWatcher, one_line, retried, upload
from .model_card import extend_card, final_evaluation

logger = logging.get_logger(__name__)


class Threshold(Protocol):
    """What decides whether a student may be pushed."""

    metric: str

    def shortfall(self, score: float) -> str | None:
        """What a student with this score lacks, in a sentence; None if it may be pushed."""


class Publisher:
    """Wraps Trainer's own Hub methods, which are passed in as callables.

    Args:
        trainer: The trainer of the student.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._watcher = PushWatcher()

    def init_repo(self, init: Callable[[], Any], token: str | None) -> None:
        """Create the repository.

        Args:
            init: Trainer's `init_hf_repo`.
            token: The token passed to it.

        Raises:
            RuntimeError: If the Hub cannot be reached or refuses, or if `hub_revision` does not exist; it says what to
                do.
        """
        trainer = self.trainer
        with one_line("Cannot push to the Hub"):
            retried(init)
            if trainer.args.hub_revision and trainer.is_world_process_zero():
                token = token or trainer.args.hub_token
                HfApi().model_info(trainer.hub_model_id, revision=trainer.args.hub_revision, token=token)

    def push(
        self,
        push: Callable[[], Any],
        commit_message: str,
        token: str | None,
        revision: str | None,
        threshold: Threshold | None,
    ) -> Any:
        """Push the student once it is saved.

        Args:
            push: Trainer's `push_to_hub`.
            commit_message: The first line of the commit's message.
            token: The token passed to it.
            revision: The branch passed to it.
            threshold: What the student has to reach.

        Raises:
            ValueError: If the student does not reach the threshold.
            RuntimeError: If the push fails. Both say where the student is.
        """
        trainer = self.trainer
        trainer.save_model(_internal_call=True)
        folder = trainer.args.output_dir
        if threshold is not None and (shortfall := threshold.shortfall(trainer.evaluate()[threshold.metric])):
            raise ValueError(f"{shortfall} It is not pushed; it is in {folder}.")
        repo = trainer.hub_model_id or trainer.args.hub_model_id or Path(folder).absolute().name
        command = shlex.join(["hf-tinybert", "push", str(folder), "--to", repo])
        hint = f" The student is in {folder}; push it later with: {command}"

        def again() -> Any:  # all is saved by now: only the upload is left
            credentials = token or trainer.args.hub_token, revision or trainer.args.hub_revision
            return upload(folder, trainer.hub_model_id, commit_message, *credentials)

        attempts = chain([push], repeat(again))
        with one_line(f"Could not push to '{repo}'", hint):
            return retried(lambda: next(attempts)())

    def push_checkpoint(self, push: Callable[[], None], threshold: Threshold | None) -> None:
        """Push a checkpoint if the newest score reaches the threshold.

        Args:
            push: Trainer's own push of a checkpoint.
            threshold: What the student has to reach.
        """
        trainer = self.trainer
        self._warn_of_failures()
        if threshold is not None:
            history = reversed(trainer.state.log_history)
            score = next((log[threshold.metric] for log in history if threshold.metric in log), None)
            shortfall = f"There is no {threshold.metric} yet." if score is None else threshold.shortfall(score)
            if shortfall:
                logger.info(f"{shortfall} This checkpoint is not pushed.")
                return
        before = self._jobs
        push()
        self._watcher.watch([job for job in self._jobs if job not in before])

    def finish_pushes(self, finish: Callable[[], None]) -> None:
        """Wait for the pushes in the background and warn of those that failed.

        Args:
            finish: Trainer's own wait.
        """
        finish()
        self._warn_of_failures()

    def write_card(
        self, write: Callable[..., None], student: PreTrainedModel, report: Any, data_name: str | None, **facts: Any
    ) -> None:
        """Write Trainer's model card and extend it with the student's lineage and report (`extend_card`).

        Args:
            write: Trainer's `create_model_card`.
            student: The plain student.
            report: A `StudentReport`, or None.
            data_name: The name of the evaluation data, if it has none of its own.
            facts: Keyword arguments of `write`.
        """
        trainer, path = self.trainer, Path(self.trainer.args.output_dir, "README.md")
        lineage = Lineage.from_config(student.config)
        if not student.config.name_or_path:  # the licence is then the teacher's
            facts.setdefault("finetuned_from", next(iter(lineage.hub_ids), None) if lineage else None)
        write(**facts)
        if lineage is None or not trainer.is_world_process_zero():
            return
        best_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        metrics = final_evaluation(trainer.state, best_step)
        evaluated_on = DataRecord.from_rows(trainer.eval_dataset, data_name)
        card = extend_card(ModelCard.load(path), student, report, metrics, evaluated_on, trainer.hub_model_id)
        card.save(path)

    @property
    def _jobs(self) -> list:
        in_progress = self.trainer.push_in_progress
        return list(in_progress.jobs) if in_progress is not None else []

    def _warn_of_failures(self) -> None:
        self._watcher.warn_of_failures(self.trainer.hub_model_id)
