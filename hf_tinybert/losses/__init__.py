"""Distillation losses: a pure function that holds the mathematics and a thin module that holds weight and layers."""

from .attention import AttentionLoss, attention_score_mse, score_matrix_mse
from .base import DistillationLoss
from .hidden import EmbeddingLoss, HiddenLoss, hidden_state_mse
from .prediction import PredictionLoss, soft_cross_entropy
from .relation import RelationLoss, relation_kl
from .task import TaskLoss

__all__ = [
    "AttentionLoss",
    "DistillationLoss",
    "EmbeddingLoss",
    "HiddenLoss",
    "PredictionLoss",
    "RelationLoss",
    "TaskLoss",
    "attention_score_mse",
    "hidden_state_mse",
    "relation_kl",
    "score_matrix_mse",
    "soft_cross_entropy",
]
