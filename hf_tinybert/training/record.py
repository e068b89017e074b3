"""What a training adds to the lineage of its student."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..lineage import DataRecord, LossRecord, ModelRecord, Stage, TeacherRecord
from ..losses import DistillationLoss
from ..teachers import Teacher
from .arguments import DistillationArguments
from .objective import LayersRead


def describe_stage(
    losses: Sequence[DistillationLoss],
    teachers: Sequence[Teacher],
    args: DistillationArguments,
    data: DataRecord,
    augmentation: Mapping[str, Any] | None,
    batch_size: int,
) -> Stage:
    """The record of one training.

    Args:
        losses: The losses.
        teachers: The teachers; empty for losses that need none.
        args: The arguments of the training.
        data: The training data.
        augmentation: The settings that the data was augmented with; None if it was not.
        batch_size: Examples an optimizer step, over all processes.

    Returns:
        The stage that `hf_tinybert.lineage.recorded` adds to the student's lineage.
    """
    schedules = args.loss_schedules or ["constant"] * len(losses)
    return Stage(
        losses=[_loss_record(loss, schedule) for loss, schedule in zip(losses, schedules, strict=False)],
        teachers=[
            TeacherRecord(ModelRecord.from_config(teacher.model.config), teacher.weight, _layers_read(losses, teacher))
            for teacher in teachers
        ],
        teacher_logits=args.teacher_logits,
        data=data,
        augmentation=augmentation and dict(augmentation),
        epochs=None if args.max_steps > 0 else args.num_train_epochs,
        max_steps=args.max_steps if args.max_steps > 0 else None,
        learning_rate=args.learning_rate,
        batch_size=batch_size,
        seed=args.seed,
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        teacher_dtype=args.teacher_dtype,
    )


def _loss_record(loss: DistillationLoss, schedule: str) -> LossRecord:
    citation = None if loss.citation is None else str(loss.citation)
    return LossRecord(loss.name, float(loss.weight), dict(loss.settings), citation, schedule)


def _layers_read(losses: Sequence[DistillationLoss], teacher: Teacher) -> list[list[int]]:
    read = LayersRead.by(losses, teacher.layer_mapping)
    return [list(pair) for pair in sorted({*read.attention, *read.hidden})]
