"""What the flags mean: the task and its rows, models, and the arguments of the pipelines."""

import argparse
import dataclasses
import random
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from ..models.loading import from_pretrained, load_tokenizer
from ..pipelines.data import KINDS, TEXTS, load_task
from ..pipelines.early_stopping import EarlyStopping
from ..pipelines.transfer_files import load_transfer
from ..students import TINYBERT4
from ..tasks import TASKS, Augmentation, MaskedWords, RandomWords, Task, UnlabelledText, WordVectors
from ..tasks.transfer import soft_label_names
from ..training.arguments import DistillationArguments

Options = argparse.Namespace


def task_and_data(options: Options, labels: tuple[str, ...] | None = None) -> tuple[Task, datasets.DatasetDict]:
    """The task and its splits.

    Args:
        options: The flags of `data_flags`, and perhaps those of `transfer_flags`.
        labels: The labels of a trained prediction head, to which those of the rows are matched.

    Returns:
        The task and its splits; no splits if there are transfer rows alone, whose task is that of the teacher or, if
            there is none, that of the student or of the names of the soft labels.
    """
    if options.task:
        task = TASKS[options.task]
        data = task.load(options.data)
    elif options.data:
        task, data = load_task(
            options.data,
            options.kind,
            options.text,
            options.label,
            options.choices,
            options.validation,
            options.subset,
            options.max_length,
            labels,
        )
    elif getattr(options, "transfer", None) and (options.teacher or options.student):
        task, data = _unlabelled_task(options), datasets.DatasetDict()
    else:
        raise ValueError("There is no data: pass --data, a file, folder or Hub id, or --task, the name of a task.")
    if options.metric:
        task = task.select_by(*options.metric)
    if options.rows and "train" in data:
        data["train"] = _drawn(data["train"], options.rows)
    return task, data


def _unlabelled_task(options: Options) -> UnlabelledText:
    """The task of transfer rows alone."""
    text, head = tuple(options.text or TEXTS["text"]), first_teacher(options) or options.student
    if not options.teacher and UnlabelledText.head_labels(head) is None:
        labels = soft_label_names(load_transfer(options.transfer, text))
        if labels is not None:
            return UnlabelledText("transfer", text, labels, max_length=options.max_length)
    return UnlabelledText.from_teacher(head, text, options.max_length)


def transfer_of(options: Options, task: Task) -> datasets.Dataset | None:
    """The transfer rows; None if there are none."""
    if options.transfer is None:
        return None
    rows = load_transfer(options.transfer, task.text)
    return _drawn(rows, options.transfer_rows) if options.transfer_rows else rows


def _drawn(rows: datasets.Dataset, count: int) -> datasets.Dataset:
    return rows.select(random.Random(0).sample(range(len(rows)), min(count, len(rows))))


def head_labels(options: Options, model: str | None) -> tuple[str, ...] | None:
    """The labels of a model's prediction head for the task in the order of their ids; None if it has no such head."""
    return None if model is None else KINDS[options.kind].head_labels(model)


def held_out_note(options: Options) -> str:
    """A line of the result that says which rows of a single file were used; "" if it was not divided."""
    if options.task or options.validation or not (options.data and Path(options.data).is_file()):
        return ""
    return f"Rows: those that distill holds out of {options.data} (--validation train: all).\n"


def first_teacher(options: Options) -> str | None:
    """The teacher that the student is made from; None if there is none."""
    return options.teacher[0] if options.teacher else None


def fine_tuned_model(task: Task, name: str) -> PreTrainedModel:
    """A model with a trained prediction head."""
    model, untrained = task.load_model(name)
    if untrained:
        raise ValueError(f"'{name}' has no trained prediction head for the task '{task.name}': fine-tune it first.")
    return model


def student_of(options: Options) -> dict[str, float] | str:
    """The sizes of a new student, or the name of one."""
    if options.student:
        return options.student
    sizes = dict(zip(TINYBERT4, options.size, strict=True))
    optional = {"embedding_size": options.embedding_size, "dropout": options.dropout}
    return sizes | {name: value for name, value in optional.items() if value is not None}


def augmentation_of(options: Options) -> Augmentation | str | None:
    """The augmentation, with its model on an accelerator if there is one; "auto" as `task_distillation` takes it."""
    seed, copies = getattr(options, "seed", 0), {} if options.copies is None else {"copies": options.copies}
    match options.augmentation:
        case "none":
            return None
        case "auto" if options.copies is None:
            return "auto"
        case "auto" | "random_words":
            return RandomWords(seed=seed, **copies) if options.copies != 0 else None
    model, tokenizer = from_pretrained(AutoModelForMaskedLM, options.masked_lm), load_tokenizer(options.masked_lm)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    return MaskedWords(model, tokenizer, vectors, seed=seed, **copies)


def early_stopping_of(options: Options) -> EarlyStopping | None:
    """When the prediction phase stops; None for never."""
    if options.early_stopping_patience is None:
        return None
    return EarlyStopping(options.early_stopping_patience, options.early_stopping_threshold)


def trainer_arguments(options: Options) -> dict[str, Any]:
    """The `DistillationArguments` among the flags."""
    names = {field.name for field in dataclasses.fields(DistillationArguments)}
    passed = {name: value for name, value in vars(options).items() if name in names}
    # disable_tqdm follows from the verbosity of transformers otherwise
    return {"use_cpu": not torch.accelerator.is_available(), "disable_tqdm": False, **passed}
