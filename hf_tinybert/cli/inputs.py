"""What the flags mean: the task and its rows, models, and the arguments of the pipelines."""

import argparse
import dataclasses
import random
from typing import Any

import datasets
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from ..models.loading import from_pretrained, load_tokenizer
from ..pipelines.data import KINDS, load_task
from ..pipelines.early_stopping import EarlyStopping
from ..students import TINYBERT4
from ..tasks import TASKS, Augmentation, MaskedWords, RandomWords, Task, WordVectors
from ..training.arguments import DistillationArguments

Options = argparse.Namespace


def task_and_data(options: Options, labels: tuple[str, ...] | None = None) -> tuple[Task, datasets.DatasetDict]:
    """The task and its splits.

    Args:
        options: The flags of `data_flags`.
        labels: The labels of a trained prediction head, to which those of the rows are matched.
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
    else:
        raise ValueError("There is no data: pass --data, a file, folder or Hub id, or --task, the name of a task.")
    if options.metric:
        task = task.select_by(*options.metric)
    if options.rows:
        chosen = random.Random(0).sample(range(len(data["train"])), min(options.rows, len(data["train"])))
        data["train"] = data["train"].select(chosen)
    return task, data


def head_labels(options: Options, model: str) -> tuple[str, ...] | None:
    """The labels of a model's prediction head for the task in the order of their ids; None if it has no such head."""
    return KINDS[options.kind].head_labels(model)


def fine_tuned_model(task: Task, name: str) -> PreTrainedModel:
    """A model with a trained prediction head."""
    model, untrained = task.load_model(name)
    if untrained:
        raise ValueError(f"'{name}' has no trained prediction head for {task.name}: fine-tune it first.")
    return model


def student_of(options: Options) -> dict[str, float] | str:
    """The sizes of a new student, or the name of one."""
    if options.student:
        return options.student
    sizes = dict(zip(TINYBERT4, options.size, strict=True))
    optional = {"embedding_size": options.embedding_size, "dropout": options.dropout}
    return sizes | {name: value for name, value in optional.items() if value is not None}


def augmentation_of(options: Options) -> Augmentation:
    """The augmentation, with its model on an accelerator if there is one."""
    seed = getattr(options, "seed", 0)
    if options.augmentation == "random_words":
        return RandomWords(options.copies, seed=seed)
    model, tokenizer = from_pretrained(AutoModelForMaskedLM, options.masked_lm), load_tokenizer(options.masked_lm)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    return MaskedWords(model, tokenizer, vectors, copies=options.copies, seed=seed)


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
