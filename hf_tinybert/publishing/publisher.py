"""How a trainer publishes its student: Trainer's Hub methods, made to fail early, to try again and to lose nothing."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi, ModelCard
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from ..evaluation.report import StudentReport
from ..lineage import DataRecord, Lineage
from ..whole_files import DiskError, disk_errors
from .hub import PushWatcher, one_line, push_command, retried, upload
from .model_card import extend_card, final_evaluation

logger = logging.get_logger(__name__)


class Threshold(Protocol):
    """What decides whether a student may be pushed.

    Attributes:
        metric: The key of the deciding score in the log.
    """

    metric: str

    def shortfall(self, score: float) -> str | None:
        """What a student with this score lacks, in a sentence; None if it may be pushed."""


class Publisher:
    """Pushes the student of a trainer and writes its model card, through Trainer's own methods.

    Each method takes the method of Trainer that it extends as a callable without arguments.

    Args:
        trainer: The trainer of the student.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._watcher = PushWatcher()

    def init_repo(self, init_hf_repo: Callable[[], Any], token: str | None) -> None:
        """Create the repository.

        Args:
            init_hf_repo: Trainer's `init_hf_repo`.
            token: The token that was passed to it.

        Raises:
            RuntimeError: If the Hub cannot be reached or refuses, or if `hub_revision` does not exist. The message
                says what to do.
        """
        trainer = self.trainer
        with one_line("Cannot push to the Hub"):
            retried(init_hf_repo)
            if trainer.args.hub_revision and trainer.is_world_process_zero():
                token = token or trainer.args.hub_token
                HfApi().model_info(trainer.hub_model_id, revision=trainer.args.hub_revision, token=token)

    def push(
        self,
        push_to_hub: Callable[[], Any],
        commit_message: str | None,
        token: str | None,
        revision: str | None,
        private: bool | None,
        threshold: Threshold | None,
    ) -> Any:
        """Save the student and push it.

        Args:
            push_to_hub: Trainer's `push_to_hub`.
            commit_message: The commit message that was passed to it.
            token: The token that was passed to it.
            revision: The branch that was passed to it.
            private: Whether a repository that is created is private; default `hub_private_repo`.
            threshold: What the student has to reach; None pushes any student.

        Returns:
            What `push_to_hub` returns, or the commit if it took more than one attempt.

        Raises:
            ValueError: If the student does not reach the threshold.
            RuntimeError: If the push fails. The message of either says where the student is.
            DiskError: If the student cannot be saved.
        """
        trainer = self.trainer
        folder = trainer.args.output_dir
        with disk_errors(folder, remains=" The student is not saved yet; its checkpoints remain."):
            trainer.save_model(_internal_call=True)
        if threshold is not None and (shortfall := threshold.shortfall(trainer.evaluate()[threshold.metric])):
            raise ValueError(f"{shortfall} It is not pushed; it is in {folder}.")
        repo = trainer.hub_model_id or trainer.args.hub_model_id or Path(folder).absolute().name
        revision = revision or trainer.args.hub_revision
        private = trainer.args.hub_private_repo if private is None else private
        command = push_command(folder, repo, private, revision)
        hint = f" The student is in {folder}; push it later with: {command}"

        def upload_again() -> Any:  # everything is saved by now, and only the upload is left
            return upload(
                folder,
                trainer.hub_model_id,
                commit_message,
                token or trainer.args.hub_token,
                revision,
            )

        with one_line(f"Could not push to '{repo}'", hint):
            return retried(push_to_hub, upload_again)

    def push_checkpoint(self, push_from_checkpoint: Callable[[], None], threshold: Threshold | None) -> None:
        """Push a checkpoint if the newest score reaches the threshold, and warn of pushes that failed.

        The files of the checkpoint are copied first; a disk that is too full for that does not stop training.

        Args:
            push_from_checkpoint: Trainer's push of a checkpoint.
            threshold: What the student has to reach; None pushes any student.
        """
        trainer = self.trainer
        self._watcher.warn_of_failures(trainer.hub_model_id)
        if threshold is not None:
            history = reversed(trainer.state.log_history)
            score = next((log[threshold.metric] for log in history if threshold.metric in log), None)
            shortfall = f"There is no {threshold.metric} yet." if score is None else threshold.shortfall(score)
            if shortfall:
                logger.info(f"{shortfall} This checkpoint is not pushed.")
                return
        before = self._jobs
        try:
            with disk_errors(trainer.args.output_dir):
                push_from_checkpoint()
        except DiskError as error:
            logger.warning(f"This checkpoint is not pushed. {error} Training goes on.")
        self._watcher.watch([job for job in self._jobs if job not in before])

    def finish_pushes(self, finish_current_push: Callable[[], None]) -> None:
        """Wait for the pushes in the background and warn of those that failed.

        Args:
            finish_current_push: Trainer's wait.
        """
        finish_current_push()
        self._watcher.warn_of_failures(self.trainer.hub_model_id)

    def write_card(
        self,
        create_model_card: Callable[..., None],
        student: PreTrainedModel,
        report: StudentReport | None,
        data_name: str | None,
        **card_arguments: Any,
    ) -> None:
        """Write Trainer's model card and extend it with the student's lineage and report (`extend_card`).

        Args:
            create_model_card: Trainer's `create_model_card`.
            student: The student as it is saved.
            report: Teacher and student measured side by side.
            data_name: The name of the evaluation data, if it has none of its own.
            card_arguments: Keyword arguments of `create_model_card`.
        """
        trainer, path = self.trainer, Path(self.trainer.args.output_dir, "README.md")
        lineage = Lineage.from_config(student.config)
        if lineage is not None and not student.config.name_or_path:  # the licence is then the teacher's
            card_arguments.setdefault("finetuned_from", next(iter(lineage.hub_ids), None))
        create_model_card(**card_arguments)
        if lineage is None or not trainer.is_world_process_zero():
            return
        best_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        metrics = final_evaluation(trainer.state, best_step)
        card = ModelCard.load(path)
        named = [result.dataset_name for result in card.data.eval_results or ()]  # by an argument of the user
        evaluated_on = DataRecord.from_rows(trainer.eval_dataset, next(iter(named), data_name))
        extend_card(card, student, report, metrics, evaluated_on, trainer.hub_model_id).save(path)

    @property
    def _jobs(self) -> list[Future]:
        in_progress = self.trainer.push_in_progress
        return list(in_progress.jobs) if in_progress is not None else []
