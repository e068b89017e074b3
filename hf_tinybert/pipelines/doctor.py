"""What a task distillation needs, looked at before any training: a line a check, with what to change."""

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from ..layer_mapping import map_layers
from ..models.checks import check_prediction_heads, check_vocabularies
from ..models.loading import load_tokenizer
from ..models.vocabulary import check_same_tokens, own_tokenizer
from ..models.weights import check_weights
from ..students import TINYBERT4, check_can_initialise, create_student
from ..tasks import Task
from ..training.arguments import DistillationArguments
from ..training.checks import check_attention_heads
from ..training.trainer import DistillationTrainer
from .task import COMMON

SAMPLE, DRY_STEPS = 2000, 4
ADAMW_BYTES = 16  # of each fp32 weight: itself, its gradient and two moments
EXPECTED = (ValueError, TypeError, OSError, RuntimeError, LookupError)


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it can work, and what was found or is to be changed."""

    name: str
    passed: bool
    finding: str


def diagnose(
    task: Task,
    data: datasets.DatasetDict,
    teacher: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    **arguments,
) -> list[Check]:
    """Checks of what `task_distillation` would be given; neither model is trained, no user's mistake raises.

    Models, tokenizer, lengths (of the first 2,000 rows), heads, layer mapping, vocabularies, labels; then four steps
    of a copy of the student (random weights where it is to be created) on real rows with all the losses, the longest
    rows first, from which memory and time are estimated. Checks that need something that failed are left out.
    `arguments` are `DistillationArguments`.
    """
    checks: list[Check] = []

    def check(name: str, function, *inputs) -> Any:
        """What `function` returns beside its finding; None where it failed."""
        try:
            value, finding = function(*inputs)
        except EXPECTED as error:
            checks.append(Check(name, False, " ".join(str(error).split()) or type(error).__name__))
            return None
        checks.append(Check(name, True, finding))
        return value

    args = check("arguments", _arguments, arguments)
    tokenizer = check("tokenizer", _tokenizer, teacher)
    teacher = check("teacher", _teacher, task, teacher)
    rows = None
    if tokenizer is not None and teacher is not None:
        rows = check("lengths", _tokens, task, data["train"], tokenizer, teacher)
    if rows is None or args is None:
        return checks
    given = student
    student = check("student", _student, task, student, init, teacher, args.layer_mapping)
    if student is None:
        return checks
    check("attention", _attention, student, teacher)
    fits = [
        check("heads", _heads, student, teacher, args),
        check("layer mapping", _layer_mapping, student, teacher, args),
        check("vocabularies", _vocabularies, student, teacher, given, tokenizer),
        check("labels", _labels, student, teacher),
    ]
    if all(fits):
        steps = check("dry steps", _dry_run, task, student, teacher, rows, tokenizer, args)
        if steps is not None:
            check("memory", _memory, student, teacher, args, steps)
            check("time", _time, len(data["train"]), args, steps)
    return checks


def to_table(checks: Sequence[Check]) -> str:
    """The checks as aligned text."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{'ok  ' if c.passed else 'FAIL'}  {c.name:{width}}  {c.finding}" for c in checks)


def _arguments(arguments: Mapping[str, Any]) -> tuple[DistillationArguments, str]:
    given = DistillationArguments(**{"output_dir": "runs", **COMMON, **arguments})
    rows = f"{given.train_batch_size} rows a batch"
    found = f"losses {', '.join(given.loss_type)}; {rows}, {given.num_train_epochs:g} epochs; {given.device}"
    dry = {"max_steps": DRY_STEPS, "logging_steps": 1, "gradient_accumulation_steps": 1, "teacher_cache_gb": 0.0}
    dry |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False}
    dry |= {"report_to": [], "disable_tqdm": True}
    return DistillationArguments(**{"output_dir": "runs", **COMMON, **arguments, **dry}), found


def _tokenizer(teacher: str | Path) -> tuple[PreTrainedTokenizerBase, str]:
    tokenizer = load_tokenizer(teacher)
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of '{teacher}' has no padding token: set its pad_token and save it again.")
    return tokenizer, f"{type(tokenizer).__name__}, {len(tokenizer):,} pieces"


def _teacher(task: Task, name: str | Path) -> tuple[PreTrainedModel, str]:
    teacher, untrained = task.load_model(name)
    check_weights(teacher)
    return teacher.eval(), _geometry(teacher) + (", no head for the task: it is fine-tuned first" if untrained else "")


def _tokens(
    task: Task, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel
) -> tuple[datasets.Dataset, str]:
    rows = task.tokenize(rows.select(range(min(SAMPLE, len(rows)))), tokenizer)
    sequences = rows["input_ids"]
    if isinstance(sequences[0][0], list):  # multiple choice: those of the choices
        sequences = list(chain.from_iterable(sequences))
    lengths, highest = [len(ids) for ids in sequences], max(map(max, sequences))
    if highest >= teacher.config.vocab_size:
        raise ValueError(
            f"The tokenizer makes ids up to {highest}, the teacher has {teacher.config.vocab_size} embeddings: use "
            "the tokenizer that the teacher was trained with."
        )
    positions = getattr(teacher.config, "max_position_embeddings", None)  # DeBERTa's and others' may be relative
    if positions and max(lengths) > positions:
        raise ValueError(
            f"Rows have up to {max(lengths)} tokens, the teacher {positions} positions: set the task's max_length to "
            f"{positions} or less."
        )
    p50, p95 = np.percentile(lengths, [50, 95])
    cut = np.mean([length >= task.max_length for length in lengths])
    return rows, f"{p50:.0f} tokens at the median, {p95:.0f} at 95 %; {cut:.1%} of the rows cut at {task.max_length}"


