"""A phase: one training of a pipeline, built once from its defaults and the user's arguments."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..losses import DistillationLoss
from ..training.arguments import DISTILLATION_ARGUMENTS, DistillationArguments
from ..training.checks import check_losses
from .early_stopping import EarlyStopping

TRAINING = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 3,
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "epoch",
    "save_total_limit": 1,
}
AUTO_DTYPE = {"teacher_dtype": "auto"}
INTERMEDIATE = (
    TRAINING
    | AUTO_DTYPE
    | {"loss_type": ["hidden", "embedding"], "learning_rate": 4e-4, "augmented": False, "teacher_cache_gb": 10.0}
)
PREDICTION = TRAINING | AUTO_DTYPE | {"loss_type": ["prediction"], "eval_strategy": "epoch"}
LABELS = TRAINING | {"loss_type": ["task"], "eval_strategy": "epoch"}
LABELS_AND_LOGITS = AUTO_DTYPE | {"loss_type": ["task", "prediction"]}  # of the labels phase after a prediction phase
SELECTING = {"load_best_model_at_end": True, "metric_for_best_model": "score"}  # of the last phase
GENERAL = TRAINING | {"loss_type": ["attention", "hidden", "embedding"], "save_strategy": "steps"}


@dataclass(frozen=True)
class Phase:
    """One training of a pipeline.

    Args:
        name: The phase in `settings.json` and `results.json`.
        folder: The folder that it writes its checkpoints and its model to.
        arguments: `DistillationArguments` without `output_dir`.
        losses: The losses that it trains on; none for Trainer's own loss.
        teachers: Hub ids or folders of its own teachers; none for the teachers of the whole run.
        augmented: Whether it trains on augmented rows if the run has them.
        early_stopping: When it stops before its last epoch; None for never.
    """

    name: str
    folder: Path
    arguments: Mapping[str, Any]
    losses: Sequence[DistillationLoss] = ()
    teachers: Sequence[str | Path] = ()
    augmented: bool = True
    early_stopping: EarlyStopping | None = None

    @classmethod
    def build(
        cls,
        name: str,
        folder: Path,
        arguments: Mapping[str, Any],
        losses: Sequence[DistillationLoss] | None = None,
        teacher: str | Path | Sequence[str | Path] | None = None,
        augmented: bool = True,
    ) -> "Phase":
        """The phase that a user's arguments describe, with its losses.

        Args:
            name: The name of the phase.
            folder: Its folder.
            arguments: Its `DistillationArguments` without `output_dir`.
            losses: The user's losses, in place of `loss_type` and `loss_weights`. They are copied, so that every
                phase and every call starts from their parameters as they are passed.
            teacher: Hub ids or folders of teachers of this phase alone.
            augmented: Whether it trains on augmented rows if the run has them.

        Raises:
            TypeError, ValueError: If the arguments are unknown or do not fit together.
        """
        if losses is not None:
            arguments = {key: value for key, value in arguments.items() if key not in ("loss_type", "loss_weights")}
        args = DistillationArguments(str(folder), **arguments)
        losses = args.build_losses() if losses is None else copy.deepcopy(list(losses))
        if not losses:
            raise ValueError(f"losses of {name} is empty: leave it out for the default, or pass at least one loss.")
        check_losses(losses, has_teacher=True, has_cached_logits=True)
        return cls(name, folder, arguments, losses, model_names(teacher), augmented)

    @property
    def loss_settings(self) -> list[dict[str, Any]]:
        """What `settings.json` records of each loss."""
        return [
            {"class": type(loss).__name__, "name": loss.name, "weight": loss.weight, "settings": loss.settings}
            for loss in self.losses
        ]

    @property
    def title(self) -> str:
        """What people call it: "Fine-tuning", "Intermediate phase"."""
        title = self.name.replace("_", "-").capitalize()
        return f"{title} phase" if self.name in ("intermediate", "prediction", "labels") else title

    @property
    def reads(self) -> frozenset[str]:
        """What its losses read of the models (`DistillationLoss.reads`)."""
        return frozenset().union(*(loss.reads for loss in self.losses))

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments of its trainer: without those of distillation if it trains on Trainer's own loss."""
        if self.losses:
            return dict(self.arguments)
        return {name: value for name, value in self.arguments.items() if name not in DISTILLATION_ARGUMENTS}

    @property
    def has_teacher(self) -> bool:
        """Whether its losses read what only a teacher has; the label loss is the student's own."""
        return bool(self.reads - {"loss"})

    @property
    def is_skipped(self) -> bool:
        """Whether it is left out: `num_train_epochs=0`."""
        return not self.arguments["num_train_epochs"]

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.arguments.get("seed", 42)


def model_names(models: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    """Hub ids or folders of one model, of several, or of none."""
    return [models] if isinstance(models, str | Path) else list(models or ())
