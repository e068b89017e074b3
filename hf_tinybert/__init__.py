"""hf_tinybert: layer-wise distillation of Transformer encoders as a drop-in `transformers.Trainer`."""

from .arguments import DistillationArguments
from .augmentation import Augmentation, WordVectors
from .doctor import diagnose
from .export import export_onnx, load_onnx, quantize_onnx, save_half
from .hub import push_folder
from .layer_mapping import map_layers
from .logit_cache import cache_logits
from .losses import (
    AttentionKLLoss,
    AttentionLoss,
    CosineLoss,
    DistillationLoss,
    EmbeddingLoss,
    HiddenLoss,
    MiniLMLoss,
    PatienceLoss,
    PredictionLoss,
    RelationLoss,
    SentenceLoss,
    TaskLoss,
)
from .model_card import extend_card
from .pipelines import general_distillation, task_distillation
from .plots import plot_attention, plot_latency, plot_losses, plot_similarity
from .report import StudentReport
from .sentence_embeddings import sentence_embeddings
from .students import TINYBERT4, TINYBERT6, create_student
from .tasks import (
    GLUE,
    SQUAD,
    SQUAD_V2,
    SWAG,
    MultipleChoice,
    QuestionAnswering,
    Task,
    TextClassification,
    TokenClassification,
    read_conll,
    read_squad,
    squad_scores,
)
from .trainer import DistillationTrainer
from .vocabulary import swap_vocabulary, trim_vocabulary

__version__ = "0.1.0"

__all__ = [
    "GLUE",
    "SQUAD",
    "SQUAD_V2",
    "SWAG",
    "TINYBERT4",
    "TINYBERT6",
    "AttentionKLLoss",
    "AttentionLoss",
    "Augmentation",
    "CosineLoss",
    "DistillationArguments",
    "DistillationLoss",
    "DistillationTrainer",
    "EmbeddingLoss",
    "HiddenLoss",
    "MiniLMLoss",
    "MultipleChoice",
    "PatienceLoss",
    "PredictionLoss",
    "QuestionAnswering",
    "RelationLoss",
    "SentenceLoss",
    "StudentReport",
    "Task",
    "TaskLoss",
    "TextClassification",
    "TokenClassification",
    "WordVectors",
    "cache_logits",
    "create_student",
    "diagnose",
    "export_onnx",
    "extend_card",
    "general_distillation",
    "load_onnx",
    "map_layers",
    "plot_attention",
    "plot_latency",
    "plot_losses",
    "plot_similarity",
    "push_folder",
    "quantize_onnx",
    "read_conll",
    "read_squad",
    "save_half",
    "sentence_embeddings",
    "squad_scores",
    "swap_vocabulary",
    "task_distillation",
    "trim_vocabulary",
]
