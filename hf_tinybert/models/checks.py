"""What must hold between the models that are compared, whatever the losses."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..activations import Activations, QueryKey
from .prediction_heads import prediction_head_of

logger = logging.get_logger(__name__)

PADDING_ROWS = 128  # embedding tables are padded to a multiple of this or less


def check_vocabularies(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Check that student and teacher have as many token embeddings as each other.

    Raises:
        ValueError: If they do not.
    """
    rows, teacher_rows = student.config.vocab_size, teacher.config.vocab_size
    if rows == teacher_rows:
        return
    unused = ""
    if abs(rows - teacher_rows) < PADDING_ROWS:
        unused = (
            "If only unused rows at the end of the embedding tables differ, call "
            f"student.resize_token_embeddings({teacher_rows}). Otherwise build "
        )
    raise ValueError(
        f"The student's vocab_size is {rows} and the teacher's {teacher_rows}: both read the same token ids. "
        f"{unused or 'Build '}the student with create_student(teacher, ...) and use its tokenizer, or bring it to the "
        "teacher's vocabulary with transfer_vocabulary."
    )


def check_prediction_heads(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Check that the logits of student and teacher can be compared position by position.

    Raises:
        ValueError: If the heads are of different kinds, or their labels differ in name or order.
    """
    if type(student).__name__.endswith("ForPreTraining"):
        raise ValueError(
            f"The prediction loss does not cover {type(student).__name__}: take masked language models, or drop "
            "'prediction' from loss_type."
        )
    student_head, teacher_head = prediction_head_of(student), prediction_head_of(teacher)
    if type(student_head) is not type(teacher_head):
        raise ValueError(
            f"The student's logits are {student_head.name}, the teacher's {teacher_head.name}: give both a head of "
            "the same kind (and the same problem_type), or drop 'prediction' from loss_type."
        )
    check_label_names(student.config.id2label, teacher.config.id2label, "student")


def check_label_names(labels: Mapping[int, str], teacher_labels: Mapping[int, str], whose: str) -> None:
    """Check that `labels` and the teacher's are the same in the same order, apart from case.

    Labels without names (LABEL_0, …) on one side only are logged as a warning.

    Args:
        labels: id → name.
        teacher_labels: id → name.
        whose: What the messages call the owner of `labels`, for example "student".

    Raises:
        ValueError: If names, order or number differ.
    """
    labels, teacher_labels = dict(labels), dict(teacher_labels)
    generic = {f"LABEL_{index}" for index in (*labels, *teacher_labels)}
    unnamed = [names for names in (labels, teacher_labels) if set(names.values()) <= generic]
    if len(unnamed) == 1:
        logger.warning(f"Only one of {whose} and teacher names its labels: their order is taken on trust ({unnamed}).")
    same = _normalised(labels) == _normalised(teacher_labels)
    if len(labels) != len(teacher_labels) or not (unnamed or same):
        remedy = (
            "Make the task with the labels of the teacher: from_dataset(..., labels=head_labels(teacher))"
            if whose == "task"
            else f"Give the {whose} the teacher's id2label and label2id, and the data set labels in that order"
        )
        raise ValueError(
            f"The {whose}'s labels are {labels}, the teacher's {teacher_labels}: their logits cannot be compared by "
            f"position. {remedy}."
        )


def _normalised(id2label: dict[int, str]) -> dict[int, str]:
    return {int(index): str(name).lower() for index, name in id2label.items()}


def check_finite(teacher: Activations) -> None:
    """Check that the teacher produced numbers.

    Raises:
        ValueError: If an activation holds NaN or infinity; the message names it.
    """
    if (name := non_finite(teacher)) is not None:
        raise ValueError(
            f"The teacher's {name} holds NaN or infinity: check its weights, its dtype (float16 overflows where "
            "bfloat16 does not) and that its tokenizer made these inputs."
        )


def non_finite(activations: Activations) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all are finite."""
    for name, tensor in named_tensors(activations):
        if torch.isnan(tensor).any() or torch.isposinf(tensor).any():  # −inf is a mask
            return name
    return None


def named_tensors(activations: Activations) -> list[tuple[str, Tensor]]:
    """Every tensor that the losses read, with the name that messages give it."""
    named = [("logits", activations.logits)]
    for loss, states in activations.projected_states.items():
        named += [(f"{loss} projection of layer {m}", state) for m, state in states.items()]
    if not activations.projected_states:
        named += [(f"hidden state {m}", state) for m, state in enumerate(activations.hidden_states or ())]
    for m, scores in enumerate(activations.attentions or (), start=1):
        factors = scores.vectors if isinstance(scores, QueryKey) else (scores,)
        named += [(f"attention scores of layer {m}", factor) for factor in factors]
    return [(name, tensor) for name, tensor in named if tensor is not None]
