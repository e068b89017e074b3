"""hf_tinybert: layer-wise distillation of Transformer encoders as a drop-in `transformers.Trainer`."""

from .arguments import DistillationArguments
from .augmentation import Augmentation, WordVectors
from .layer_mapping import map_layers
from .losses import (
    AttentionLoss,
    DistillationLoss,
    EmbeddingLoss,
    HiddenLoss,
    PredictionLoss,
    RelationLoss,
    TaskLoss,
)
from .pipelines import general_distillation, task_distillation
from .students import TINYBERT4, TINYBERT6, create_student
from .tasks import GLUE, Task
from .teachers import cache_logits
from .trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "GLUE",
    "TINYBERT4",
    "TINYBERT6",
    "AttentionLoss",
    "Augmentation",
    "DistillationArguments",
    "DistillationLoss",
    "DistillationTrainer",
    "EmbeddingLoss",
    "HiddenLoss",
    "PredictionLoss",
    "RelationLoss",
    "Task",
    "TaskLoss",
    "WordVectors",
    "cache_logits",
    "create_student",
    "general_distillation",
    "map_layers",
    "task_distillation",
]
