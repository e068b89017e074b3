"""What a training writes into the student's lineage."""

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
        losses: Its losses.
        teachers: Its teachers.
        args: Its arguments.
        data: Its training data.
        augmentation: The settings that the data was augmented with.
        batch_size: Examples an optimizer step, over all processes.
    """
    schedules = args.loss_schedules or ["constant"] * len(losses)
    return Stage(
        losses=[
            LossRecord(loss.name, loss.weight, loss.settings, loss.citation, schedule)
            for loss, schedule in zip(losses, schedules, strict=False)
        ],
        teachers=[
            TeacherRecord(ModelRecord.from_config(teacher.model.config), teacher.weight, _layers(losses, teacher))
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
    )


def _layers(losses: Sequence[DistillationLoss], teacher: Teacher) -> list[list[int]]:
    read = LayersRead.by(losses, teacher.layer_mapping)
    return [list(pair) for pair in sorted({*read.attention, *read.hidden})]
