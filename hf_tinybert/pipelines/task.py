"""Distillation for a task: a fine-tuned teacher, an initialised student, an intermediate and a prediction phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, set_seed
from transformers.utils import logging

from ..lineage import Lineage, ModelRecord
from ..losses import TaskLoss
from ..models.loading import load_tokenizer
from ..sound_caches import with_sound_caches
from ..students import TINYBERT4, create_student
from ..tasks import Task
from ..tasks.augmentation import Augmentation
from ..teachers.logit_cache import cache_logits
from ..training.arguments import DistillationArguments
from .early_stopping import EarlyStopping
from .phase import Phase, model_names
from .runs import TrainingData, claim, initialisation, load_saved, read_results, train_once, write_results
from .scoring import evaluate_task
from .task_phases import TaskPhases

logger = logging.get_logger(__name__)


def task_distillation(
    task: Task,
    data: datasets.DatasetDict,
    teacher: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    calibration_rows: int = 2000,
    augmentation: Augmentation | None = None,
    fine_tuning: Mapping[str, Any] | None = None,
    intermediate: Mapping[str, Any] | None = None,
    prediction: Mapping[str, Any] | None = None,
    early_stopping: EarlyStopping | None = None,
    **arguments,
) -> dict[str, Any]:
    """Distil a teacher into a student for one task: the second stage of TinyBERT (Jiao et al., 2020, section 3.2).

    A teacher without a prediction head for the task is fine-tuned first. The training rows are augmented if asked. The
    student learns the teacher's layers in the intermediate phase, and its predictions, from cached logits, in the
    prediction phase.

    `output_dir` then holds `student`, the best epoch by the task's score on the first validation split, and
    `student_last`, the last epoch, both with tokenizer and model card; a fine-tuned teacher is in `teacher`. The same
    call continues a run that was stopped, and ends with the same student.

    Args:
        task: The task.
        data: Its training and validation splits.
        teacher: A Hub id or folder, or a list of them.
        output_dir: The folder of the run.
        student: The sizes of a student that `create_student` makes from the first teacher, or the Hub id or folder of
            a student, such as one of `general_distillation`. Default TinyBERT4.
        init: How a student of these sizes starts, as in `create_student`; default "teacher".
        calibration_rows: The number of training rows that `init="teacher"` fits the student on, default 2,000.
        augmentation: Makes variants of the training rows; default none.
        fine_tuning: `DistillationArguments` of the fine-tuning of teachers.
        intermediate: `DistillationArguments` of the intermediate phase; `num_train_epochs=0` leaves it out. Default
            losses are "attention", "hidden" and "embedding", and up to 5 GB of the teacher's activations are cached
            (`teacher_cache_gb`). The mapping of a phase can also hold:

            - `losses`: a list of `DistillationLoss` in place of `loss_type` and `loss_weights`.
            - `teacher`: teachers of this phase alone, a Hub id or folder, or a list of them.
            - `augmented`: False trains the phase on the plain rows.
        prediction: The same of the prediction phase, which selects and saves the student. The default loss is
            "prediction".
        early_stopping: When the prediction phase stops before its last epoch, by its score on the first validation
            split; default never.
        arguments: `DistillationArguments` of all three trainings, except those of the Hub, which are of the prediction
            phase alone (`hub_model_id`: default the name of `output_dir`).

    Returns:
        `teacher`, `student` and `student_last`: the metrics on each validation split (`teachers`: of every teacher);
        `parameters` and `megabytes` of teacher and student; `rows`, the number of training rows; `seconds` of each
        training. Also in `results.json`.

    Raises:
        ValueError: If a teacher has other labels than the task, if the prediction phase has no epochs, or if
            `output_dir` holds a run with other settings.
    """
    teachers = model_names(teacher)
    for name in teachers:
        task.check_labels(name)
    columns = task.augmented if augmentation else ()  # raises if the task has none, before anything is trained
    output_dir = Path(output_dir)
    phases = TaskPhases.build(
        task, output_dir, arguments, fine_tuning or {}, intermediate or {}, prediction or {}, early_stopping
    )
    settings = {
        "teacher": [str(name) for name in teachers] if len(teachers) > 1 else str(teachers[0]),
        "student": dict(student) if isinstance(student, Mapping) else str(student),
        "init": init,
        "calibration_rows": calibration_rows,
        "augmentation": augmentation.settings if augmentation else None,
    }
    claim(output_dir, settings | _data_settings(task, data) | {"phases": phases.settings})
    if (results := read_results(output_dir)) is not None:
        return results

    run = _TaskRun.start(task, data, phases, load_tokenizer(teachers[0]))
    models = run.fine_tuned(teachers, phases.fine_tuning)
    scores = [run.score(model) for model in models]
    model = run.student(student, init, calibration_rows, models[0])
    augmented = run.augmented(augmentation, columns) if augmentation else run.training_data
    model = run.distil(model, models, augmented)
    results = _teacher_scores(scores) | run.student_scores(model) | _sizes(models[0], model)
    results |= {"rows": len(augmented.rows), "seconds": run.seconds}
    write_results(output_dir, results)
    return results


def _teacher_scores(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"teacher": scores[0]} | ({"teachers": scores} if len(scores) > 1 else {})


def _sizes(teacher: PreTrainedModel, student: PreTrainedModel) -> dict[str, dict[str, float]]:
    models = {"teacher": teacher, "student": student}
    return {
        "parameters": {name: model.num_parameters() for name, model in models.items()},
        "megabytes": {name: round(model.get_memory_footprint() / 1e6, 1) for name, model in models.items()},
    }


def _data_settings(task: Task, data: datasets.DatasetDict) -> dict[str, Any]:
    """What `settings.json` records of the data: of each split the number of rows, the first one and the last one."""
    return {"task": task.name, "rows": {split: [len(rows), rows[0], rows[-1]] for split, rows in data.items()}}


@dataclass
class _TaskRun:
    """The run of `task_distillation`: its data and phases, and the states of what has been trained.

    Args:
        task: The task.
        data: Its rows, by split.
        phases: The phases.
        training_data: The tokenised rows, not augmented.
        states: Phase → the states of its trainings, in the order in which they ran.
    """

    task: Task
    data: datasets.DatasetDict
    phases: TaskPhases
    training_data: TrainingData
    states: dict[str, list[TrainerState]] = field(default_factory=dict)

    @classmethod
    def start(
        cls, task: Task, data: datasets.DatasetDict, phases: TaskPhases, tokenizer: PreTrainedTokenizerBase
    ) -> "_TaskRun":
        """Tokenise the data."""
        logger.info("Tokenising " + ", ".join(f"{len(rows)} rows of {split}" for split, rows in data.items()) + ".")
        with PartialState().main_process_first():
            tokens = {
                split: with_sound_caches(rows, partial(task.tokenize, rows, tokenizer)) for split, rows in data.items()
            }
        selecting = task.validation[0]
        training_data = TrainingData(
            tokens["train"],
            tokenizer,
            task.collator(tokenizer),
            tokens[selecting],
            task.scorer(data[selecting], tokens[selecting]),
            task.name,
        )
        return cls(task, data, phases, training_data)

    def fine_tuned(self, names: Sequence[str | Path], phase: Phase) -> list[PreTrainedModel]:
        """The models of these names; those without a prediction head for the task are fine-tuned."""
        models, self.states[phase.name] = [], []
        for number, name in enumerate(names, start=1):
            set_seed(phase.seed)
            model, untrained = self.task.load_model(name)
            if untrained:
                logger.info(f"'{name}' has no prediction head for {self.task.name}: it is fine-tuned first.")
                Lineage(finetuned_from=ModelRecord.from_config(model.config)).write(model.config)
                folder = phase.folder if number == 1 else phase.folder.with_name(f"{phase.folder.name}_{number}")
                model, state = train_once(model, replace(phase, folder=folder), self.training_data)
                self.states[phase.name].append(state)
            models.append(model)
        return models

    def score(self, model: PreTrainedModel) -> dict[str, dict[str, float]]:
        """The metrics of a model on each validation split, with the arguments of the prediction phase."""
        prediction = self.phases.prediction
        args = DistillationArguments(str(prediction.folder.parent), **prediction.arguments)
        return evaluate_task(model, self.task, self.data, self.training_data.tokenizer, args)

    def student(
        self, student: Mapping[str, int] | str | Path, init: str, calibration_rows: int, teacher: PreTrainedModel
    ) -> PreTrainedModel:
        """The student before it is trained."""
        phases, rows = self.phases, self.training_data.rows
        set_seed(phases.prediction.seed)
        if not isinstance(student, Mapping):
            return self.task.load_model(student)[0]
        init = initialisation(init, phases.intermediate, phases.prediction)
        if init == "teacher":
            logger.info(f"Initialising the student from the teacher on {min(calibration_rows, len(rows))} rows.")
        return create_student(
            teacher,
            **student,
            init=init,
            calibration_dataset=rows.select(range(min(calibration_rows, len(rows)))),
            processing_class=self.training_data.tokenizer,
        )

    def augmented(self, augmentation: Augmentation, columns: Sequence[str]) -> TrainingData:
        """The training data with variants of its rows in these columns."""
        variants = augmentation(self.data["train"], columns)
        with PartialState().main_process_first():
            tokenize = partial(self.task.tokenize, variants, self.training_data.tokenizer)
            rows = with_sound_caches(variants, tokenize)
        return replace(self.training_data, rows=rows, augmentation=augmentation.record)

    def distil(
        self, student: PreTrainedModel, teachers: Sequence[PreTrainedModel], augmented: TrainingData
    ) -> PreTrainedModel:
        """The student after the phases that are not left out."""
        for phase in (self.phases.intermediate, self.phases.prediction):
            if phase.is_skipped:
                continue
            models = self._teachers_of(phase) or teachers
            training_data = augmented if phase.augmented else self.training_data
            if "logits" in phase.reads:
                training_data = self._with_logits(training_data, phase, models)
            if all(type(loss) is TaskLoss for loss in phase.losses):
                phase = replace(phase, losses=())  # the label loss alone is trained as Trainer does without a teacher
            student, state = train_once(student, phase, training_data, models)
            self.states[phase.name] = [state]
        return student

    def _teachers_of(self, phase: Phase) -> list[PreTrainedModel]:
        """The teachers of a phase alone, fine-tuned if need be."""
        if not phase.teachers:
            return []
        name = f"fine_tuning_{phase.name}"
        folder = self.phases.fine_tuning.folder.with_name(f"teacher_{phase.name}")
        return self.fine_tuned(phase.teachers, replace(self.phases.fine_tuning, name=name, folder=folder))

    def _with_logits(
        self, training_data: TrainingData, phase: Phase, teachers: Sequence[PreTrainedModel]
    ) -> TrainingData:
        rows = cache_logits(
            teachers,
            training_data.rows,
            training_data.tokenizer,
            data_collator=training_data.data_collator,
            weights=phase.arguments.get("teacher_weights"),
            how=phase.arguments.get("teacher_logits", "mean"),
        )
        return replace(training_data, rows=rows)

    def student_scores(self, student: PreTrainedModel) -> dict[str, dict[str, dict[str, float]]]:
        """The metrics of the best and of the last epoch."""
        last = self.phases.prediction.folder.with_name("student_last")
        return {"student": self.score(student), "student_last": self.score(load_saved(type(student), last))}

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each training that ran."""
        return {
            name: sum(state.log_history[-1]["train_runtime"] for state in states)
            for name, states in self.states.items()
            if states
        }
