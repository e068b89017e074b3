"""The doctor: what a task distillation needs, checked before any training. Each check is one line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TypeVar

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..layer_mapping import map_layers
from ..models.capture import ActivationCapture
from ..models.checks import check_prediction_heads, check_vocabularies
from ..models.loading import load_tokenizer
from ..models.row_checks import InputLimits
from ..models.vocabulary import check_same_tokens, own_tokenizer
from ..models.weights import check_weights
from ..students import TINYBERT4, FitCost, check_can_initialise, create_student, fit_cost, seconds_per_row
from ..tasks import Task, TextClassification
from ..training.arguments import DistillationArguments
from ..training.checks import check_attention_heads
from .dry_run import DRY_RUN, dry_run, memory_needed, time_needed
from .phase import INTERMEDIATE, TRAINING
from .recipe import Recipe, is_narrow
from .task_rows import token_sequences

CHECKED_ROWS = 2000
USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, LookupError)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Check:
    """One check of a set-up.

    Args:
        name: What was checked.
        passed: Whether it can work.
        finding: What was found or, if it cannot work, what to change.
    """

    name: str
    passed: bool
    finding: str


def diagnose(
    task: Task,
    data: datasets.DatasetDict,
    teacher: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    transfer: datasets.Dataset | None = None,
    **arguments,
) -> list[Check]:
    """Check what `task_distillation` would be given. Nothing is trained, and no mistake of a user raises.

    The checks are of models, tokenizer, lengths, attention heads, layer mapping, vocabularies and labels. If all of
    them pass, a copy of the student takes four optimizer steps on real rows, the longest rows first, from which
    memory and time are estimated; a student that is yet to be created has random weights there. Checks that need
    something that failed are left out.

    Args:
        task: The task.
        data: Its training and validation splits; lengths are those of the first 2,000 training rows, or transfer rows.
        teacher: A Hub id or folder.
        student: The sizes of a student, or a Hub id or folder. Default TinyBERT4.
        init: How a student of these sizes starts, as in `create_student`; default "teacher".
        transfer: Rows without labels; default none.
        arguments: `DistillationArguments`; `loss_type` is by default all losses on the teacher of the default recipe.

    Returns:
        The checks in the order in which they were made.
    """
    checks, plain = _Checks(), data.get("train", transfer)
    args = checks.run("arguments", _arguments, arguments)
    tokenizer = checks.run("tokenizer", _tokenizer, teacher)
    teacher = checks.run("teacher", _teacher, task, teacher)
    rows = None
    if tokenizer is not None and teacher is not None:
        rows = checks.run("lengths", _rows, task, plain, tokenizer, teacher)
    if rows is None or args is None:
        return checks.made
    model = checks.run("student", _student, task, student, init, teacher, args.layer_mapping)
    if model is None:
        return checks.made
    if not arguments.keys() & {"loss_type", "loss_weights", "loss_schedules"}:
        layers = INTERMEDIATE["loss_type"] if is_narrow(teacher.config, model.config.hidden_size) else []
        args.loss_type = [*layers, *args.loss_type]
    if isinstance(student, Mapping) and init == "teacher":
        checks.run("initialisation", _initialisation, model, teacher, rows)
    checks.run("latency", _latency, model, rows)
    checks.run("attention", _attention, model, teacher)
    fit = [
        checks.run("attention heads", _attention_heads, model, teacher, args),
        checks.run("layer mapping", _layer_mapping, model, teacher, args),
        checks.run("vocabularies", _vocabularies, model, teacher, student, tokenizer),
        checks.run("labels", _labels, model, teacher),
    ]
    if all(fit):
        steps = checks.run("dry steps", dry_run, task, model, teacher, rows, tokenizer, args)
        if steps is not None:
            checks.run("memory", memory_needed, model, teacher, args, steps)
            counts = len(data.get("train", ())), len(transfer or ())
            tokens = sum(map(len, token_sequences(rows))) / len(rows)
            copies = None if isinstance(task, TextClassification) else 0
            recipe = Recipe.for_rows(*counts, copies, tokens, len(task.labels))
            checks.run("time", time_needed, recipe, *counts, args, steps)
    return checks.made


def to_table(checks: Sequence[Check], columns: int | None = None) -> str:
    """The checks as aligned text: one line each, or as many as it takes if no line may have more than `columns`."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'ok  ' if c.passed else 'FAIL'}  {c.name:{width}}  {c.finding}" for c in checks]
    if columns is not None:
        indent = " " * (width + 8)  # below the findings
        wrapper = TextWrapper(columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines = map(wrapper.fill, lines)
    return "\n".join(lines)


class _Checks:
    """The checks that have been made."""

    def __init__(self):
        self.made: list[Check] = []

    def run(self, name: str, check: Callable[..., tuple[Value, str]], *inputs: Any) -> Value | None:
        """Make a check, which returns a value and its finding; None if it raises."""
        try:
            value, finding = check(*inputs)
        except USER_ERRORS as error:
            self.made.append(Check(name, False, " ".join(str(error).split()) or type(error).__name__))
            return None
        self.made.append(Check(name, True, finding))
        return value


def _arguments(arguments: Mapping[str, Any]) -> tuple[DistillationArguments, str]:
    losses = (
        f"losses {', '.join(arguments['loss_type'])}" if "loss_type" in arguments else "losses of the default recipe"
    )
    arguments = {"output_dir": "runs", "loss_type": ["prediction"], **TRAINING, **arguments}
    args = DistillationArguments(**arguments)
    batch = f"{args.train_batch_size} rows a batch, {args.num_train_epochs:g} epochs"
    finding = f"{losses}; {batch}; {args.device}"
    return DistillationArguments(**{**arguments, **DRY_RUN}), finding


def _tokenizer(teacher: str | Path) -> tuple[PreTrainedTokenizerBase, str]:
    tokenizer = load_tokenizer(teacher)
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of '{teacher}' has no padding token: set its pad_token and save it again.")
    return tokenizer, f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens"


def _teacher(task: Task, name: str | Path) -> tuple[PreTrainedModel, str]:
    teacher, untrained = task.load_model(name)
    check_weights(teacher)
    note = ", no prediction head for the task: it is fine-tuned first" if untrained else ""
    return teacher.eval(), _sizes(teacher) + note


def _rows(
    task: Task, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel
) -> tuple[datasets.Dataset, str]:
    rows = task.tokenize(rows.select(range(min(CHECKED_ROWS, len(rows)))), tokenizer)
    sequences = token_sequences(rows)
    lengths, highest = [len(ids) for ids in sequences], max(map(max, sequences))
    if highest >= teacher.config.vocab_size:
        raise ValueError(
            f"The tokenizer makes ids up to {highest}, but the teacher has {teacher.config.vocab_size} embeddings: "
            "use the tokenizer that the teacher was trained with."
        )
    positions = InputLimits.of_models([teacher]).positions
    if positions and max(lengths) > positions:
        raise ValueError(
            f"Rows have up to {max(lengths)} tokens, but the teacher has {positions} positions: set the task's "
            f"max_length to {positions} or less."
        )
    p50, p95 = np.percentile(lengths, [50, 95])
    truncated = np.mean([length >= task.max_length for length in lengths])
    share = f"{truncated:.1%} of the rows truncated at {task.max_length}"
    return rows, f"{p50:.0f} tokens at the median, {p95:.0f} at 95 %; {share}"


def _student(
    task: Task,
    student: Mapping[str, int] | str | Path,
    init: str,
    teacher: PreTrainedModel,
    layer_mapping: str | Sequence,
) -> tuple[PreTrainedModel, str]:
    if isinstance(student, Mapping):
        if init == "teacher":
            depth = student.get("num_hidden_layers", teacher.config.num_hidden_layers)
            pairs = map_layers(layer_mapping, depth, teacher.config.num_hidden_layers)
            check_can_initialise(teacher.config, [layer for _, layer in pairs])
        model = create_student(teacher, **student, init="random", layer_mapping=layer_mapping)
    else:
        model, _ = task.load_model(student)
    share = model.num_parameters() / teacher.num_parameters()
    return model, f"{_sizes(model)}, {share:.0%} of the teacher's"


def _sizes(model: PreTrainedModel) -> str:
    config = model.config
    layers = f"{config.num_hidden_layers} layers × {config.hidden_size}, {config.num_attention_heads} attention heads"
    return f"{type(model).__name__}, {layers}, {model.num_parameters() / 1e6:.1f} M parameters"


def _initialisation(student: PreTrainedModel, teacher: PreTrainedModel, rows: datasets.Dataset) -> tuple[FitCost, str]:
    cost = fit_cost(student, teacher, [len(ids) for ids in token_sequences(rows)])
    return cost, f"{cost}, on {len(rows):,} calibration rows"


def _latency(student: PreTrainedModel, rows: datasets.Dataset) -> tuple[float, str]:
    length = int(np.median([len(ids) for ids in token_sequences(rows)]))
    seconds = seconds_per_row(student, length)
    return seconds, f"about {1000 * seconds:.3g} ms for a row of {length} tokens at batch size 1 in PyTorch"


def _attention(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[bool, str]:
    for model in (student, teacher):
        if ActivationCapture(model, [1], []).records_softmax:
            return False, f"{type(model).__name__} falls back to eager attention, which holds S×S scores for its loss"
    return True, f"{teacher.config._attn_implementation}: queries and keys are read, no S×S scores"


def _attention_heads(
    student: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments
) -> tuple[bool, str]:
    check_attention_heads(student, teacher, args.build_losses())
    return True, f"student {student.config.num_attention_heads}, teacher {teacher.config.num_attention_heads}"


def _layer_mapping(
    student: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments
) -> tuple[bool, str]:
    pairs = map_layers(args.layer_mapping, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    return True, "student←teacher: " + ", ".join(f"{m}←{g}" for m, g in pairs)


def _vocabularies(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    source: Mapping[str, int] | str | Path,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[bool, str]:
    check_vocabularies(student, teacher)
    student_tokenizer = None if isinstance(source, Mapping) else own_tokenizer(source)
    if student_tokenizer is not None:
        check_same_tokens(student_tokenizer, tokenizer)
    return True, f"{student.config.vocab_size:,} tokens in both"


def _labels(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[bool, str]:
    check_prediction_heads(student, teacher)
    return True, ", ".join(f"{index} {name}" for index, name in teacher.config.id2label.items())
