"""DistillationArguments: TrainingArguments and what the distillation objective needs, from code, flags or YAML."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .losses import (
    AttentionLoss,
    DistillationLoss,
    EmbeddingLoss,
    HiddenLoss,
    PredictionLoss,
    RelationLoss,
    TaskLoss,
)

TEACHER_DTYPES = ("float32", "bfloat16", "float16")
LOSS_TYPES = ("attention", "hidden", "embedding", "prediction", "relation", "task")


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with the objective Σ λ_i·L_i of TinyBERT; works with `HfArgumentParser`.

    - `loss_type`: names of the losses, default the paper's four; `"task"` adds the student's own label loss,
      `"relation"` is MiniLMv2's. The paper's intermediate step is `attention hidden embedding`, its prediction step
      `prediction`.
    - `loss_weights`: λ for each of them, in the same order; default 1.
    - `layer_mapping`: `"uniform"`, `"top"`, `"bottom"`, teacher layers as `"3,6,9,12"`, or a list (`map_layers`).
    - `temperature`: of the prediction loss, default 1.
    - `relation_heads`: of the relation loss (MiniLMv2, `RelationLoss`), default the teacher's attention heads.
    - `teacher_dtype`: the teacher's weights and arithmetic, e.g. `"bfloat16"`; default as it is. The first log says by
      what share each loss changes for it, as `{name}_loss_dtype_error`. Activations that are kept come from the
      teacher as it is.
    - `teacher_cache_gb`: disk (10⁹ bytes, under `HF_DATASETS_CACHE`) that the teacher's hidden states, queries and
      keys may take, so that later epochs read them (`cache_activations`). Default 0: the teacher always runs.

    Raises ValueError for unknown or repeated losses, another number of weights, reentrant activation checkpointing or
    an unknown dtype.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["attention", "hidden", "embedding", "prediction"],
        metadata={"help": f"Losses to add up, of: {', '.join(LOSS_TYPES)}."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each loss of loss_type, in the same order. Default: 1 each."}
    )
    layer_mapping: str = field(
        default="uniform",
        metadata={"help": "Teacher layer of each student layer: uniform, top, bottom, or e.g. 3,6,9,12 (from 1)."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the prediction loss."})
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Heads of the relation loss, a divisor of both widths. Default: the teacher's."},
    )
    teacher_dtype: str | None = field(
        default=None, metadata={"help": "Run the teacher in bfloat16, float16 or float32. Default: as it is loaded."}
    )
    teacher_cache_gb: float = field(
        default=0.0, metadata={"help": "Disk that kept teacher activations may take, in GB. Default: none are kept."}
    )

    def __post_init__(self):
        unknown = [name for name in self.loss_type if name not in LOSS_TYPES]
        if unknown or len(set(self.loss_type)) != len(self.loss_type) or not self.loss_type:
            raise ValueError(f"loss_type={self.loss_type}: give each at most once of {', '.join(LOSS_TYPES)}.")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses {self.loss_type}."
            )
        if self.teacher_dtype not in (None, *TEACHER_DTYPES):
            raise ValueError(f"teacher_dtype={self.teacher_dtype!r}: give one of {', '.join(TEACHER_DTYPES)}.")
        super().__post_init__()
        if self.activation_checkpointing:
            if (self.activation_checkpointing_kwargs or {}).get("use_reentrant"):
                raise ValueError(
                    "Reentrant activation checkpointing cuts captured activations off the graph, so that their losses "
                    "train nothing: set activation_checkpointing_kwargs={'use_reentrant': False}."
                )
            # Trainer turns the search for unused parameters off for the sake of reentrant checkpointing, but losses on
            # intermediate layers leave the head unused
            if self.ddp_find_unused_parameters is None:
                self.ddp_find_unused_parameters = True

    def build_losses(self) -> list[DistillationLoss]:
        """The loss modules that `loss_type`, `loss_weights` and `temperature` describe."""
        losses = []
        for name, weight in zip(self.loss_type, self.loss_weights or [1.0] * len(self.loss_type), strict=True):
            if name == "prediction":
                losses.append(PredictionLoss(weight, self.temperature))
            elif name == "relation":
                losses.append(RelationLoss(weight, self.relation_heads))
            else:
                simple = (AttentionLoss, HiddenLoss, EmbeddingLoss, TaskLoss)
                losses.append(next(loss for loss in simple if loss.name == name)(weight))
        return losses
