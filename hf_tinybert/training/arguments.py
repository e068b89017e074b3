"""DistillationArguments: TrainingArguments with the arguments of distillation, from code, flags, JSON or YAML."""

import argparse
from dataclasses import MISSING, dataclass, field, fields

from transformers import HfArgumentParser, TrainingArguments

from .. import losses
from ..losses import DistillationLoss
from ..losses.attention import ATTENTION_HEADS
from ..losses.schedules import SCHEDULES
from ..native_dtypes import DTYPES, check_dtype
from ..teachers import COMBINATIONS

# Names for the common cases; any other loss is passed as `losses=[...]`.
LOSSES: dict[str, type[DistillationLoss]] = {
    loss.name: loss
    for loss in (
        losses.AttentionLoss,
        losses.HiddenLoss,
        losses.EmbeddingLoss,
        losses.PredictionLoss,
        losses.RelationLoss,
        losses.MiniLMLoss,
        losses.AttentionKLLoss,
        losses.CosineLoss,
        losses.PatienceLoss,
        losses.SentenceLoss,
        losses.TaskLoss,
    )
}


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` with the objective Σ λ_i·L_i (TinyBERT, Jiao et al., 2020, equation 6).

    It works with `HfArgumentParser`: every argument is a flag, and a key of a JSON or YAML file.

    Args:
        loss_type: Names of the losses L_i; default "attention", "hidden", "embedding" and "prediction", those of
            TinyBERT. Its intermediate phase is the first three, its prediction phase the last one. The others are
            "relation" (MiniLMv2), "minilm" (MiniLM), "attention_kl" (attention probabilities), "cosine" (DistilBERT),
            "patience" (BERT-PKD), "sentence" (sentence embeddings) and "task" (the student's own label loss). They
            cover the common cases; any other `DistillationLoss` is passed to the trainer as `losses`.
        loss_weights: λ_i of each loss, in the order of `loss_type`; default 1 each.
        loss_schedules: The course of each λ_i over the optimizer steps, in the order of `loss_type`: "constant",
            "linear_decay", "linear_growth" or "cosine_decay" (`scheduled_weight`); default constant. The log has the
            present weight as `{name}_weight`.
        balance_losses: Whether the weights are scaled in the first step so that the gradients of all losses have equal
            norms, measured on the first micro-batch (`balance_factors`); default False.
        layer_mapping: The teacher layer of each student layer: "uniform" (default), "top", "bottom", "skip", teacher
            layers such as "3,6,9,12", or a list (`map_layers`).
        temperature: The temperature of the prediction loss, default 1.
        teacher_weights: w_k of each of several teachers, scaled to the sum 1; default equal. A loss that reads layers
            is Σ_k w_k·L(student, teacher k); the log has each part as `{name}_loss_teacher{k}`.
        teacher_logits: How the logits of several teachers are combined: "mean" (default), their weighted mean, or
            "confidence", which gives more weight to the more certain teacher (`combine_logits`).
        attention_heads: How the attention loss compares attention heads: "equal" (default) needs equal numbers,
            "mean" averages the scores of groups of heads in the model with more (`AttentionLoss`).
        relation_heads: The number of relation heads of the relation loss (`RelationLoss`); default the teacher's
            number of attention heads.
        teacher_dtype: The data type of the teacher's weights and arithmetic: "float32", "bfloat16", "float16" or
            "auto"; default as it is loaded. The first log has the share by which each loss changes, as
            `{name}_loss_dtype_error`. "auto" brings a teacher in float32 to bfloat16 if its device multiplies bfloat16
            natively and each loss of the first batch changes by less than 0.1 %. Otherwise the teacher stays as it is
            loaded, and the log says why. A training that goes on from a checkpoint keeps the decision, unless its
            device does not multiply bfloat16 natively. The data type of cached activations is chosen before the first
            step: "auto" is bfloat16 if that loses less than 0.1 % of their variance on 16 rows.
        teacher_cache_gb: The disk space that cached hidden states, queries and keys of the teacher may take under
            `HF_DATASETS_CACHE`, in units of 10⁹ bytes; default 0, which caches nothing. Later epochs read the cache
            instead of running the teacher.
        padding_free: Whether the layers of student and teachers compute on real tokens alone while `train` runs;
            default False. Losses and gradients do not change, except the label loss of question answering, for which
            transformers counts padded tokens as possible answers. For BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA,
            DistilBERT and ALBERT.
        push_to_hub_min_retained: The quality threshold: the share of the teacher's score that a student must retain to
            be pushed, such as 0.95. The score is `metric_for_best_model` on `eval_dataset`; for a loss the share is
            teacher / student. Default: every student is pushed.

    All other arguments are those of `transformers.TrainingArguments`.

    Raises:
        ValueError: If a loss, schedule, data type, `teacher_logits` or `attention_heads` is unknown, a loss is
            repeated, the numbers of losses and weights differ, activation checkpointing is reentrant, `torch_compile`
            is combined with `balance_losses` or `padding_free`, or `push_to_hub_min_retained` has no metric.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["attention", "hidden", "embedding", "prediction"],
        metadata={"help": f"Losses to add up, of: {', '.join(LOSSES)}."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "The weight of each loss, in the order of loss_type. Default: 1 each."}
    )
    loss_schedules: list[str] | None = field(
        default=None,
        metadata={"help": f"The schedule of each weight, of: {', '.join(SCHEDULES)}. Default: constant."},
    )
    balance_losses: bool = field(
        default=False,
        metadata={"help": "Scale the weights in the first step so that the gradients of all losses have equal norms."},
    )
    layer_mapping: str = field(
        default="uniform",
        metadata={
            "help": "The teacher layer of each student layer: uniform, top, bottom, skip, or 3,6,9,12 (from 1)."
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "The temperature of the prediction loss."})
    teacher_weights: list[float] | None = field(
        default=None, metadata={"help": "The weight of each of several teachers. Default: equal."}
    )
    teacher_logits: str = field(
        default="mean",
        metadata={"help": f"How the logits of several teachers are combined, of: {', '.join(COMBINATIONS)}."},
    )
    attention_heads: str = field(
        default="equal",
        metadata={
            "help": "Attention heads in the attention loss: equal in number, or mean, which averages groups of heads."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Relation heads, a divisor of both hidden sizes. Default: the teacher's attention heads."},
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": f"The data type of the teacher, of: {', '.join(DTYPES)}. Default: as it is loaded."},
    )
    teacher_cache_gb: float = field(
        default=0.0,
        metadata={"help": "Disk space for cached activations of the teacher, in GB. Default: nothing is cached."},
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Run the layers of student and teachers on real tokens alone."}
    )
    push_to_hub_min_retained: float | None = field(
        default=None,
        metadata={
            "help": "The share of the teacher's score, by metric_for_best_model on eval_dataset, that a student must "
            "retain to be pushed, e.g. 0.95. Default: every student is pushed."
        },
    )

    def __post_init__(self):
        unknown = [name for name in self.loss_type if name not in LOSSES]
        if unknown or len(set(self.loss_type)) != len(self.loss_type) or not self.loss_type:
            raise ValueError(f"loss_type={self.loss_type}: give each name at most once, of {', '.join(LOSSES)}.")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses {self.loss_type}."
            )
        if self.layer_mapping == "skip" and "patience" in self.loss_type:
            raise ValueError("'patience' leaves the last pair out by itself: PKD-Skip is layer_mapping='uniform'.")
        if self.attention_heads not in ATTENTION_HEADS:
            raise ValueError(f"attention_heads={self.attention_heads!r}: give one of {', '.join(ATTENTION_HEADS)}.")
        if unknown := [name for name in self.loss_schedules or [] if name not in SCHEDULES]:
            raise ValueError(f"loss_schedules has {unknown}: give one for each loss, of {', '.join(SCHEDULES)}.")
        if self.teacher_logits not in COMBINATIONS:
            raise ValueError(f"teacher_logits={self.teacher_logits!r}: give one of {', '.join(COMBINATIONS)}.")
        if self.balance_losses and self.torch_compile:
            raise ValueError(
                "balance_losses needs the gradients of each loss, which torch_compile frees: leave one out."
            )
        if self.padding_free and self.torch_compile:
            raise ValueError("padding_free makes shapes that torch_compile cannot know in advance: leave one out.")
        check_dtype(self.teacher_dtype, "teacher_dtype")
        self._check_numbers()
        super().__post_init__()
        if self.push_to_hub_min_retained is not None:
            if self.push_to_hub_min_retained <= 0:
                raise ValueError("push_to_hub_min_retained is a share of the teacher's score: above 0, e.g. 0.95.")
            if self.metric_for_best_model is None:
                raise ValueError("push_to_hub_min_retained needs metric_for_best_model, the score to compare by.")
        if self.activation_checkpointing:
            if (self.activation_checkpointing_kwargs or {}).get("use_reentrant"):
                raise ValueError(
                    "Reentrant activation checkpointing detaches captured activations from the graph, so that their "
                    "losses train nothing: set activation_checkpointing_kwargs={'use_reentrant': False}."
                )
            # Trainer turns the search for unused parameters off for the sake of reentrant checkpointing, but losses on
            # intermediate layers leave the prediction head unused
            if self.ddp_find_unused_parameters is None:
                self.ddp_find_unused_parameters = True

    def _check_numbers(self) -> None:
        """What Trainer finds out later, or not at all."""
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise ValueError(f"{name}={value}: give at least 1.")
        for name in ("learning_rate", "num_train_epochs", "teacher_cache_gb"):
            if isinstance(value := getattr(self, name), int | float) and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: give a finite number that is not below 0.")
        for name in ("seed", "data_seed"):
            if isinstance(value := getattr(self, name), int) and not 0 <= value < 2**32:
                raise ValueError(f"{name}={value}: give an integer from 0 to 2**32 - 1.")

    def changed_arguments(self) -> list[str]:
        """The arguments of distillation that differ from their defaults, apart from the quality threshold."""
        defaults = {
            argument.name: argument.default_factory() if argument.default is MISSING else argument.default
            for argument in fields(DistillationArguments)
            if argument.name in DISTILLATION_ARGUMENTS
        }
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def build_losses(self) -> list[DistillationLoss]:
        """The losses that `loss_type`, `loss_weights` and the arguments of single losses describe, as new modules."""
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        return [self._build_loss(name, weight) for name, weight in zip(self.loss_type, weights, strict=True)]

    def _build_loss(self, name: str, weight: float) -> DistillationLoss:
        match name:
            case "attention":
                return losses.AttentionLoss(weight, heads=self.attention_heads)
            case "prediction":
                return losses.PredictionLoss(weight, temperature=self.temperature)
            case "relation":
                return losses.RelationLoss(weight, relation_heads=self.relation_heads)
        return LOSSES[name](weight)


DISTILLATION_ARGUMENTS = DistillationArguments.__annotations__.keys() - {"push_to_hub_min_retained"}


class _FlagParser(HfArgumentParser):
    def add_argument(self, *flags: str, **options) -> argparse.Action:
        options |= {"default": argparse.SUPPRESS, "required": False}
        if flags[0].removeprefix("--") not in ("output_dir", *DistillationArguments.__annotations__):
            options["help"] = argparse.SUPPRESS
        return super().add_argument(*flags, **options)


def flag_parser() -> argparse.ArgumentParser:
    """A parser that takes every argument of `DistillationArguments` as a flag and returns only those that are passed.

    The help lists the arguments of distillation. Those of `TrainingArguments`, over a hundred, are not listed.
    """
    return _FlagParser(
        DistillationArguments,
        add_help=False,
        epilog="Every other argument of TrainingArguments is a flag too, such as --num_train_epochs or --push_to_hub.",
    )
