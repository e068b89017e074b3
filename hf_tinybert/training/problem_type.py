"""The kind of a sequence classification head, decided before training from configurations and labels.

Transformers decides it in the first forward pass with labels and writes it into the configuration. Distillation may
come to such a pass only when it evaluates, and its loss would change with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from ..models.prediction_heads import Classes, Labels, Regression, TokenClasses, prediction_head_of
from ..teachers import TEACHER_LOGITS

CLASSES, SEVERAL_LABELS, SCORES = "single_label_classification", "multi_label_classification", "regression"


def decide_problem_types(
    trainer: Trainer,
    teachers: Sequence[PreTrainedModel],
    rows: Iterable[Mapping[str, Any]],
    collate: Callable[[list[dict]], Mapping[str, Any]],
) -> None:
    """Set `config.problem_type` of student and teachers where it is None, as their own label loss would.

    A student takes it from its teacher, if that has one, and otherwise from the labels, as a teacher does. Models of
    other kinds than sequence classification have no such setting, and without labels nothing is decided.

    Args:
        trainer: The trainer of the student.
        teachers: The teachers.
        rows: Rows of the training data; none if they cannot be read yet.
        collate: Rows → a batch.

    Raises:
        ValueError: If the student cannot be trained or evaluated on such labels.
    """
    student: Any = trainer.model
    if not _is_sequence_classifier(student):
        return
    # labels that a function of the user's or the label smoother takes never reach the models
    reach_models = trainer.compute_loss_func is None and trainer.label_smoother is None
    collated = _labels(rows, trainer.eval_dataset, collate) if reach_models else None
    for model in (model for model in (student, *teachers) if _is_undecided(model)):
        known = {teacher.config.problem_type for teacher in teachers if _is_sequence_classifier(teacher)} - {None}
        known = known if model is student else set()
        if len(known) == 1:
            model.config.problem_type = known.pop()
        elif collated is not None:
            model.config.problem_type = problem_type_of(collated, model.config.num_labels)
    kinds = {model.config.problem_type for model in (student, *teachers) if _is_sequence_classifier(model)}
    if collated is not None and len(kinds) == 1 and kinds != {None}:
        check_labels(collated, student.config.num_labels, student.config.problem_type)


def problem_type_of(labels: Tensor, num_labels: int) -> str:
    """The `problem_type` of a sequence classification head with these labels; transformers' own rule.

    Args:
        labels: (B,) or (B, C).
        num_labels: The number of the head's outputs.
    """
    if num_labels == 1:
        return SCORES
    return SEVERAL_LABELS if labels.is_floating_point() or labels.dim() > 1 else CLASSES


def check_labels(labels: Tensor, num_labels: int, problem_type: str) -> None:
    """Check that the label loss of a sequence classification head can be computed.

    Args:
        labels: (B,) or (B, C).
        num_labels: The number of the head's outputs, C.
        problem_type: Its `config.problem_type`.

    Raises:
        ValueError: If it cannot; the message says what the labels have to be.
    """
    per_row, floating = labels[0].numel(), labels.is_floating_point()
    head = f"The student has num_labels={num_labels} and problem_type='{problem_type}'"
    kind = f"{per_row} {'real number' if floating else 'integer'}{'' if per_row == 1 else 's'} a row"
    if problem_type == CLASSES and (per_row != 1 or floating):
        raise ValueError(
            f"{head}, but the column of labels holds {kind}: make it one integer a row, or set problem_type to "
            f"'{SEVERAL_LABELS}' or '{SCORES}'."
        )
    if problem_type == SEVERAL_LABELS and (per_row != num_labels or not floating):
        raise ValueError(
            f"{head}, but the column of labels holds {kind}: for several labels make it a list of {num_labels} "
            "numbers of type float32 a row, 1.0 for each label that the row has and 0.0 for the others; for classes "
            "make it one integer a row."
        )
    if problem_type == SCORES and per_row != num_labels:
        raise ValueError(f"{head}, but the column of labels holds {kind}: make it {num_labels} a row.")


def _labels(rows: Iterable[Mapping[str, Any]], eval_dataset: Any, collate) -> Tensor | None:
    """The labels of a row of the training data or, if that has none, of the evaluation data."""
    if isinstance(eval_dataset, Mapping):
        eval_dataset = next(iter(eval_dataset.values()), None)
    for row in (*islice(rows, 1), *islice(eval_dataset or (), 1)):
        with torch.random.fork_rng(devices=[]):  # training goes as it would without this look
            batch = collate([{name: value for name, value in row.items() if name != TEACHER_LOGITS}])
        if isinstance(batch.get("labels"), Tensor):
            return batch["labels"]
    return None


def _is_sequence_classifier(model: Any) -> bool:
    if not isinstance(model, PreTrainedModel) or model.base_model is model or TokenClasses.matches(model):
        return False
    return type(prediction_head_of(model)) in (Classes, Labels, Regression)


def _is_undecided(model: Any) -> bool:
    return _is_sequence_classifier(model) and model.config.problem_type is None
