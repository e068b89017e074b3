"""hf_tinybert: layer-wise distillation of Transformer encoders as a drop-in `transformers.Trainer`."""

from .arguments import DistillationArguments
from .layer_mapping import map_layers
from .losses import AttentionLoss, DistillationLoss, EmbeddingLoss, HiddenLoss, PredictionLoss, TaskLoss
from .students import TINYBERT4, TINYBERT6, create_student
from .trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "TINYBERT4",
    "TINYBERT6",
    "AttentionLoss",
    "DistillationArguments",
    "DistillationLoss",
    "DistillationTrainer",
    "EmbeddingLoss",
    "HiddenLoss",
    "PredictionLoss",
    "TaskLoss",
    "create_student",
    "map_layers",
]
