"""What must hold between student, teacher, losses and data: checked before, or at the first step of, training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .activations import Activations, QueryKey
from .heads import logits_of
from .losses import DistillationLoss

logger = logging.get_logger(__name__)


def check_compatible(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    losses: Sequence[DistillationLoss],
    cached_logits: bool = False,
) -> None:
    """Raise ValueError or TypeError, naming what to change, where `losses` cannot teach `student` from `teacher`."""
    names = [loss.name for loss in losses]
    if len(set(names)) != len(names):
        raise ValueError(f"Two losses have the same name in {names}: give your own loss class a `name` of its own.")
    reads = frozenset().union(*(loss.reads for loss in losses))
    if teacher is None:
        if reads - {"loss"} - ({"logits"} if cached_logits else set()):
            raise ValueError(f"The losses {names} need a teacher: pass teacher_model.")
        return
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"The {role} must be a transformers PreTrainedModel, not {type(model).__name__}.")
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
    check_heads(student, teacher, losses)
    if "attentions" in reads:
        _check_checkpointing(student)
    if "logits" in reads:
        check_labels(student, teacher)


def check_vocabularies(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise ValueError where student and teacher have another number of token embeddings."""
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"The student's vocab_size is {student.config.vocab_size} and the teacher's {teacher.config.vocab_size}: "
            "both read the same token ids. Build the student with create_student(teacher, ...) and use its tokenizer, "
            "or bring it to the teacher's vocabulary with swap_vocabulary."
        )


def check_heads(student: PreTrainedModel, teacher: PreTrainedModel, losses: Sequence[DistillationLoss]) -> None:
    """Raise ValueError where a loss cannot compare the attention heads of student and teacher for their number."""
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
                "enable it with activation_checkpointing_kwargs={'use_reentrant': False}."
            )


def check_labels(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise ValueError where the prediction loss cannot compare the logits of student and teacher by position."""
    if type(student).__name__.endswith("ForPreTraining"):
        raise ValueError(
            f"The prediction loss does not cover {type(student).__name__}: take masked language models, or drop "
            "'prediction' from loss_type."
        )
    ours, theirs = logits_of(student), logits_of(teacher)
    if ours is not theirs:
        raise ValueError(
            f"The student's logits are {ours.value}, the teacher's {theirs.value}: give both a head of the same kind "
            "(and the same problem_type), or drop 'prediction' from loss_type."
        )
    check_label_names(student.config.id2label, teacher.config.id2label, "student")


def check_label_names(ours: Mapping[int, str], theirs: Mapping[int, str], whose: str) -> None:
    """Raise ValueError where `whose` labels and the teacher's are not the same in the same order, case aside."""
    ours, theirs = dict(ours), dict(theirs)
    generic = {f"LABEL_{index}" for index in (*ours, *theirs)}
    unnamed = [labels for labels in (ours, theirs) if set(labels.values()) <= generic]
    if len(unnamed) == 1:
        logger.warning(f"Only one of {whose} and teacher names its labels: their order is taken on trust ({unnamed}).")
    if len(ours) != len(theirs) or (not unnamed and _normalised(ours) != _normalised(theirs)):
        raise ValueError(
            f"The {whose}'s labels are {ours}, the teacher's {theirs}: their logits cannot be compared by position. "
            f"Give the {whose} the teacher's id2label and label2id, and the data set labels in that order."
        )


def _normalised(id2label: dict[int, str]) -> dict[int, str]:
    return {int(index): str(name).lower() for index, name in id2label.items()}


def check_columns(columns: Sequence[str], dataset: Any, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError where the data set has a column that the teacher takes and the data collator dropped."""
    present = getattr(dataset, "column_names", None) or []
    dropped = [name for name in columns if name in present and name not in inputs]
    if dropped:
        raise ValueError(
            f"The teacher takes {dropped}, which the data set has and the batch has not: make the data collator keep "
            "them."
        )


def check_mask(inputs: Mapping[str, Any], pad_token_id: int | None) -> None:
    """Raise ValueError where a batch has padding but no attention mask."""
    if inputs.get("attention_mask") is not None or pad_token_id is None or "input_ids" not in inputs:
        return
    if (inputs["input_ids"] == pad_token_id).any():
        raise ValueError(
            "The batch has padding but no attention_mask, so padding would be attended to and distilled: keep the "
            "tokenizer's attention_mask column in the data set and in the data collator."
        )


def check_finite(teacher: Activations) -> None:
    """Raise ValueError, naming the activation, where the teacher produced NaN or infinity."""
    for name, tensor in _named_tensors(teacher):
        if torch.isnan(tensor).any() or torch.isposinf(tensor).any():  # −inf is a mask
            raise ValueError(
                f"The teacher's {name} holds NaN or infinity: check its weights, its dtype (float16 overflows where "
                "bfloat16 does not) and that its tokenizer made these inputs."
            )


def check_activations(losses: Sequence[DistillationLoss], student: Activations, teacher: Activations) -> None:
    """Raise where the teacher is not finite, or where nothing of the student carries a gradient to a loss."""
    check_finite(teacher)
    for loss in losses:
        if "logits" in loss.reads and (student.logits is None or teacher.logits is None):
            raise ValueError(f"The {loss.name} loss needs logits from both models: choose heads that return them.")
    for name, tensor in _named_tensors(student):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"The student's {name} carries no gradient, so that its loss trains nothing: use non-reentrant "
                "activation checkpointing, and unfreeze the layers that are distilled."
            )


def _named_tensors(activations: Activations) -> list[tuple[str, Tensor]]:
    named = [("logits", activations.logits)]
    for loss, states in activations.projected_states.items():
        named += [(f"{loss} projection of layer {m}", state) for m, state in states.items()]
    if not activations.projected_states:
        named += [(f"hidden state {m}", state) for m, state in enumerate(activations.hidden_states or ())]
    for m, scores in enumerate(activations.attentions or (), start=1):
        factors = scores.vectors if isinstance(scores, QueryKey) else (scores,)  # None: no loss reads it
        named += [(f"attention scores of layer {m}", factor) for factor in factors]
    return [(name, tensor) for name, tensor in named if tensor is not None]
