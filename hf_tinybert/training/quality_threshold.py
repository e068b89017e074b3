"""The quality threshold of a push: the share of its teacher's score that a student must retain."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, Trainer

from .arguments import DistillationArguments


@dataclass(frozen=True)
class QualityThreshold:
    """A share of the best teacher's score, by `metric_for_best_model` on the evaluation data.

    Args:
        share: The share that a student must retain, above 0; of a loss the share is teacher / student.
        metric: The key of the score in the log, for example "eval_accuracy".
        greater_is_better: Whether a greater score is better.
        teacher_score: The score of the best teacher.
    """

    share: float
    metric: str
    greater_is_better: bool
    teacher_score: float

    def shortfall(self, score: float) -> str | None:
        """What a student with this score lacks, in a sentence; None if it reaches the threshold."""
        better, worse = (score, self.teacher_score) if self.greater_is_better else (self.teacher_score, score)
        if better >= self.share * worse:
            return None
        return (
            f"The student's {self.metric} is {score:.4g} and the teacher's {self.teacher_score:.4g}: "
            f"{better / worse:.1%} retained, under push_to_hub_min_retained={self.share:g}."
        )


def threshold_metric(args: DistillationArguments) -> str:
    """The key in the log of the score that the threshold compares."""
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def check_threshold(trainer: Trainer, teachers: Sequence[PreTrainedModel]) -> None:
    """Check that a trainer has what the threshold is measured with.

    Args:
        trainer: The trainer of the student.
        teachers: Its teachers.

    Raises:
        ValueError: If an argument of the trainer is missing, or with FSDP or DeepSpeed.
    """
    missing = [] if teachers else ["teacher_model"]
    if trainer.eval_dataset is None:
        missing.append("eval_dataset")
    if trainer.compute_metrics is None and threshold_metric(trainer.args) != "eval_loss":
        missing.append("compute_metrics")
    if missing:
        raise ValueError(f"push_to_hub_min_retained compares student and teacher: pass {', '.join(missing)} too.")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("push_to_hub_min_retained does not work with FSDP or DeepSpeed: leave it out.")


def measure_threshold(trainer: Trainer, teachers: Sequence[PreTrainedModel]) -> QualityThreshold:
    """Evaluate the teachers as a trainer evaluates its student.

    Args:
        trainer: The trainer of the student.
        teachers: Its teachers.

    Returns:
        The threshold, with the score of the best teacher.

    Raises:
        ValueError: If a teacher's score is missing or not positive.
    """
    args = trainer.args
    scores = [_teacher_score(trainer, teacher) for teacher in teachers]
    best = max(scores) if args.greater_is_better else min(scores)
    return QualityThreshold(args.push_to_hub_min_retained, threshold_metric(args), args.greater_is_better, best)


def _teacher_score(trainer: Trainer, teacher: PreTrainedModel) -> float:
    """The teacher's score; random state and teacher stay as they were."""
    args = copy.copy(trainer.args)
    args.push_to_hub, args.report_to = False, []
    with torch.random.fork_rng():  # training goes as it would without the threshold
        evaluator = Trainer(
            teacher,
            args,
            trainer.data_collator,
            eval_dataset=trainer.eval_dataset,
            processing_class=trainer.processing_class,
            compute_loss_func=trainer.compute_loss_func,
            compute_metrics=trainer.compute_metrics,
            preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
        )
        metrics = evaluator.evaluate(metric_key_prefix="teacher")
    evaluator.accelerator.unwrap_model(teacher, keep_fp32_wrapper=False)  # or autocast stays around it
    score = metrics.get(threshold_metric(args).replace("eval_", "teacher_", 1))
    if score is None or not score > 0:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is {score} for the teacher, "
            f"of which there is no share: choose one that is above 0, of {', '.join(metrics)}."
        )
    return score
