"""Teachers as users pass them: names, models and what holds a model. Their tokens are checked."""

import os
from typing import Any

from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from ..models.loading import load_teacher_model
from ..models.sources import transformers_model
from ..models.vocabulary import check_same_tokens, own_tokenizer, tokenizer_beside
from .ensemble import about_teacher


def load_teacher(teacher: Any, processing_class: Any = None) -> PreTrainedModel:
    """A teacher by the class that its configuration names, head included, or a model as it is.

    Args:
        teacher: A Hub id, a local folder, a model, or what holds one (`models.sources.transformers_model`).
        processing_class: The student's tokenizer, whose tokens must have the same ids as in the teacher's own. That of
            a model is looked for where it was loaded from, without asking the Hub.

    Raises:
        TypeError: If it is no model and holds none.
        OSError: If there is no such model, here or on the Hub.
        ValueError: If the configuration names no class of transformers (remote code never runs from here), if the
            files lack weights of the head (an untrained one would teach noise), or if the tokenizers differ.
    """
    by_name, compares = isinstance(teacher, str | os.PathLike), isinstance(processing_class, PreTrainedTokenizerBase)
    model = None if by_name else transformers_model(teacher, "teacher")
    if compares and (tokenizer := own_tokenizer(teacher) if by_name else _tokenizer(teacher, model)) is not None:
        check_same_tokens(processing_class, tokenizer)
    return load_teacher_model(teacher) if by_name else model


def load_teachers(teachers: Any, processing_class: Any = None) -> list[PreTrainedModel]:
    """Models from one or several teachers of any kind; none from None (`load_teacher`)."""
    several = list(teachers) if isinstance(teachers, list | tuple) else [teachers]
    several = [teacher for teacher in several if teacher is not None]
    models = []
    for number, teacher in enumerate(several, start=1):
        with about_teacher(number, len(several)):
            models.append(load_teacher(teacher, processing_class))
    return models


def _tokenizer(teacher: Any, model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    return teacher.tokenizer if isinstance(teacher, Pipeline) else tokenizer_beside(model)
