"""What the logits of a prediction head mean: one class for each kind of head.

A new kind of head is a subclass of `PredictionHead`: `prediction_head_of` finds it without registration.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from ..activations import token_mean
from .families import newest_match


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, attention_mask: Tensor | None = None
) -> Tensor:
    """−Σ_c softmax(z_T/t)_c · log softmax(z_S/t)_c of each example (TinyBERT, equation 10).

    The equation has no factor t²: put it into the weight of the loss. The original code also divides by C; this
    function does not.

    Args:
        student_logits: z_S, (B, C) or (B, S, C).
        teacher_logits: z_T, of the same shape.
        temperature: t > 0, default 1.
        attention_mask: (B, S), for logits of tokens: the result is the mean over real tokens.

    Returns:
        (B,) in float32.
    """
    target = F.softmax(teacher_logits.float() / temperature, dim=-1)
    values = -(target * F.log_softmax(student_logits.float() / temperature, dim=-1)).sum(-1)
    return token_mean(values, attention_mask) if values.dim() > 1 else values


def span_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, attention_mask: Tensor | None = None
) -> Tensor:
    """`soft_cross_entropy` over the real tokens, the mean of that of the start and that of the end.

    Args:
        student_logits: (B, S, 2), of the start and the end of an answer.
        teacher_logits: (B, S, 2).
        temperature: t > 0, default 1.
        attention_mask: (B, S); None if every token is real.

    Returns:
        (B,) in float32.
    """
    target, logits = (logits.float().mT / temperature for logits in (teacher_logits, student_logits))
    if attention_mask is not None:
        padding = ~attention_mask.bool()[:, None]
        target, logits = (values.masked_fill(padding, torch.finfo(values.dtype).min) for values in (target, logits))
    return soft_cross_entropy(logits, target)  # whose mean over tokens is here the mean over start and end


def soft_binary_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−[p·log q + (1 − p)·log(1 − q)] with p = σ(z_T/t) and q = σ(z_S/t), the mean over C independent labels.

    Args:
        student_logits: z_S, (B, C).
        teacher_logits: z_T, (B, C).
        temperature: t > 0, default 1.

    Returns:
        (B,) in float32.
    """
    target = (teacher_logits.float() / temperature).sigmoid()
    return F.binary_cross_entropy_with_logits(student_logits.float() / temperature, target, reduction="none").mean(-1)


