"""Distillation losses: a pure function that holds the mathematics and a thin module that holds weight and layers."""

from .attention import AttentionLoss, attention_score_mse, score_matrix_mse
from .attention_kl import AttentionKLLoss, attention_kl, score_matrix_kl
from .base import DistillationLoss
from .cosine import CosineLoss, cosine_distance
from .hidden import EmbeddingLoss, HiddenLoss, hidden_state_mse
from .minilm import MiniLMLoss
from .patience import PatienceLoss, first_token_distance
from .prediction import PredictionLoss, soft_cross_entropy
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
