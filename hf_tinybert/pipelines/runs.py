"""What lets a killed run continue: a folder with its settings, phases trained once, the newest complete checkpoint."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from ..training.arguments import DistillationArguments
from ..training.trainer import DistillationTrainer
from .early_stopping import add_early_stopping
from .phase import Phase
from .progress import name_bar


@dataclass(frozen=True)
class TrainingData:
    """The rows of a phase, and what a trainer needs beside them.

    Args:
        rows: Tokenised rows to train on.
        tokenizer: The tokenizer.
        data_collator: Rows → a batch.
        validation_rows: Tokenised rows that select the model.
        compute_metrics: The metrics of `validation_rows`.
        name: The name of the data in the student's lineage.
        augmentation: The settings that the rows were augmented with, for the lineage.
    """

    rows: datasets.Dataset | datasets.IterableDataset
    tokenizer: PreTrainedTokenizerBase
    data_collator: Callable[[list[dict]], dict[str, Any]]
    validation_rows: datasets.Dataset | None = None
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    name: str | None = None
    augmentation: Mapping[str, Any] | None = None


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings.json` into a folder that has none.

    Raises:
        ValueError: If the folder holds a run with other settings, which could not continue to the same student.
    """
    path, text = folder / "settings.json", json.dumps(settings, indent=1, default=str)
    if path.exists() and (before := json.loads(path.read_text())) != (now := json.loads(text)):
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise ValueError(f"{folder} holds a run with other {differing}: choose another output_dir or remove it.")
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def train_once(
    model: PreTrainedModel, phase: Phase, data: TrainingData, teachers: Sequence[PreTrainedModel] = ()
) -> tuple[PreTrainedModel, TrainerState]:
    """Train and save a model in the folder of a phase, or read what an earlier call saved there.

    Training continues from the newest complete checkpoint.

    Args:
        model: The model to train.
        phase: The phase.
        data: The rows to train and to validate on.
        teachers: The teachers; none for a phase whose losses read none.

    Returns:
        The model as it is saved, and the state of its training. If the phase selects the best model, the last one is
        saved in `{folder}_last`.
    """
    state = phase.folder / "trainer_state.json"
    if not state.exists():
        trainer = _trainer(model, phase, data, teachers)
        checkpoint = last_checkpoint(phase.folder)
        if phase.early_stopping is not None:
            add_early_stopping(trainer, phase.early_stopping, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        _save(trainer, type(model), phase.folder)
    return type(model).from_pretrained(phase.folder), TrainerState.load_from_json(str(state))


def _trainer(
    model: PreTrainedModel, phase: Phase, data: TrainingData, teachers: Sequence[PreTrainedModel]
) -> DistillationTrainer:
    args = DistillationArguments(str(phase.folder), **phase.trainer_arguments)
    if args.load_best_model_at_end and args.save_total_limit == 1:
        args.save_total_limit = 2  # or Trainer removes the last checkpoint at the end if another one is the best
    trainer = DistillationTrainer(
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


def _save(trainer: DistillationTrainer, model_class: type[PreTrainedModel], folder: Path) -> None:
    """Save what was trained and remove the checkpoints."""
    trainer.save_model()
    if not trainer.args.push_to_hub:  # save_model has written the card before its push
        trainer.create_model_card()
    if trainer.args.should_save:
        if trainer.args.load_best_model_at_end:
            model_class.from_pretrained(get_last_checkpoint(folder)).save_pretrained(f"{folder}_last")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.save_state()  # after all else, as its file says that the phase is finished
    PartialState().wait_for_everyone()


def initialisation(init: str, *phases: Phase) -> str:
    """The `init` of `create_student`: "random" if a phase has begun, whose checkpoint replaces every weight anyway."""
    folders = [phase.folder for phase in phases]
    begun = any((folder / "trainer_state.json").exists() or last_checkpoint(folder) for folder in folders)
    return "random" if begun else init


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint; one that was being written when its process was killed is removed."""
    while folder.is_dir() and (checkpoint := get_last_checkpoint(folder)):
        try:
            TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))  # Trainer writes it last
        except (OSError, ValueError):
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            return checkpoint
    return None