class PredictionHead:
    """One kind of prediction head; this class implements what most kinds share.

    Attributes:
        name: How messages call the kind.
        label_names: The columns of a data set that hold the labels.
        cacheable: Whether the teacher's logits may be computed once for all epochs.
        names_classes: Whether `config.id2label` names the options that the head decides between.
        real_valued: Whether the logits are real-valued scores rather than options to decide between.
        input_axes: The axes of the model's inputs.
    """

    name: ClassVar[str]
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    cacheable: ClassVar[bool] = True
    names_classes: ClassVar[bool] = False
    real_valued: ClassVar[bool] = False
    input_axes: ClassVar[tuple[str, ...]] = ("batch", "sequence")

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        """Whether `model` has a head of this kind."""
        raise NotImplementedError

    def collator(
        self, model: PreTrainedModel, processing_class: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], Mapping[str, Any]]:
        """Transformers' function that pads labelled rows for `model`, to numpy arrays if it can make them."""
        if TokenClasses.matches(model):
            return DataCollatorForTokenClassification(processing_class, return_tensors="np")
        return DataCollatorWithPadding(processing_class, return_tensors="np")

    def logits(self, outputs: Mapping[str, Any]) -> Tensor | None:
        """The logits of one forward pass, (B, C) or (B, S, C); None if the model has no head."""
        return outputs.get("logits")

    def mask(self, labels: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
        """(B, S), true at the tokens whose logits are predictions; None if all are, or if there are no tokens."""
        return attention_mask

    def soft_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None
    ) -> Tensor:
        """The distance of the student's predictions to the teacher's; the default is `soft_cross_entropy`.

        Args:
            student_logits: (B, C) or (B, S, C).
            teacher_logits: Of the same shape.
            temperature: t > 0.
            mask: What `mask` returned, (B, S).

        Returns:
            (B,) in float32.
        """
        return soft_cross_entropy(student_logits, teacher_logits, temperature, mask)

    def entropy(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """The entropy of each distribution in nats, in a shape that broadcasts with `logits`."""
        return torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True)

    def pack(self, logits: Tensor, attention_mask: Tensor | None) -> list[np.ndarray]:
        """The logits of a batch as one array a row for a cache: (C,), or (n, C) of a row's n real tokens."""
        if logits.dim() == 3:
            return [values[mask.bool()].numpy() for values, mask in zip(logits, attention_mask, strict=True)]
        return list(logits.numpy())

    def unpack(self, rows: Sequence[Tensor], attention_mask: Tensor | None) -> Tensor:
        """The logits of a batch from the arrays of `pack`: (B, C), or (B, S, C) with zeros at padding.

        Raises:
            ValueError: If the rows of the batch have other numbers of tokens than the arrays.
        """
        if rows[0].dim() == 1:
            return torch.stack([*rows])
        mask = attention_mask.bool()
        if mask.sum(1).tolist() != [len(logits) for logits in rows]:
            raise ValueError(
                "The column teacher_logits has other numbers of tokens than its rows: it was made for other rows or "
                "by another tokenizer. Make it again with cache_logits."
            )
        logits = rows[0].new_zeros((*mask.shape, rows[0].shape[-1]))
        logits[mask] = torch.cat([*rows])
        return logits

    def decisions(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every decision that the head takes, as a softmax over K options.

        Args:
            logits: (rows, C) or (rows, S, C), padded.
            labels: (rows,) or (rows, S), −100 where there is no decision.

        Returns:
            The logits (N, K) and the labels (N,) of the N decisions.
        """
        real = labels != -100
        return logits[real], labels[real]

    def correct(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which decisions are correct, of a head that `names_classes`.

        Args:
            logits: (rows, C) or (rows, S, C), padded.
            labels: (rows,) or (rows, S), −100 where there is no decision.

        Returns:
            Whether each of N decisions is correct, and its class, (N,) each.
        """
        logits, labels = self.decisions(logits, labels)
        return logits.argmax(-1) == labels, labels


class Classes(PredictionHead):
    """A softmax over C classes of a sequence, (B, C). Also the kind of heads that no other class knows."""

    name = "classes"
    names_classes = True

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return True


class TokenClasses(PredictionHead):
    """A softmax over C classes of each token, (B, S, C)."""

    name = "classes of tokens"
    names_classes = True

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return type(model).__name__ in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()


class Regression(PredictionHead):
    """One or several real-valued scores of a sequence or token; the soft loss is the mean squared difference."""

    name = "scores"
    real_valued = True

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return model.config.num_labels == 1 or model.config.problem_type == "regression"

    def soft_loss(self, student_logits, teacher_logits, temperature=1.0, mask=None):
        squared = (student_logits.float() - teacher_logits.float()).square().mean(-1)
        return token_mean(squared, mask) if squared.dim() > 1 else squared

    def entropy(self, logits, mask=None):
        raise ValueError("teacher_logits='confidence' needs heads of two outputs or more: set teacher_logits='mean'.")

    def decisions(self, logits, labels):
        """The scores of each row, (N, C); of several a row, `labels` are (rows, C)."""
        real = labels != -100
        real = real.all(-1) if labels.ndim == logits.ndim else real
        return logits[real], labels[real]


class Labels(PredictionHead):
    """C independent labels of a sequence, a sigmoid each, (B, C)."""

    name = "several labels"
    names_classes = True

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return model.config.problem_type == "multi_label_classification"

    def soft_loss(self, student_logits, teacher_logits, temperature=1.0, mask=None):
        return soft_binary_cross_entropy(student_logits, teacher_logits, temperature)

    def entropy(self, logits, mask=None):
        p = logits.sigmoid()
        return torch.special.entr(p) + torch.special.entr(1 - p)

    def decisions(self, logits, labels):
        """Each label of each row: a softmax over (no, yes) of the logits (0, z)."""
        yes = logits.reshape(-1)
        return np.stack([np.zeros_like(yes), yes], axis=-1), labels.reshape(-1).astype(int)

    def correct(self, logits, labels):
        """Of each label that a row has: whether it is predicted, and its number."""
        rows, classes = labels.nonzero()
        return logits[rows, classes] > 0, classes


class Spans(PredictionHead):
    """The start and the end of an answer, each a softmax over the real tokens, (B, S, 2)."""

    name = "spans"
    label_names = ("start_positions", "end_positions")

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return type(model).__name__ in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()

    def logits(self, outputs):
        if "start_logits" not in outputs:
            return None
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)

    def soft_loss(self, student_logits, teacher_logits, temperature=1.0, mask=None):
        return span_cross_entropy(student_logits, teacher_logits, temperature, mask)

    def entropy(self, logits, mask=None):
        if mask is not None:
            logits = logits.masked_fill(~mask.bool()[..., None], -torch.inf)
        return torch.special.entr(logits.softmax(1)).sum(1, keepdim=True)

    def decisions(self, logits, labels):
        """The start and the end of each row: `logits` (rows, S, 2), `labels` (rows, 2)."""
        return logits.swapaxes(1, 2).reshape(-1, logits.shape[1]), labels.reshape(-1)


class Choices(PredictionHead):
    """A softmax over the choices of a row, (B, choices), each a sequence of its own."""

    name = "choices"
    input_axes = ("batch", "choices", "sequence")

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return type(model).__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()

    def collator(self, model, processing_class):
        return DataCollatorForMultipleChoice(processing_class)

    def mask(self, labels, attention_mask):
        return None


class MaskedTokens(PredictionHead):
    """A softmax over the vocabulary of each masked token, (B, S, V); other tokens are not predictions."""

    name = "masked tokens"
    cacheable = False

    @classmethod
    def matches(cls, model: PreTrainedModel) -> bool:
        return type(model).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()

    def collator(self, model, processing_class):
        return DataCollatorForTokenClassification(processing_class, return_tensors="np")

    def mask(self, labels, attention_mask):
        return attention_mask if labels is None else labels != -100

    def soft_loss(self, student_logits, teacher_logits, temperature=1.0, mask=None):
        if mask is None:
            return soft_cross_entropy(student_logits, teacher_logits, temperature)
        # A seventh of the tokens are masked, and each has as many logits as the vocabulary has tokens.
        masked = mask.nonzero(as_tuple=True)
        values = soft_cross_entropy(student_logits[masked], teacher_logits[masked], temperature)
        return token_mean(values.new_zeros(mask.shape).index_put(masked, values), mask)


def prediction_head_of(model: PreTrainedModel) -> PredictionHead:
    """The kind of prediction head of a model: the most specific, then the most recently defined, class that matches.

    The answer depends on the model's class and on `config.problem_type` and `config.num_labels`.
    """
    return newest_match(PredictionHead, lambda kind: kind.matches(model))()
