"""The work of a task distillation: teachers fine-tuned, the student made, its phases trained, the models scored."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerState, set_seed
from transformers.utils import logging

from ..lineage import Lineage, ModelRecord
from ..students import create_student
from ..teachers.teacher import place
from ..training.arguments import DistillationArguments
from .phase import Phase
from .runs import TrainingData, has_begun, load_saved, train_once
from .scoring import evaluate_task
from .task_phases import TaskPhases
from .task_rows import TaskRows

logger = logging.get_logger(__name__)
Scores = dict[str, dict[str, float]]


@dataclass
class TaskRun:
    """The run of `task_distillation`.

    Args:
        rows: Its rows.
        phases: Its trainings.
        states: Training → the states of its trainings, in the order in which they ran.
        trained_rows: The number of rows of the phase that trained the student on most.
    """

    rows: TaskRows
    phases: TaskPhases
    states: dict[str, list[TrainerState]] = field(default_factory=dict)
    trained_rows: int = 0

    def results(
        self, teachers: Sequence[str | Path], student: Mapping[str, Any] | str | Path, init: str, calibration_rows: int
    ) -> dict[str, Any]:
        """The results of the run, as `task_distillation` returns them, after all trainings."""
        models = self.fine_tuned(teachers, self.phases.fine_tuning)
        selecting = self.rows.task.validation[0]
        if selecting not in self.rows.data:
            self.rows = self.rows.with_validation(models, self.phases.last)
        results = _teacher_scores([self.score(model) for model in models])
        start = self.student(student, init, calibration_rows, models)
        if self.phases.baseline is not None:
            results["baseline"] = self.score(self.baseline(start))
            _warn_of_headroom(results, selecting)
        model = self.distil(start, models)
        results |= self.student_scores(model) | _sizes({"teacher": models[0]} if models else {}, model)
        transfer = {} if self.rows.transfer is None else {"transfer": self.rows.transfer.counts}
        return results | transfer | {"rows": self.trained_rows, "seconds": self.seconds}

    def fine_tuned(self, names: Sequence[str | Path], phase: Phase) -> list[PreTrainedModel]:
        """The models of these names; those without a prediction head for the task are fine-tuned."""
        task, models, self.states[phase.name] = self.rows.task, [], []
        device = DistillationArguments(str(phase.folder), **phase.arguments).device
        for number, name in enumerate(names, start=1):
            set_seed(phase.seed)
            model, untrained = task.load_model(name)
            place(model, device)  # logits may be cached before a Trainer moves it
            if untrained:
                logger.info(f"'{name}' has no prediction head for the task '{task.name}': it is fine-tuned first.")
                Lineage(finetuned_from=ModelRecord.from_config(model.config)).write(model.config)
                folder = phase.folder if number == 1 else phase.folder.with_name(f"{phase.folder.name}_{number}")
                model, state = train_once(model, replace(phase, folder=folder), self.rows.labelled())
                self.states[phase.name].append(state)
            models.append(model)
        return models

    def score(self, model: PreTrainedModel) -> Scores:
        """The metrics of a model on each validation split, with the arguments of the last phase."""
        rows, last = self.rows, self.phases.last
        args = DistillationArguments(str(last.folder.parent), **last.arguments)
        return evaluate_task(model, rows.task, rows.data, rows.tokenizer, args)

    def student(
        self,
        student: Mapping[str, Any] | str | Path,
        init: str,
        calibration_rows: int,
        teachers: Sequence[PreTrainedModel],
    ) -> PreTrainedModel:
        """The student before it is trained."""
        phases = self.phases
        set_seed(phases.last.seed)
        if not isinstance(student, Mapping):
            return self.rows.task.load_model(student)[0]
        needed = not has_begun(*phases.distilling) or (phases.baseline is not None and not has_begun(phases.baseline))
        texts = self.rows.texts
        texts = texts.select(range(min(calibration_rows, len(texts))))
        if init == "teacher" and needed:
            logger.info(f"Initialising the student from the teacher on {len(texts)} rows.")
        return create_student(
            teachers[0],
            **{"dropout": 0.0, "merge_layers": phases.may_merge_layers, **student},
            init=init if needed else "random",  # a checkpoint replaces every weight anyway
            calibration_dataset=self.rows.tokens(texts),
            processing_class=self.rows.tokenizer,
        )

    def distil(self, student: PreTrainedModel, teachers: Sequence[PreTrainedModel]) -> PreTrainedModel:
        """The student after all phases."""
        before: Path | None = None
        for phase in self.phases.distilling:
            models = self._teachers_of(phase) or teachers
            data = self.rows.for_phase(phase, models)
            self.trained_rows = max(self.trained_rows, len(data.rows))
            # a teacher would find that the logits of another model are not its own
            used = () if self.rows.reads_soft_labels(phase) else models
            student, before = self._trained(student, phase, data, used, before), phase.folder
        return student

    def baseline(self, start: PreTrainedModel) -> PreTrainedModel:
        """A copy of the student before it is trained, after training on the labels alone."""
        return self._trained(copy.deepcopy(start), self.phases.baseline, self.rows.labelled(), ())

    def _trained(
        self,
        model: PreTrainedModel,
        phase: Phase,
        data: TrainingData,
        teachers: Sequence[PreTrainedModel],
        start: Path | None = None,
    ) -> PreTrainedModel:
        model, state = train_once(model, phase, data, teachers, start)
        self.states[phase.name] = [state]
        return model

    def _teachers_of(self, phase: Phase) -> list[PreTrainedModel]:
        """The teachers of a phase alone, fine-tuned if need be."""
        if not phase.teachers:
            return []
        name = f"fine_tuning_{phase.name}"
        folder = self.phases.fine_tuning.folder.with_name(f"teacher_{phase.name}")
        return self.fine_tuned(phase.teachers, replace(self.phases.fine_tuning, name=name, folder=folder))

    def student_scores(self, student: PreTrainedModel) -> dict[str, Scores]:
        """The metrics of the best and of the last epoch."""
        last = self.phases.last.folder.with_name("student_last")
        return {"student": self.score(student), "student_last": self.score(load_saved(type(student), last))}

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each training that ran."""
        return {
            name: sum(state.log_history[-1]["train_runtime"] for state in states)
            for name, states in self.states.items()
            if states
        }


def _teacher_scores(scores: Sequence[Scores]) -> dict[str, Any]:
    first = {"teacher": scores[0]} if scores else {}
    return first | ({"teachers": scores} if len(scores) > 1 else {})


def _warn_of_headroom(results: Mapping[str, Scores], split: str) -> None:
    teacher, baseline = (results[name][split]["score"] for name in ("teacher", "baseline"))
    if baseline >= teacher:
        logger.warning(
            f"The student that learned the labels alone scores {baseline:.4f}, its teacher {teacher:.4f}: this "
            "teacher has nothing to add on these rows. Use a better one, or transfer rows."
        )


def _sizes(teacher: Mapping[str, PreTrainedModel], student: PreTrainedModel) -> dict[str, dict[str, float]]:
    models = {**teacher, "student": student}
    return {
        "parameters": {name: model.num_parameters() for name, model in models.items()},
        "megabytes": {name: round(model.get_memory_footprint() / 1e6, 1) for name, model in models.items()},
    }
