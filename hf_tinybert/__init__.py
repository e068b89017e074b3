"""Layer-wise distillation of Transformer encoders as a drop-in `transformers.Trainer`: the public names."""

from .evaluation.plots import plot_attention, plot_latency, plot_losses, plot_similarity
from .evaluation.report import StudentReport
from .evaluation.sentence_embeddings import sentence_embeddings
from .formats.half_weights import save_half
from .formats.onnx_export import export_onnx, halve_onnx, load_onnx
from .formats.onnx_int8 import quantize_onnx
from .formats.openvino_export import export_openvino, load_openvino, quantize_openvino
from .layer_mapping import map_layers
from .lineage import DataRecord
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
from .models.vocabulary import transfer_vocabulary, trim_vocabulary
from .pipelines.doctor import diagnose
from .pipelines.general import general_distillation
from .pipelines.ship import ship_student
from .pipelines.task import task_distillation
from .pipelines.transfer_files import load_transfer
from .publishing.hub import push_folder
from .publishing.model_card import extend_card
from .students import TINYBERT4, TINYBERT6, create_student
from .tasks import (
    GLUE,
    SQUAD,
    SQUAD_V2,
    SWAG,
    Augmentation,
    CombinedAugmentation,
    MaskedWords,
    MultipleChoice,
    QuestionAnswering,
    RandomWords,
    Task,
    TextClassification,
    TokenClassification,
    UnlabelledText,
    WordVectors,
    read_conll,
    read_squad,
    squad_scores,
)
from .teachers import cache_logits
from .training.arguments import DistillationArguments
from .training.trainer import DistillationTrainer
from .version import __version__

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
    "CombinedAugmentation",
    "CosineLoss",
    "DataRecord",
    "DistillationArguments",
    "DistillationLoss",
    "DistillationTrainer",
    "EmbeddingLoss",
    "HiddenLoss",
    "MaskedWords",
    "MiniLMLoss",
    "MultipleChoice",
    "PatienceLoss",
    "PredictionLoss",
    "QuestionAnswering",
    "RandomWords",
    "RelationLoss",
    "SentenceLoss",
    "StudentReport",
    "Task",
    "TaskLoss",
    "TextClassification",
    "TokenClassification",
    "UnlabelledText",
    "WordVectors",
    "__version__",
    "cache_logits",
    "create_student",
    "diagnose",
    "export_onnx",
    "export_openvino",
    "extend_card",
    "general_distillation",
    "halve_onnx",
    "load_onnx",
    "load_openvino",
    "load_transfer",
    "map_layers",
    "plot_attention",
    "plot_latency",
    "plot_losses",
    "plot_similarity",
    "push_folder",
    "quantize_onnx",
    "quantize_openvino",
    "read_conll",
    "read_squad",
    "save_half",
    "sentence_embeddings",
    "ship_student",
    "squad_scores",
    "task_distillation",
    "transfer_vocabulary",
    "trim_vocabulary",
]
