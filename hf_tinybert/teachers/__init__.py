"""Teachers: loaded and frozen, read together, their logits and activations cached."""

from .ensemble import COMBINATIONS, Ensemble, Teaching, about_teacher, combine_logits, normalised
from .loading import load_teacher, load_teachers
from .logit_cache import cache_logits, pad_logits
from .teacher import TEACHER_LOGITS, TEACHER_ROW, Execution, Teacher

__all__ = [
    "COMBINATIONS",
    "TEACHER_LOGITS",
    "TEACHER_ROW",
    "Ensemble",
    "Execution",
    "Teacher",
    "Teaching",
    "about_teacher",
    "cache_logits",
    "combine_logits",
    "load_teacher",
    "load_teachers",
    "normalised",
    "pad_logits",
]
