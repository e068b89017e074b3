"""How far a student gives its teacher's answers: the score of rows that have no labels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from .base import ExampleScorer


@dataclass(frozen=True)
class TeacherAgreement(ExampleScorer):
    """The metrics of a student on rows whose teacher logits are known; `score`, the agreement, selects the model.

    - Classes: `agreement`, the share of rows with the teacher's class, and `kl`, the mean KL(teacher ‖ student).
    - Several labels: `agreement`, the share of equal decisions, and `kl`, the mean over rows of the sum over labels.
    - A score: `agreement`, Pearson's correlation with the teacher's, and `rmse`, the root mean squared difference.

    Args:
        teacher_logits: (N, C) of the rows in their order.
        multi_label: Whether each logit decides by itself.
    """

    teacher_logits: np.ndarray
    multi_label: bool = False

    def score_examples(self, prediction: EvalPrediction) -> np.ndarray:
        """(N, 2): agreement and KL of each row; of a score, those of student and teacher."""
        teacher = np.asarray(self.teacher_logits, "float64")
        student = np.asarray(prediction.predictions, "float64").reshape(teacher.shape)
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
