"""The trainings of a task distillation, built from the user's arguments."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..tasks import Task
from ..training.arguments import DistillationArguments
from .early_stopping import EarlyStopping
from .phase import INTERMEDIATE, LABELS, LABELS_AND_LOGITS, PREDICTION, SELECTING, TRAINING, Phase
from .recipe import Recipe

AUTO = "auto"
HUB = ("push_to_hub", "hub_")
LOSS_ARGUMENTS = ("losses", "loss_type", "loss_weights", "loss_schedules", "balance_losses")
PHASE_KEYS = ("losses", "teacher", "augmented")  # of a phase, beside DistillationArguments


@dataclass(frozen=True)
class PhaseArguments:
    """What a user says of the trainings: `DistillationArguments`, and `PHASE_KEYS`.

    Args:
        shared: Of all trainings; those of the Hub are of the last phase alone.
        fine_tuning: Of the fine-tuning of teachers.
        intermediate: Of the intermediate phase; None leaves it out, "auto" is that of the default recipe.
        prediction: Of the prediction phase.
        labels: Of the labels phase.
        early_stopping: When the last phase stops before its last epoch; None for never.
    """

    shared: Mapping[str, Any]
    fine_tuning: Mapping[str, Any]
    intermediate: Mapping[str, Any] | str | None
    prediction: Mapping[str, Any]
    labels: Mapping[str, Any]
    early_stopping: EarlyStopping | None = None


@dataclass(frozen=True)
class TaskPhases:
    """The trainings of a run.

    Args:
        fine_tuning: That of teachers without a prediction head.
        distilling: Those of the student, in their order. The last one selects and saves it.
        baseline: That of a second student on the labels alone; None if it is not asked for.
    """

    fine_tuning: Phase
    distilling: tuple[Phase, ...]
    baseline: Phase | None = None

    @classmethod
    def build(
        cls,
        task: Task,
        folder: Path,
        chosen: PhaseArguments,
        recipe: Recipe,
        has_labels: bool,
        has_teacher: bool,
        compares: bool,
    ) -> "TaskPhases":
        """The trainings of the user's arguments, over the defaults.

        Args:
            task: The task.
            folder: The folder of the run.
            chosen: The user's arguments.
            recipe: The defaults that depend on rows and models.
            has_labels: Whether there are rows with labels.
            has_teacher: Whether there is a teacher.
            compares: Whether a second student is trained on the labels alone.

        Raises:
            ValueError: If arguments do not fit together.
        """
        if "losses" in chosen.shared:
            raise ValueError("losses belong to a phase: pass intermediate={'losses': [...]} or prediction={...}.")
        hub = {name: value for name, value in chosen.shared.items() if name.startswith(HUB)}
        shared = {name: value for name, value in chosen.shared.items() if name not in hub}
        common, label_epochs = {**task.evaluation_arguments, **shared}, {"num_train_epochs": recipe.labels_epochs}
        arguments: dict[str, dict[str, Any]] = {}
        layers = chosen.intermediate
        if layers == AUTO:
            layers = {} if recipe.learns_layers and chosen.prediction.get("num_train_epochs") != 0 else None
        if layers is not None:
            intermediate = INTERMEDIATE | {"num_train_epochs": recipe.intermediate_epochs}
            arguments["intermediate"] = {**intermediate, **common, **layers}
        prediction = PREDICTION | {"num_train_epochs": recipe.prediction_epochs}
        arguments["prediction"] = {**prediction, **common, **chosen.prediction}
        if has_labels:
            own = {"augmented": False, "eval_on_start": True}
            if has_teacher and arguments["prediction"]["num_train_epochs"]:
                own |= LABELS_AND_LOGITS
            arguments["labels"] = {**LABELS, **label_epochs, **own, **common, **chosen.labels}
        *before, last = _names(arguments)
        if hub:
            arguments[last] = {"hub_model_id": folder.name, **hub, **arguments[last]}
        final = _distilling(last, folder / "student", SELECTING | arguments[last])
        if chosen.early_stopping is not None:
            _check_early_stopping(final)
            final = replace(final, early_stopping=chosen.early_stopping)
        distilling = (*(_distilling(name, folder / name, arguments[name]) for name in before), final)
        for phase in distilling:
            _check_reads(phase, has_labels, has_teacher)
        teacher = {"num_train_epochs": recipe.teacher_epochs, "learning_rate": recipe.teacher_rate}
        fine_tuning = {**TRAINING, **teacher, **common, **chosen.fine_tuning}
        DistillationArguments(str(folder / "teacher"), **fine_tuning)  # raises before anything is trained
        baseline = {**SELECTING, **LABELS, **label_epochs, **common, **chosen.labels}
        return cls(
            Phase("fine_tuning", folder / "teacher", fine_tuning),
            distilling,
            _baseline(folder / "baseline", baseline) if compares else None,
        )

    @property
    def last(self) -> Phase:
        """The phase that selects and saves the student."""
        return self.distilling[-1]

    @property
    def may_merge_layers(self) -> bool:
        """Whether no loss compares attention heads, so that the student may start from heads of all layers."""
        return not any("attentions" in phase.reads for phase in self.distilling)

    @property
    def settings(self) -> dict[str, Any]:
        """What `settings.json` records."""
        recorded: dict[str, Any] = {self.fine_tuning.name: self.fine_tuning.arguments}
        for phase in (*self.distilling, *filter(None, [self.baseline])):
            recorded[phase.name] = {
                **phase.arguments,
                "losses": phase.loss_settings,
                "teacher": phase.teachers,
                "augmented": phase.augmented,
            }
            if phase.early_stopping is not None:
                recorded[phase.name]["early_stopping"] = asdict(phase.early_stopping)
        return recorded


def _names(arguments: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The phases that are not left out."""
    names = [name for name in arguments if arguments[name]["num_train_epochs"]]
    if not {"prediction", "labels"} & {*names}:
        raise ValueError(
            "The last phase selects and saves the student: give the prediction phase or the labels phase "
            "num_train_epochs above 0."
        )
    return names


def _check_early_stopping(phase: Phase) -> None:
    args = DistillationArguments(str(phase.folder), **phase.arguments)
    if args.eval_strategy == "no" or not args.load_best_model_at_end:
        raise ValueError(
            f"Early stopping needs the scores of the {phase.name} phase: leave out eval_strategy='no' and "
            "load_best_model_at_end=False."
        )


def _check_reads(phase: Phase, has_labels: bool, has_teacher: bool) -> None:
    if "loss" in phase.reads and not has_labels:
        raise ValueError(f"The {phase.name} phase reads labels, and no row has one: leave 'task' out of its losses.")
    if phase.reads - {"loss", "logits"} and not (has_teacher or phase.teachers):
        raise ValueError(f"The {phase.name} phase reads layers of a teacher, and there is none: pass one.")


def _distilling(name: str, folder: Path, chosen: Mapping[str, Any]) -> Phase:
    """A phase that distils."""
    arguments = {key: value for key, value in chosen.items() if key not in PHASE_KEYS}
    return Phase.build(
        name, folder, arguments, chosen.get("losses"), chosen.get("teacher"), chosen.get("augmented", True)
    )


def _baseline(folder: Path, chosen: Mapping[str, Any]) -> Phase:
    """The labels phase on the labels alone: with the user's losses if none of them reads a teacher."""
    own = chosen.get("losses") or ()
    if not own or any(loss.reads - {"loss"} for loss in own):
        others = {name: value for name, value in chosen.items() if name not in LOSS_ARGUMENTS}
        chosen = {**others, "loss_type": LABELS["loss_type"]}
    return _distilling("baseline", folder, chosen)
