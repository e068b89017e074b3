"""The three trainings of a task distillation, built from the user's arguments."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..tasks import Task
from ..training.arguments import DistillationArguments
from .early_stopping import EarlyStopping
from .phase import FINE_TUNING, INTERMEDIATE, PREDICTION, Phase

HUB = ("push_to_hub", "hub_")
PHASE_KEYS = ("losses", "teacher", "augmented")  # of a phase, beside DistillationArguments


@dataclass(frozen=True)
class TaskPhases:
    """The three trainings of a run."""

    fine_tuning: Phase
    intermediate: Phase
    prediction: Phase

    @classmethod
    def build(
        cls,
        task: Task,
        folder: Path,
        arguments: Mapping[str, Any],
        fine_tuning: Mapping[str, Any],
        intermediate: Mapping[str, Any],
        prediction: Mapping[str, Any],
        early_stopping: EarlyStopping | None,
    ) -> "TaskPhases":
        """The phases of the user's arguments: those of all phases, and those of each."""
        if "losses" in arguments:
            raise ValueError("losses belong to a phase: pass intermediate={'losses': [...]} or prediction={...}.")
        hub = {name: value for name, value in arguments.items() if name.startswith(HUB)}
        shared = {name: value for name, value in arguments.items() if name not in hub}
        if hub:
            prediction = {"hub_model_id": folder.name, **hub, **prediction}
        needed = task.evaluation_arguments
        teacher = Phase("fine_tuning", folder / "teacher", {**FINE_TUNING, **needed, **shared, **fine_tuning})
        DistillationArguments(str(teacher.folder), **teacher.arguments)  # raises before anything is trained
        phases = cls(
            teacher,
            _distilling("intermediate", folder / "intermediate", INTERMEDIATE | needed, {**shared, **intermediate}),
            _distilling("prediction", folder / "student", PREDICTION | needed, {**shared, **prediction}),
        )
        if early_stopping is not None:
            _check_early_stopping(phases.prediction)
            phases = replace(phases, prediction=replace(phases.prediction, early_stopping=early_stopping))
        if phases.prediction.is_skipped:
            raise ValueError("The prediction phase selects and saves the student: give it num_train_epochs above 0.")
        return phases

    @property
    def settings(self) -> dict[str, Any]:
        """What `settings.json` records."""
        recorded = {self.fine_tuning.name: self.fine_tuning.arguments}
        for phase in (self.intermediate, self.prediction):
            recorded[phase.name] = {
                **phase.arguments,
                "losses": phase.loss_settings,
                "teacher": phase.teachers,
                "augmented": phase.augmented,
            }
            if phase.early_stopping is not None:
                recorded[phase.name]["early_stopping"] = asdict(phase.early_stopping)
        return recorded


def _check_early_stopping(phase: Phase) -> None:
    args = DistillationArguments(str(phase.folder), **phase.arguments)
    if args.eval_strategy == "no" or not args.load_best_model_at_end:
        raise ValueError(
            "Early stopping needs the scores of the prediction phase: leave out eval_strategy='no' and "
            "load_best_model_at_end=False."
        )


def _distilling(name: str, folder: Path, defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> Phase:
    """A phase that distils, by the user's arguments over its defaults."""
    arguments = {key: value for key, value in {**defaults, **chosen}.items() if key not in PHASE_KEYS}
    augmented = chosen.get("augmented", True)
    return Phase.build(name, folder, arguments, chosen.get("losses"), chosen.get("teacher"), augmented)
