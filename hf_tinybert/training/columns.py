"""Columns of the data: those that the teachers take, and those that the student does."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ..models.forward import forward_columns
from ..teachers import TEACHER_LOGITS, TEACHER_ROW, Teacher


def teacher_columns(teachers: Sequence[Teacher]) -> set[str]:
    """The columns that stand for teachers or are read by them."""
    # the encoder runs alone if no loss reads logits, and it may take more than the model names
    models = [model for teacher in teachers for model in (teacher.model, teacher.model.base_model)]
    return {TEACHER_LOGITS, TEACHER_ROW}.union(*map(forward_columns, models))


def holds_cached_logits(dataset: Any) -> bool:
    """Whether a data set has a column `teacher_logits`."""
    return TEACHER_LOGITS in (getattr(dataset, "column_names", None) or ())


def student_inputs(inputs: Mapping[str, Any], student: PreTrainedModel, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """`inputs` without what only the teacher has (cached logits, token types beside a DistilBERT student)."""
    teacher_only = teacher_columns(teachers) - set(forward_columns(student))
    return {name: value for name, value in inputs.items() if name not in teacher_only}
