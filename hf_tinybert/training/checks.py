"""What must hold between student, teacher, losses and data: checked before training or in its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from ..activations import Activations
from ..losses import DistillationLoss
from ..models.checks import check_finite, check_prediction_heads, check_vocabularies, named_tensors
from ..models.sources import transformers_model
from .arguments import DistillationArguments


def distillation_arguments(args: TrainingArguments | None) -> DistillationArguments:
    """The arguments of a trainer that distils; the defaults if there are none.

    Raises:
        TypeError: If they are other `TrainingArguments`.
    """
    if args is None:
        return DistillationArguments(output_dir="tmp_trainer")
    if not isinstance(args, DistillationArguments):
        raise TypeError(
            "With a teacher, losses or a column teacher_logits, pass args=DistillationArguments(...), not "
            "TrainingArguments."
        )
    return args


def check_losses(losses: Sequence[DistillationLoss], has_teacher: bool, has_cached_logits: bool) -> None:
    """Check that the losses have names of their own, and that there is a teacher if they need one.

    Args:
        losses: The losses of a trainer.
        has_teacher: Whether a teacher was passed.
        has_cached_logits: Whether the training data has a column `teacher_logits`.

    Raises:
        ValueError: If two losses have the same name, or if they read what only a teacher has.
    """
    names = [loss.name for loss in losses]
    if len(set(names)) != len(names):
        raise ValueError(f"Two losses have the same name in {names}: give your own loss class a `name` of its own.")
    reads = frozenset().union(*(loss.reads for loss in losses))
    if not has_teacher and reads - {"loss"} - ({"logits"} if has_cached_logits else set()):
        enough = " The column teacher_logits is enough for loss_type=['prediction']." if has_cached_logits else ""
        raise ValueError(f"The losses {names} need a teacher: pass teacher_model.{enough}")


def check_parallelism(args: DistillationArguments, shards: bool) -> None:
    """Check that distillation works with the way in which devices share the training.

    Args:
        args: The arguments of the trainer.
        shards: Whether FSDP or DeepSpeed shard the student.

    Raises:
        ValueError: If it does not.
    """
    if args.n_gpu > 1:
        raise ValueError("nn.DataParallel is not supported: start one process a GPU with torchrun or accelerate.")
    if args.balance_losses and shards:
        raise ValueError("balance_losses does not work with FSDP or DeepSpeed: leave it out.")


def check_forgotten_teacher(args: Any) -> None:
    """Check that no argument of distillation is set for a trainer without a teacher.

    Raises:
        ValueError: If one differs from its default and the losses of `args` need a teacher; the message names it.
    """
    changed = args.changed_arguments() if isinstance(args, DistillationArguments) else []
    if changed and any(loss.reads - {"loss"} for loss in args.build_losses()):
        raise ValueError(f"{', '.join(changed)} of DistillationArguments need a teacher: pass teacher_model.")


def check_compatible(student: PreTrainedModel, teacher: PreTrainedModel, losses: Sequence[DistillationLoss]) -> None:
    """Check that `losses` can teach `student` from `teacher`.

    Raises:
        TypeError: If one of them is no transformers model.
        ValueError: If their configurations, vocabularies, attention heads or labels do not fit; the message says what
            to change.
    """
    reads = frozenset().union(*(loss.reads for loss in losses))
    for role, model in (("student", student), ("teacher", teacher)):
        if transformers_model(model, role) is not model:
            raise TypeError(f"The {role} is a {type(model).__name__}: pass the transformers model in it.")
        for flag in ("output_attentions", "output_hidden_states"):
            if getattr(model.config, flag, False):
                raise ValueError(
                    f"Set {flag} of the {role}'s config to False: the losses ask for what they need, and evaluation "
                    "would gather it for every example."
                )
        if model.config.return_dict is False:
            raise ValueError(f"Set return_dict of the {role}'s config to True: losses read outputs by name.")
    if teacher is student:
        raise ValueError("teacher_model is the student itself: pass a copy (copy.deepcopy) or another model.")
    check_vocabularies(student, teacher)
    check_attention_heads(student, teacher, losses)
    if "attentions" in reads:
        _check_checkpointing(student)
    if "logits" in reads:
        check_prediction_heads(student, teacher)


def check_attention_heads(
    student: PreTrainedModel, teacher: PreTrainedModel, losses: Sequence[DistillationLoss]
) -> None:
    """Check that every loss that reads attention can compare these numbers of attention heads.

    Raises:
        ValueError: If one cannot.
    """
    configs = student.config, teacher.config
    for loss in losses:
        if "attentions" in loss.reads:
            loss.check_heads(*(c.num_attention_heads for c in configs), *(c.hidden_size for c in configs))


def _check_checkpointing(student: PreTrainedModel) -> None:
    for module in student.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(module, "gradient_checkpointing", False) and getattr(function, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "The student uses reentrant activation checkpointing, under which the attention loss trains nothing: "
                "call student.activation_checkpointing_enable({'use_reentrant': False})."
            )


def check_columns(columns: Sequence[str], dataset: Any, inputs: Mapping[str, Any]) -> None:
    """Check that the data collator kept the columns of the data set that the teacher takes.

    Raises:
        ValueError: If it dropped one.
    """
    present = getattr(dataset, "column_names", None) or []
    dropped = [name for name in columns if name in present and name not in inputs]
    if dropped:
        raise ValueError(
            f"The teacher takes {dropped}, which the data set has and the batch has not: make the data collator keep "
            "them."
        )


def check_mask(inputs: Mapping[str, Any], pad_token_id: int | None) -> None:
    """Check that a batch with padding has an attention mask.

    Raises:
        ValueError: If it has none.
    """
    if inputs.get("attention_mask") is not None or pad_token_id is None or "input_ids" not in inputs:
        return
    if (inputs["input_ids"] == pad_token_id).any():
        raise ValueError(
            "The batch has padding but no attention_mask, so padding would be attended to and distilled: keep the "
            "tokenizer's attention_mask column in the data set and in the data collator."
        )


def check_activations(losses: Sequence[DistillationLoss], student: Activations, teacher: Activations) -> None:
    """Check what the losses read in the first step.

    Raises:
        ValueError: If the teacher's activations are not finite, or logits are missing.
        RuntimeError: If an activation of the student carries no gradient, so that its loss would train nothing.
    """
    check_finite(teacher)
    for loss in losses:
        if "logits" in loss.reads and (student.logits is None or teacher.logits is None):
            raise ValueError(f"The {loss.name} loss needs logits from both models: choose heads that return them.")
    for name, tensor in named_tensors(student):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"The student's {name} carries no gradient, so that its loss trains nothing: use non-reentrant "
                "activation checkpointing, and unfreeze the layers that are distilled."
            )
