"""What lets a killed run continue: a folder with its settings, phases trained once, the newest whole checkpoint."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..training.arguments import DistillationArguments
from ..training.checkpoints import STATE, model_fault, newest_checkpoint, remove_checkpoints
from ..whole_files import check_writable, disk_errors, read_json, written_whole
from .early_stopping import add_early_stopping
from .phase import Phase
from .progress import name_bar
from .resumable import ResumableTrainer

SETTINGS, RESULTS = "settings.json", "results.json"

logger = logging.get_logger(__name__)
REMAINS = " What is finished, and the last checkpoint, remain: the same call continues."


@dataclass(frozen=True)
class TrainingData:
    """The rows of a phase, and what a trainer needs beside them.

    Args:
        rows: Tokenised rows to train on; None for none yet.
        tokenizer: The tokenizer.
        data_collator: Rows → a batch.
        validation_rows: Tokenised rows that select the model.
        compute_metrics: The metrics of `validation_rows`.
        name: The name of the data in the student's lineage.
        augmentation: The settings that the rows were augmented with, for the lineage.
    """

    rows: datasets.Dataset | datasets.IterableDataset | None
    tokenizer: PreTrainedTokenizerBase
    data_collator: Callable[[list[dict]], dict[str, Any]]
    validation_rows: datasets.Dataset | None = None
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    name: str | None = None
    augmentation: Mapping[str, Any] | None = None


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings.json` into a folder that has none.

    Raises:
        ValueError: If the folder holds a run with other settings, which could not continue to the same student, or if
            its settings are corrupt.
        DiskError: If the folder, or one of a phase that is not finished, cannot be written to.
    """
    path, text = folder / SETTINGS, json.dumps(settings, indent=1, default=str)
    if path.exists():
        now, advice = json.loads(text), "remove it if the run had these settings, or choose another output_dir"
        if (before := read_json(path, advice)) != now:
            differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            raise ValueError(f"{folder} holds a run with other {differing}: choose another output_dir or remove it.")
    PartialState().wait_for_everyone()
    if not PartialState().is_main_process:
        return
    if not path.exists():
        check_writable(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part:
                part.write_text(text)
    elif not is_finished(folder):
        for place in (folder, *(place for place in folder.iterdir() if place.is_dir() and not is_finished(place))):
            check_writable(place)


def is_finished(folder: Path) -> bool:
    """Whether a run has its results, or a training its state."""
    return (folder / RESULTS).exists() or (folder / STATE).exists()


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run; None if it is not finished or, with a warning, if their file is corrupt."""
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        return read_json(path, "the trained models are measured again")
    except ValueError as error:
        logger.warning(str(error))
        return None


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results of a run, whole.

    Raises:
        DiskError: If they cannot be written.
    """
    if PartialState().is_main_process:
        with disk_errors(folder, remains=REMAINS), written_whole(folder / RESULTS) as part:
            part.write_text(json.dumps(results, indent=1))


def train_once(
    model: PreTrainedModel,
    phase: Phase,
    data: TrainingData,
    teachers: Sequence[PreTrainedModel] = (),
    start: Path | None = None,
) -> tuple[PreTrainedModel, TrainerState]:
    """Train and save a model in the folder of a phase, or read what an earlier call saved there.

    Training continues from the newest complete checkpoint.

    Args:
        model: The model to train.
        phase: The phase.
        data: The rows to train and to validate on.
        teachers: The teachers; none for a phase whose losses read none.
        start: The folder that the model was loaded from. With `eval_on_start` and `load_best_model_at_end` the model
            that is saved is this one if no epoch scores better.

    Returns:
        The model as it is saved, and the state of its training. If the phase selects the best model, the last one is
        saved in `{folder}_last`.
    """
    if not (phase.folder / STATE).exists():
        with disk_errors(phase.folder, remains=REMAINS):
            trainer = _trainer(model, phase, data, teachers)
            checkpoint = last_checkpoint(phase)
            if phase.early_stopping is not None:
                add_early_stopping(trainer, phase.early_stopping, checkpoint)
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # its weights cannot be put back
            trainer.args.eval_on_start &= start is not None and checkpoint is None and not sharded
            trainer.train(resume_from_checkpoint=checkpoint)
            if start is not None:
                _prefer_start(trainer, start)
            _save(trainer, type(model), phase.folder)
    saved = load_saved(type(model), phase.folder)
    state = read_json(phase.folder / STATE, _again(phase.folder))
    if PartialState().is_main_process and os.access(phase.folder, os.W_OK):
        remove_checkpoints(phase.folder)
    return saved, TrainerState(**state)


def load_saved(model_class: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """A model that a finished training saved.

    Raises:
        ValueError: If a file of it is missing or corrupt.
    """
    if not folder.is_dir() or (fault := model_fault(folder)):
        raise ValueError(f"In {folder}, which a finished training saved, {fault}: {_again(folder)}.")
    return model_class.from_pretrained(folder)


def _again(folder: Path) -> str:
    return f"put the file back, or remove {folder} to train this phase again"


def _trainer(
    model: PreTrainedModel, phase: Phase, data: TrainingData, teachers: Sequence[PreTrainedModel]
) -> ResumableTrainer:
    args = DistillationArguments(str(phase.folder), **phase.trainer_arguments)
    if args.load_best_model_at_end and args.save_total_limit == 1:
        args.save_total_limit = 2  # or Trainer removes the last checkpoint at the end if another one is the best
    trainer = ResumableTrainer(
        model,
        args,
        data_collator=data.data_collator,
        train_dataset=data.rows,
        eval_dataset=data.validation_rows,
        processing_class=data.tokenizer,
        compute_metrics=data.compute_metrics,
        teacher_model=list(teachers) if phase.has_teacher else None,
        losses=phase.losses or None,
    )
    trainer.data_name, trainer.augmentation = data.name, data.augmentation
    name_bar(trainer, phase.title)
    return trainer


def _prefer_start(trainer: ResumableTrainer, start: Path) -> None:
    """Go back to the model before the training if no epoch scored better."""
    args, state = trainer.args, trainer.state
    name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    before = next((log[name] for log in state.log_history if log["step"] == 0 and name in log), None)
    if not args.load_best_model_at_end or None in (before, state.best_metric):
        return
    if (state.best_metric > before) if args.greater_is_better else (state.best_metric < before):
        return
    trainer.model.load_state_dict(load_saved(type(trainer.model), start).state_dict())
    state.best_metric, state.best_global_step = before, 0
    logger.info(f"No epoch scores better than the model before them, {name}={before:.4f}: it is kept.")


def _save(trainer: ResumableTrainer, model_class: type[PreTrainedModel], folder: Path) -> None:
    """Save what was trained; the state of the training is saved last."""
    trainer.save_model()
    if not trainer.args.push_to_hub:  # save_model has written the card before its push
        trainer.create_model_card()
    if trainer.args.should_save:
        if trainer.args.load_best_model_at_end:
            model_class.from_pretrained(get_last_checkpoint(folder)).save_pretrained(f"{folder}_last")
        with written_whole(folder / STATE) as part:  # after all models, as this file says that the phase is finished
            trainer.state.save_to_json(str(part))
    PartialState().wait_for_everyone()


def has_begun(*phases: Phase) -> bool:
    """Whether a phase is finished or has a checkpoint to continue from."""
    return any((phase.folder / STATE).exists() or last_checkpoint(phase) for phase in phases)


def last_checkpoint(phase: Phase) -> str | None:
    """The newest whole checkpoint of a phase (`newest_checkpoint`)."""
    with PartialState().main_process_first():  # which removes or sets aside what is not whole
        return newest_checkpoint(phase.folder, with_optimizer=not phase.arguments.get("save_only_model"))
