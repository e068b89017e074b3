"""Text without labels: a teacher's answers stand in their place, and its agreement with the student is the score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from ..models.loading import load_config
from ..teachers.teacher import TEACHER_LOGITS
from .base import ExampleScorer
from .row_order import INPUTS, row_order
from .text_classification import TextClassification


@dataclass(frozen=True)
class UnlabelledText(TextClassification):
    """Text classification or regression without labels.

    Its validation rows have the column `teacher_logits`, the answers of a teacher or of another model, and are scored
    by `TeacherAgreement`.
    """

    evaluation_arguments: ClassVar[dict[str, Any]] = INPUTS

    @classmethod
    def from_task(cls, task: TextClassification) -> "UnlabelledText":
        """The same task for rows without labels."""
        return cls(**{field.name: getattr(task, field.name) for field in fields(task)})

    @classmethod
    def from_teacher(
        cls,
        name_or_path: str | Path,
        text: Sequence[str] = ("text",),
        max_length: int | None = None,
        name: str = "transfer",
    ) -> "UnlabelledText":
        """The task of a trained prediction head.

        Args:
            name_or_path: The Hub id or folder of the model.
            text: The one or two columns of text.
            max_length: Tokens of a row, at most; default 256.
            name: The name of the task.

        Raises:
            ValueError: If the model has no head for text classification or regression.
        """
        labels = cls.head_labels(name_or_path)
        if labels is None:
            raise ValueError(
                f"'{name_or_path}' has no prediction head for text classification: without labels, pass a teacher "
                "that is fine-tuned."
            )
        task = cls(name, tuple(text), labels, max_length=max_length)
        if len(labels) == 1:
            return task.as_regression()
        multi_label = load_config(name_or_path).problem_type == "multi_label_classification"
        return task.as_multi_label() if multi_label else task

    def scorer(self, rows: datasets.Dataset, tokens: datasets.Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
        """`TeacherAgreement`; of rows without `teacher_logits`, which have labels, `compute_metrics`."""
        if TEACHER_LOGITS not in rows.column_names:
            return self.compute_metrics
        return TeacherAgreement(np.asarray(rows[TEACHER_LOGITS][:]), tokens["input_ids"][:], self.multi_label)

    def with_answers(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Rows that have `teacher_logits` with a column `label`, which they answer: a class, a list of them, a score.

        Trainer computes metrics of rows that have labels alone.
        """
        logits = np.asarray(rows[TEACHER_LOGITS][:])
        if self.multi_label:
            return rows.add_column("label", [np.flatnonzero(row > 0).tolist() for row in logits])
        return rows.add_column("label", (logits[:, 0] if self.regression else logits.argmax(1)).tolist())


@dataclass(frozen=True)
class TeacherAgreement(ExampleScorer):
    """The metrics of a student on rows whose teacher logits are known; `score`, the agreement, selects the model.

    - Classes: `agreement`, the share of rows with the teacher's class, and `kl`, the mean KL(teacher ‖ student).
    - Several labels: `agreement`, the share of equal decisions, and `kl`, the mean over rows of the sum over labels.
    - A score: `agreement`, Pearson's correlation with the teacher's, and `rmse`, the root mean squared difference.

    Args:
        teacher_logits: (N, C) of the rows in their order.
        tokens: The tokens of the rows.
        multi_label: Whether each logit decides by itself.
    """

    teacher_logits: np.ndarray
    tokens: Sequence[Sequence[int]]
    multi_label: bool = False

    def score_examples(self, prediction: EvalPrediction) -> np.ndarray:
        """(N, 2): agreement and KL of each row; of a score, those of student and teacher."""
        teacher = np.asarray(self.teacher_logits, "float64")
        student = np.asarray(prediction.predictions, "float64").reshape(teacher.shape)
        student = student[row_order(prediction, self.tokens)]
        if teacher.shape[1] == 1:
            return np.hstack([student, teacher])
        if self.multi_label:
            same = ((student > 0) == (teacher > 0)).mean(1)
            student, teacher = (np.stack([-logits, logits], -1) / 2 for logits in (student, teacher))
        else:
            same = student.argmax(1) == teacher.argmax(1)
        log_q, log_p = (F.log_softmax(torch.from_numpy(logits), -1) for logits in (student, teacher))
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").flatten(1).sum(1)
        return np.column_stack([same, kl.numpy()])

    def summarise(self, examples: np.ndarray) -> dict[str, float]:
        """The metrics of these rows."""
        first, second = examples.T
        if self.teacher_logits.shape[1] == 1:
            centred = examples - examples.mean(0)
            scale = np.sqrt((centred**2).sum(0).prod())
            agreement = float(centred.prod(1).sum() / scale) if scale else 0.0
            values = {"agreement": agreement, "rmse": float(np.sqrt(((first - second) ** 2).mean()))}
        else:
            values = {"agreement": float(first.mean()), "kl": float(second.mean())}
        return values | {"score": values["agreement"]}
