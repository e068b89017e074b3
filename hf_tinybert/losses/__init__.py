"""Distillation losses, one method a file.

Each has a pure function, which holds the mathematics, and a thin module, which holds the weight, the settings and the
citation and knows which layers it reads.
"""

from ..models.prediction_heads import soft_cross_entropy
from .attention import AttentionLoss, attention_score_mse, score_matrix_mse
from .attention_kl import AttentionKLLoss, attention_kl, score_matrix_kl
from .base import DistillationLoss
from .cosine import CosineLoss, cosine_distance
from .hidden import EmbeddingLoss, HiddenLoss, hidden_state_mse
from .minilm import MiniLMLoss
from .patience import PatienceLoss, first_token_distance
from .prediction import PredictionLoss
from .relation import RelationLoss, relation_kl
from .sentence import SentenceLoss
from .task import TaskLoss

__all__ = [
    "AttentionKLLoss",
    "AttentionLoss",
    "CosineLoss",
    "DistillationLoss",
    "EmbeddingLoss",
    "HiddenLoss",
    "MiniLMLoss",
    "PatienceLoss",
    "PredictionLoss",
    "RelationLoss",
    "SentenceLoss",
    "TaskLoss",
    "attention_kl",
    "attention_score_mse",
    "cosine_distance",
    "first_token_distance",
    "hidden_state_mse",
    "relation_kl",
    "score_matrix_kl",
    "score_matrix_mse",
    "soft_cross_entropy",
]
