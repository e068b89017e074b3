"""DistillationArguments: TrainingArguments and what the distillation objective needs, from code, flags or YAML."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..losses import (
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
from ..losses.attention import ATTENTION_HEADS
from ..losses.schedules import SCHEDULES
from ..teachers import COMBINATIONS

TEACHER_DTYPES = ("float32", "bfloat16", "float16")
TINYBERT_LOSSES = (AttentionLoss, HiddenLoss, EmbeddingLoss, PredictionLoss)
OTHER_LOSSES = (RelationLoss, MiniLMLoss, AttentionKLLoss, CosineLoss, PatienceLoss, SentenceLoss, TaskLoss)
LOSSES = {loss.name: loss for loss in (*TINYBERT_LOSSES, *OTHER_LOSSES)}
LOSS_TYPES = tuple(LOSSES)


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with the objective Σ λ_i·L_i of TinyBERT; works with `HfArgumentParser`.

    - `loss_type`: names of the losses, default the paper's four; `"task"` adds the student's own label loss,
      `"relation"` is MiniLMv2's, `"minilm"` MiniLM's, `"attention_kl"` compares attention after softmax, `"cosine"` is
      DistilBERT's, `"patience"` BERT-PKD's, `"sentence"` compares sentence embeddings. TinyBERT's
      intermediate step is `attention hidden embedding`, its prediction step `prediction`.
    - `loss_weights`: λ for each of them, in the same order; default 1.
    - `loss_schedules`: what becomes of each λ over the steps, in the same order: `"constant"` (default),
      `"linear_decay"`, `"linear_growth"` or `"cosine_decay"` (`scheduled_weight`); the log has it as `{name}_weight`.
    - `balance_losses`: at the first step the weights are multiplied so that all losses pull equally hard at the
      student, measured on the first micro-batch (`balance_factors`). Default False.
    - `layer_mapping`: `"uniform"`, `"top"`, `"bottom"`, `"skip"`, teacher layers as `"3,6,9,12"`, or a list
      (`map_layers`).
    - `temperature`: of the prediction loss, default 1.
    - `teacher_weights`: w for each of several teachers, made to sum to 1; default equal. Losses on layers are
      Σ_k w_k·L(student, teacher k), in the log also `{name}_loss_teacher{k}`.
    - `teacher_logits`: how the logits of several teachers become one: their weighted `"mean"` (default), or by
      `"confidence"`, the surer teacher counting for more (`combine_logits`).
    - `attention_heads`: of the attention loss, `"equal"` (default) or `"mean"`: where one model has n times the
      other's heads, the mean scores of each n are compared (`AttentionLoss`).
    - `relation_heads`: of the relation loss (MiniLMv2, `RelationLoss`), default the teacher's attention heads.
    - `teacher_dtype`: the teacher's weights and arithmetic, e.g. `"bfloat16"`; default as it is. The first log says by
      what share each loss changes for it, as `{name}_loss_dtype_error`. Activations that are kept come from the
      teacher as it is.
    - `teacher_cache_gb`: disk (10⁹ bytes, under `HF_DATASETS_CACHE`) that the teacher's hidden states, queries and
      keys may take, so that later epochs read them (`cache_activations`). Default 0: the teacher always runs.
    - `padding_free`: the layers of student and teachers compute on real tokens alone while `train` runs, so that
      batches of mixed lengths waste nothing; losses and gradients stay what they are, but for the label loss of
      question answering, where transformers takes padded tokens for possible answers. For BERT, RoBERTa, XLM-RoBERTa,
      CamemBERT, ELECTRA, DistilBERT, ALBERT. Default False.
    - `push_to_hub_min_retained`: share of the teacher's score, by `metric_for_best_model` on `eval_dataset`, that a
      student must keep to be pushed, e.g. 0.95; of a loss the share is teacher / student. Default: all are pushed.

    Raises ValueError for unknown or repeated losses, another number of weights, reentrant activation checkpointing, an
    unknown schedule, dtype, `teacher_logits` or `attention_heads`, or a share without a metric.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["attention", "hidden", "embedding", "prediction"],
        metadata={"help": f"Losses to add up, of: {', '.join(LOSS_TYPES)}."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each loss of loss_type, in the same order. Default: 1 each."}
    )
    loss_schedules: list[str] | None = field(
        default=None,
        metadata={"help": f"A schedule of each weight, of: {', '.join(SCHEDULES)}. Default: constant."},
    )
    balance_losses: bool = field(
        default=False,
        metadata={"help": "Scale the weights at the first step so that all losses have equal gradient norms."},
    )
    layer_mapping: str = field(
        default="uniform",
        metadata={"help": "Teacher layer of each student layer: uniform, top, bottom, skip, or 3,6,9,12 (from 1)."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the prediction loss."})
    teacher_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each of several teachers. Default: all equal."}
    )
    teacher_logits: str = field(
        default="mean", metadata={"help": f"Logits of several teachers, combined by: {', '.join(COMBINATIONS)}."}
    )
    attention_heads: str = field(
        default="equal",
        metadata={
            "help": "Heads of the attention loss: equal in number, or mean to average groups of the model with more."
        },
    )
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
    padding_free: bool = field(
        default=False, metadata={"help": "Run the layers of student and teachers on real tokens alone."}
    )
    push_to_hub_min_retained: float | None = field(
        default=None,
        metadata={
            "help": "Share of the teacher's score, by metric_for_best_model on eval_dataset, that the student must "
            "keep to be pushed, e.g. 0.95. Default: every student is pushed."
        },
    )

    def __post_init__(self):
        unknown = [name for name in self.loss_type if name not in LOSS_TYPES]
        if unknown or len(set(self.loss_type)) != len(self.loss_type) or not self.loss_type:
            raise ValueError(f"loss_type={self.loss_type}: give each at most once of {', '.join(LOSS_TYPES)}.")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses {self.loss_type}."
            )
        if self.layer_mapping == "skip" and "patience" in self.loss_type:
            raise ValueError("'patience' leaves the last pair out by itself: PKD-Skip is layer_mapping='uniform'.")
        if self.attention_heads not in ATTENTION_HEADS:
            raise ValueError(f"attention_heads={self.attention_heads!r}: give one of {', '.join(ATTENTION_HEADS)}.")
        if unknown := [name for name in self.loss_schedules or [] if name not in SCHEDULES]:
            raise ValueError(f"loss_schedules has {unknown}: give one a loss, of {', '.join(SCHEDULES)}.")
        if self.teacher_logits not in COMBINATIONS:
            raise ValueError(f"teacher_logits={self.teacher_logits!r}: give one of {', '.join(COMBINATIONS)}.")
        if self.balance_losses and self.torch_compile:
            raise ValueError("balance_losses needs gradients of each loss, which torch_compile frees: leave one out.")
        if self.padding_free and self.torch_compile:
            raise ValueError("padding_free makes shapes that torch_compile cannot know ahead: leave one out.")
        if self.teacher_dtype not in (None, *TEACHER_DTYPES):
            raise ValueError(f"teacher_dtype={self.teacher_dtype!r}: give one of {', '.join(TEACHER_DTYPES)}.")
        super().__post_init__()
        if self.push_to_hub_min_retained is not None:
            if self.push_to_hub_min_retained <= 0:
                raise ValueError("push_to_hub_min_retained is a share of the teacher's score: above 0, e.g. 0.95.")
            if self.metric_for_best_model is None:
                raise ValueError("push_to_hub_min_retained needs metric_for_best_model: the score to compare by.")
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
        """The loss modules that `loss_type`, `loss_weights` and each loss's own arguments describe."""
        own = {
            "attention": {"heads": self.attention_heads},
            "prediction": {"temperature": self.temperature},
            "relation": {"relation_heads": self.relation_heads},
        }
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        return [
            LOSSES[name](weight, **own.get(name, {})) for name, weight in zip(self.loss_type, weights, strict=True)
        ]
