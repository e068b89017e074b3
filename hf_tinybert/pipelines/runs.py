"""What lets a killed run go on: a folder with its settings, stages trained once, the newest whole checkpoint."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from ..training.arguments import DistillationArguments
from ..training.trainer import DistillationTrainer


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if `folder` holds a run with other settings: it would go on from another student."""
    path, text = folder / "settings.json", json.dumps(settings, indent=1, default=str)
    if path.exists() and (before := json.loads(path.read_text())) != (now := json.loads(text)):
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise ValueError(f"{folder} holds a run with other {differing}: choose another output_dir or remove it.")
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def train_once(
    folder: Path,
    model: PreTrainedModel,
    arguments: Mapping[str, Any],
    data_name: str | None = None,
    augmentation: Mapping[str, Any] | None = None,
    **options,
) -> tuple[PreTrainedModel, TrainerState]:
    """Train and save `model`, unless that is done; go on from the newest checkpoint that is whole."""
    state = folder / "trainer_state.json"
    if not state.exists():
        args = DistillationArguments(str(folder), **arguments)
        if args.load_best_model_at_end and args.save_total_limit == 1:
            args.save_total_limit = 2  # or Trainer removes the last checkpoint in the end, where another is the best
        trainer = DistillationTrainer(model, args, **options)
        trainer.data_name, trainer.augmentation = data_name, augmentation
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        trainer.save_model()
        if not args.push_to_hub:  # save_model has
            trainer.create_model_card()
        if args.should_save:
            checkpoint = get_last_checkpoint(folder)
            if args.load_best_model_at_end:
                type(model).from_pretrained(checkpoint).save_pretrained(f"{folder}_last")
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        trainer.save_state()  # after all else: it says that this is done
        PartialState().wait_for_everyone()
    return type(model).from_pretrained(folder), TrainerState.load_from_json(str(state))


def start_of(init: str, *folders: Path) -> str:
    """`init`, or "random" where one of the runs has begun: it has the weights, and a cut would be thrown away."""
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
