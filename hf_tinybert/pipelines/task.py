"""Distillation for a task: a fine-tuned teacher, an initialised student, and the phases that train it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..models.loading import load_config, load_tokenizer
from ..students import TINYBERT4, check_student
from ..tasks import Augmentation, Task, TextClassification, UnlabelledText
from ..tasks.transfer import TransferData
from .early_stopping import EarlyStopping
from .phase import model_names
from .recipe import Recipe, fine_tuning_rate, is_narrow
from .runs import claim, read_results, write_results
from .task_phases import AUTO, PhaseArguments, TaskPhases
from .task_rows import TaskRows, token_sequences
from .task_run import TaskRun
from .transfer_files import on_disk

logger = logging.get_logger(__name__)
COMPARISONS = ("labels",)
MOST_TRUNCATED = 0.02  # the share of the rows that is truncated without a warning
Transfer = datasets.Dataset | datasets.IterableDataset


def task_distillation(
    task: Task,
    data: datasets.DatasetDict | None,
    teacher: str | Path | Sequence[str | Path] | None,
    output_dir: str | Path,
    student: Mapping[str, Any] | str | Path = TINYBERT4,
    init: str = "teacher",
    calibration_rows: int = 2000,
    transfer: Transfer | None = None,
    augmentation: Augmentation | str | None = "auto",
    fine_tuning: Mapping[str, Any] | None = None,
    intermediate: Mapping[str, Any] | str | None = AUTO,
    prediction: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    early_stopping: EarlyStopping | None = None,
    compare: str | None = None,
    **arguments,
) -> dict[str, Any]:
    """Distil a teacher into a student for one task.

    The student is initialised from the teacher and trained without dropout. If it is less than half as wide as the
    teacher, it first learns the teacher's layers (intermediate phase). It learns the teacher's logits on the rows, on
    the transfer rows and on random variants of both (prediction phase), then the labels of the rows and still the
    teacher's logits on them (labels phase).
    The numbers of variants and epochs follow from the numbers of rows and classes (`Recipe`). A teacher without a
    prediction head for the task is fine-tuned first. TinyBERT's own recipe (Jiao et al., 2020, section 3.2) is
    `intermediate={"num_train_epochs": 3, "augmented": True}, labels={"num_train_epochs": 0},
    augmentation=MaskedWords(...)`.

    `output_dir` then holds `student`, the best epoch of the last phase by the task's score on the first validation
    split, and `student_last`, its last epoch, both with tokenizer and model card. If no epoch of the labels phase is
    better than the student before it, that one is kept (not with FSDP or DeepSpeed; `labels={"eval_on_start": False}`
    switches it off). A fine-tuned teacher is in `teacher`. The same call continues a run that was stopped, and ends
    with the same student.

    Without labels (`data` has no `train` split) the student learns from transfer rows alone. If there is no validation
    split either, a tenth of them is held out, and the score is the agreement with the teacher (`TeacherAgreement`).

    Args:
        task: The task; for text without labels `UnlabelledText.from_teacher(teacher)`.
        data: Its training and validation splits; None for no labels.
        teacher: A Hub id or folder, or a list of them; None if another model has labelled the transfer rows.
        output_dir: The folder of the run.
        student: The sizes of a student that `create_student` makes from the first teacher, and optionally its
            `dropout` (default 0), or the Hub id or folder of a student, such as one of `general_distillation`. Default
            TinyBERT4.
        init: How a student of these sizes starts, as in `create_student`; default "teacher".
        calibration_rows: The number of rows that `init="teacher"` fits the student on, default 2,000.
        transfer: Rows without labels, which the teacher labels once, or with the soft labels of another model
            (`TransferData.build`). Blank texts, duplicates and texts of a validation split are removed. A stream is
            written to `output_dir` first. For text classification and regression only.
        augmentation: Makes variants of the rows. Default "auto": `RandomWords`, for text classification and regression
            with a teacher. None makes none.
        fine_tuning: `DistillationArguments` of the fine-tuning of teachers; its epochs also follow from the rows, and
            its learning rate from the teacher's width: 5e-5 for 768, 1e-4 for 384.
        intermediate: `DistillationArguments` of a phase in which the student learns the teacher's layers, before the
            others. Its default losses are "hidden" and "embedding", its learning rate is 4e-4, and up to 10 GB of the
            teacher's activations are cached (`teacher_cache_gb`). Default "auto": such a phase if there is one
            teacher and the student is less than half as wide. None leaves it out. The mapping of a phase can also
            hold:

            - `losses`: a list of `DistillationLoss` in place of `loss_type` and `loss_weights`.
            - `teacher`: teachers of this phase alone, a Hub id or folder, or a list of them.
            - `augmented`: Whether it trains on the variants too; default True in the prediction phase alone.
        prediction: The same of the prediction phase, whose default loss is "prediction".
        labels: The same of the labels phase, whose default losses are "task" and "prediction"; "task" alone without a
            teacher or a prediction phase. `num_train_epochs=0` leaves a phase out.
        early_stopping: When the last phase stops before its last epoch, by its score on the first validation split;
            default never.
        compare: "labels" trains a second student from the same start on the labels alone, with the arguments of the
            labels phase, but no loss that reads a teacher. A warning says if it is as good as the teacher.
        arguments: `DistillationArguments` of all trainings, except those of the Hub, which are of the last phase alone
            (`hub_model_id`: default the name of `output_dir`).

    Returns:
        `teacher`, `student`, `student_last` and `baseline`, the student that learned the labels alone: the metrics on
        each validation split (`teachers`: of every teacher); `parameters` and `megabytes` of teacher and student;
        `rows`, the number of rows of the phase that trained on most; `transfer`: the number of transfer rows, and of
        those that were removed; `seconds` of each training, without the fit of the start and without the teacher's
        passes for cached activations and logits. Also in `results.json`.

    Raises:
        ValueError: If a teacher has other labels than the task, if there is nothing to learn from, if no phase has
            epochs, or if `output_dir` holds a run with other settings.
    """
    data, teachers, output_dir = datasets.DatasetDict(data or {}), model_names(teacher), Path(output_dir)
    _check(task, data, teachers, student, init, transfer, augmentation, intermediate, compare)
    if task.validation[0] not in data:
        task = UnlabelledText.from_task(task)
    unlabelled = _transfer_data(transfer, task, data, output_dir / "transfer", bool(teachers))
    rows = TaskRows(task, data, load_tokenizer(teachers[0] if teachers else student), unlabelled)
    recipe = _recipe(rows, augmentation, teachers, student)
    if augmentation == "auto":
        augmentation = recipe.augmentation(arguments.get("seed", 0))
    augmented = task.augmented if augmentation else ()  # raises if the task has none, before anything is trained
    chosen = PhaseArguments(arguments, fine_tuning or {}, intermediate, prediction or {}, labels or {}, early_stopping)
    phases = TaskPhases.build(task, output_dir, chosen, recipe, "train" in data, bool(teachers), compare == "labels")
    settings = {
        "teacher": [str(name) for name in teachers] if len(teachers) != 1 else str(teachers[0]),
        "student": dict(student) if isinstance(student, Mapping) else str(student),
        "init": init,
        "calibration_rows": calibration_rows,
        "augmentation": augmentation.settings if augmentation else None,
        "task": task.name,
        "rows": {split: _ends(rows) for split, rows in data.items()},
        "transfer": _ends(unlabelled.rows) if unlabelled else None,
        "phases": phases.settings,
    }
    claim(output_dir, settings)
    if (results := read_results(output_dir)) is not None:
        return results

    rows = replace(rows, augmentation=augmentation, augmented=augmented)
    results = TaskRun(rows, phases).results(teachers, student, init, calibration_rows)
    write_results(output_dir, results)
    return results


def _check(
    task: Task,
    data: datasets.DatasetDict,
    teachers: Sequence[str | Path],
    student: Mapping[str, Any] | str | Path,
    init: str,
    transfer: Transfer | None,
    augmentation: Augmentation | str | None,
    intermediate: Mapping[str, Any] | str | None,
    compare: str | None,
) -> None:
    """Check that there is something to learn from, and a student.

    Raises:
        ValueError: If there is not, or if a teacher has other labels than the task.
    """
    for name in teachers:
        task.check_labels(name)
    if isinstance(augmentation, str) and augmentation != "auto":
        raise ValueError(f"augmentation={augmentation!r} is unknown: give 'auto', None or an Augmentation.")
    if isinstance(intermediate, str) and intermediate != AUTO:
        raise ValueError(f"intermediate={intermediate!r} is unknown: give 'auto', None or arguments of the phase.")
    if compare not in (None, *COMPARISONS):
        raise ValueError(f"compare={compare!r} is unknown: give one of {', '.join(COMPARISONS)}.")
    if transfer is not None and not isinstance(task, TextClassification):
        raise ValueError(f"{type(task).__name__} takes no transfer data: only text classification and regression do.")
    if "train" in data and (missing := [split for split in task.validation if split not in data]):
        raise ValueError(f"The data has no split {missing}, only {list(data)}: name the task's validation splits.")
    if "train" not in data:
        if transfer is None:
            raise ValueError("There is nothing to train on: pass data with a split 'train', or transfer.")
        if compare == "labels":
            raise ValueError("compare='labels' needs labels: pass data with a split 'train'.")
        if untrained := [str(name) for name in teachers if task.head_labels(name) is None]:
            raise ValueError(f"{untrained} have no prediction head for the task: without labels none can be trained.")
    if not teachers:
        if isinstance(student, Mapping):
            raise ValueError(
                "A student of these sizes needs a teacher: pass one, or a student by its Hub id or folder."
            )
        if transfer is None:
            raise ValueError("There is no teacher: pass one, or transfer rows with soft labels.")
    elif isinstance(student, Mapping):
        check_student(load_config(teachers[0]), student, init)


def _transfer_data(
    transfer: Transfer | None, task: Task, data: datasets.DatasetDict, folder: Path, has_teacher: bool
) -> TransferData | None:
    if transfer is None:
        return None
    prepared = TransferData.build(on_disk(transfer, folder), task, data)
    if not (has_teacher or prepared.has_logits):
        raise ValueError("There is no teacher: pass one, or give the transfer rows a column teacher_probabilities.")
    logger.info(f"{prepared}.")
    return prepared


def _recipe(
    rows: TaskRows,
    augmentation: Augmentation | str | None,
    teachers: Sequence[str | Path],
    student: Mapping[str, Any] | str | Path,
) -> Recipe:
    """The recipe for these rows, this augmentation and these models."""
    transfer = rows.transfer
    copies = augmentation.copies if isinstance(augmentation, Augmentation) else 0
    # a teacher has to label variants
    if augmentation == "auto" and isinstance(rows.task, TextClassification) and teachers:
        copies = 0 if transfer and transfer.has_logits else None
    labelled, unlabelled = len(rows.data.get("train", ())), len(transfer.rows) if transfer else 0
    sample = rows.sample()
    lengths = [len(ids) for ids in token_sequences(sample)]
    _warn_of_truncation(rows.task, lengths)
    recipe = Recipe.for_rows(labelled, unlabelled, copies, sum(lengths) / len(sample), len(rows.task.labels))
    configs = [load_config(name) for name in teachers]
    if configs:
        recipe = replace(recipe, teacher_rate=fine_tuning_rate(configs))
    if len(teachers) == 1 and (labelled or rows.transfer_rows is not None):
        return replace(recipe, learns_layers=_is_narrow(configs[0], student))
    return recipe


def _is_narrow(teacher: PreTrainedConfig, student: Mapping[str, Any] | str | Path) -> bool:
    if isinstance(student, Mapping):
        return is_narrow(teacher, student.get("hidden_size") or teacher.hidden_size)
    return is_narrow(teacher, load_config(student).hidden_size)


def _warn_of_truncation(task: Task, lengths: Sequence[int]) -> None:
    if not isinstance(task, TextClassification):
        return
    truncated = np.mean([length >= task.max_length for length in lengths])
    if truncated > MOST_TRUNCATED:
        logger.warning(
            f"{truncated:.0%} of the rows reach {task.max_length} tokens, and longer ones are cut there: a higher "
            "max_length reads more of them, and takes more time."
        )


def _ends(rows: datasets.Dataset) -> list[Any]:
    """What `settings.json` records of rows: their number, the first one and the last one."""
    return [len(rows), rows[0], rows[-1]]
