"""DistillationArguments: TrainingArguments and what the distillation objective needs, from code, flags or YAML."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .losses import AttentionLoss, DistillationLoss, EmbeddingLoss, HiddenLoss, PredictionLoss, TaskLoss

LOSS_TYPES = ("attention", "hidden", "embedding", "prediction", "task")


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with the objective Σ λ_i·L_i of TinyBERT; works with `HfArgumentParser`.

    - `loss_type`: names of the losses, default the paper's four; `"task"` adds the student's own label loss. The
      paper's intermediate step is `attention hidden embedding`, its prediction step `prediction`.
    - `loss_weights`: λ for each of them, in the same order; default 1.
    - `layer_mapping`: `"uniform"`, `"top"`, `"bottom"`, teacher layers as `"3,6,9,12"`, or a list (`map_layers`).
    - `temperature`: of the prediction loss, default 1.

    Raises ValueError for unknown or repeated losses, another number of weights, reentrant activation checkpointing.
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

    def __post_init__(self):
        unknown = [name for name in self.loss_type if name not in LOSS_TYPES]
        if unknown or len(set(self.loss_type)) != len(self.loss_type) or not self.loss_type:
            raise ValueError(f"loss_type={self.loss_type}: give each at most once of {', '.join(LOSS_TYPES)}.")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses {self.loss_type}."
            )
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
            else:
                simple = (AttentionLoss, HiddenLoss, EmbeddingLoss, TaskLoss)
                losses.append(next(loss for loss in simple if loss.name == name)(weight))
        return losses