def _student(task: Task, student, init: str, teacher: PreTrainedModel, layer_mapping) -> tuple[PreTrainedModel, str]:
    if isinstance(student, Mapping):
        if init == "teacher":
            depth = student.get("num_hidden_layers", teacher.config.num_hidden_layers)
            pairs = map_layers(layer_mapping, depth, teacher.config.num_hidden_layers)
            check_can_initialise(teacher.config, [layer for _, layer in pairs])
        model = create_student(teacher, **student, init="random", layer_mapping=layer_mapping)
    else:
        model, _ = task.load_model(student)
    share = model.num_parameters() / teacher.num_parameters()
    return model, f"{_geometry(model)}, {share:.0%} of the teacher's"


def _geometry(model: PreTrainedModel) -> str:
    config = model.config
    size = f"{config.num_hidden_layers} layers × {config.hidden_size}, {config.num_attention_heads} heads"
    return f"{type(model).__name__}, {size}, {model.num_parameters() / 1e6:.1f} M parameters"


def _attention(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[bool, str]:
    for model in (student, teacher):
        if not model._can_set_attn_implementation():
            return False, f"{type(model).__name__} falls back to eager attention: S×S scores are held for its loss"
    return True, f"{teacher.config._attn_implementation}: queries and keys are read, no S×S scores"


def _heads(student: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments) -> tuple[bool, str]:
    check_attention_heads(student, teacher, args.build_losses())
    return True, f"student {student.config.num_attention_heads}, teacher {teacher.config.num_attention_heads}"


def _layer_mapping(student: PreTrainedModel, teacher: PreTrainedModel, args) -> tuple[bool, str]:
    depths = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    pairs = map_layers(args.layer_mapping, *depths)
    return True, "student←teacher: " + ", ".join(f"{m}←{g}" for m, g in pairs)


def _vocabularies(student: PreTrainedModel, teacher: PreTrainedModel, given, tokenizer) -> tuple[bool, str]:
    check_vocabularies(student, teacher)
    own = None if isinstance(given, Mapping) else own_tokenizer(given)
    if own is not None:
        check_same_tokens(own, tokenizer)
    return True, f"{student.config.vocab_size:,} both"


def _labels(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[bool, str]:
    check_prediction_heads(student, teacher)
    return True, ", ".join(f"{index} {name}" for index, name in teacher.config.id2label.items())


class _Meter(TrainerCallback):
    """Seconds of each step, the most bytes that one saved for its backward pass, and the losses."""

    def __init__(self):
        self.seconds: list[float] = []
        self.saved = 0
        self.losses: dict[str, float] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {parameter.data_ptr() for parameter in model.parameters()}

    def on_step_begin(self, args, state, control, **kwargs):
        self.alive, self.start = {}, perf_counter()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.alive[storage.data_ptr()] = storage.nbytes()
        return tensor

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(perf_counter() - self.start)
        self.saved = max(self.saved, sum(self.alive.values()))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses |= {name: value for name, value in logs.items() if name.endswith("_loss") and name != "train_loss"}


def _dry_run(task, student, teacher, rows, tokenizer, args) -> tuple[_Meter, str]:
    """Steps on random rows, the longest batch first, in a copy of the student."""
    chosen, meter = rows.shuffle(0).select(range(min(DRY_STEPS * args.train_batch_size, len(rows)))), _Meter()
    options = {"train_dataset": chosen, "processing_class": tokenizer, "callbacks": [meter]}
    options["data_collator"] = task.collator(tokenizer)
    with tempfile.TemporaryDirectory() as args.output_dir:
        trainer = DistillationTrainer(copy.deepcopy(student), args, teacher_model=teacher, **options)
        trainer.remove_callback(PrinterCallback)
        with torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor):
            trainer.train()
    bad = [name for name, value in meter.losses.items() if not math.isfinite(value)]
    if bad:
        raise ValueError(f"{', '.join(bad)} became NaN or infinite within {DRY_STEPS} steps: lower learning_rate.")
    return meter, ", ".join(f"{name} {value:.3g}" for name, value in meter.losses.items())


def _memory(student: PreTrainedModel, teacher: PreTrainedModel, args, steps: _Meter) -> tuple[bool, str]:
    weights = ADAMW_BYTES * student.num_parameters() + teacher.get_memory_footprint()
    needed, device = weights + steps.saved, args.device
    free = get_max_memory()["cpu" if device.type == "cpu" else device.index or 0]
    if needed > free:
        raise ValueError(
            f"About {needed / 1e9:.1f} GB are needed on {device}, which has {free / 1e9:.1f}: lower "
            "per_device_train_batch_size and raise gradient_accumulation_steps by as much."
        )
    return True, f"{weights / 1e9:.2f} GB of weights and AdamW, {steps.saved / 1e9:.2f} GB for the longest batch"


def _time(rows: int, args: DistillationArguments, steps: _Meter) -> tuple[bool, str]:
    seconds = sum(steps.seconds[1:]) / len(steps.seconds[1:])  # the first is the longest and warms up
    epoch = seconds * math.ceil(rows / args.train_batch_size) / 60
    return True, f"{seconds:.2g} s a step, about {epoch:.2g} minutes an epoch of {rows:,} rows in one process"
