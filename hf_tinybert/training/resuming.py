"""Whether a checkpoint is one of the training that is to go on from it."""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME

from ..json_records import from_json, to_json
from ..lineage import ATTRIBUTE, Lineage, Stage
from .checkpoints import check_checkpoint

STAGE_FILE = "distillation_stage.json"
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_labels")


def chosen_checkpoint(resume_from_checkpoint: Any, output_dir: str) -> Path | None:
    """The folder that Trainer will resume from; None if it will not resume, or finds nothing and says so.

    Raises:
        ValueError: If a file of it is missing or corrupt (`check_checkpoint`).
    """
    if resume_from_checkpoint is True:
        resume_from_checkpoint = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if not resume_from_checkpoint:
        return None
    check_checkpoint(resume_from_checkpoint)
    return Path(resume_from_checkpoint)


def save_stage(stage: Stage, checkpoint: str | Path) -> None:
    """Write into a checkpoint which training it is of."""
    Path(checkpoint, STAGE_FILE).write_text(json.dumps(to_json(stage), indent=1))


def check_plain_checkpoint(checkpoint: Path | None) -> None:
    """Check that a checkpoint is not one of a distillation, before a training without losses goes on from it.

    Raises:
        ValueError: If it is.
    """
    if checkpoint is not None and (checkpoint / STAGE_FILE).is_file():
        stage, _ = _saved_stage(checkpoint)
        losses = "" if stage is None else f" on the losses {_names(stage)}"
        raise ValueError(
            f"{checkpoint} is a checkpoint of a distillation{losses}, and this training has none: resume it with its "
            "teacher and losses, or start this one from its model, in another output_dir."
        )


def check_same_training(checkpoint: Path | None, student: PreTrainedModel, stage: Stage) -> None:
    """Check that a checkpoint is one of a training of this student on the same losses and layers.

    Data, lengths, batch sizes, learning rates and weights may differ. A checkpoint whose record cannot be read passes.

    Args:
        checkpoint: The folder; None passes.
        student: The student.
        stage: The training that is to go on from it.

    Raises:
        ValueError: If it is not; the message names the difference.
    """
    if checkpoint is None or not (checkpoint / CONFIG_NAME).is_file():
        return
    saved, recorded = _saved_stage(checkpoint)
    if saved is None and not recorded:
        difference = f"by a training without distillation, and this one has the losses {_names(stage)}"
    else:
        difference = _other_student(checkpoint, student) or (saved and _other_objective(saved, stage))
    if difference:
        raise ValueError(
            f"{checkpoint} was written {difference}: resume it as it was begun, or start this training from its "
            "model, in another output_dir."
        )


def _saved_stage(checkpoint: Path) -> tuple[Stage | None, bool]:
    """The training that wrote a checkpoint, None if that is unknown, and whether there is any record of one."""
    path = checkpoint / STAGE_FILE
    try:
        if path.is_file():
            return from_json(Stage, json.loads(path.read_text())), True
    except (TypeError, ValueError):
        return None, True
    values, _ = PretrainedConfig.get_config_dict(checkpoint)
    lineage = Lineage.from_values(values.get(ATTRIBUTE))
    if lineage is None:
        return None, bool(values.get(ATTRIBUTE))
    return (lineage.stages[-1], True) if lineage.stages else (None, False)


def _other_student(checkpoint: Path, student: PreTrainedModel) -> str | None:
    config = type(student.config).from_pretrained(checkpoint)
    for name in SIZES:
        saved, present = getattr(config, name, None), getattr(student.config, name, None)
        if saved != present:
            return f"for a student with {name}={saved}, and this one has {name}={present}"
    return None


def _other_objective(saved: Stage, present: Stage) -> str | None:
    """What makes the objective another one, so that optimizer states and histories do not fit; None if nothing."""
    if _names(saved) != _names(present):
        return f"by a training on the losses {_names(saved)}, and this one has {_names(present)}"
    for before, now in zip(saved.losses, present.losses, strict=True):
        settings = to_json(now.settings)
        for name in settings.keys() & before.settings.keys():
            if isinstance(now.settings[name], int | float | str) and settings[name] != before.settings[name]:
                return f"with {name}={before.settings[name]} in the {now.name} loss, and here it is {settings[name]}"
    if len(saved.teachers) != len(present.teachers):
        return f"by a training with {len(saved.teachers)} teachers, and this one has {len(present.teachers)}"
    for before, now in zip(saved.teachers, present.teachers, strict=True):
        if [*map(list, before.layer_mapping)] != [*map(list, now.layer_mapping)]:
            return (
                f"by a training on the pairs {before.layer_mapping} of student and teacher layers, and this one has "
                f"{now.layer_mapping}"
            )
    return None


def _names(stage: Stage) -> list[str]:
    return [loss.name for loss in stage.losses]
