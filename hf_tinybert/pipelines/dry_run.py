"""A few optimizer steps of a set-up before any training, and the memory and time that they tell."""

import copy
import math
import tempfile
from time import perf_counter

import datasets
import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from ..tasks import Task
from ..training.arguments import DistillationArguments
from ..training.trainer import DistillationTrainer
from .recipe import Recipe

DRY_STEPS = 4
ADAMW_BYTES = 16  # of each fp32 weight: itself, its gradient and two moments
DRY_RUN = {  # arguments
    "max_steps": DRY_STEPS,
    "logging_steps": 1,
    "gradient_accumulation_steps": 1,
    "teacher_cache_gb": 0.0,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": [],
    "disable_tqdm": True,
}


class Meter(TrainerCallback):
    """The seconds of each step, the most bytes that a step saved for its backward pass, and the losses."""

    def __init__(self):
        self.seconds: list[float] = []
        self.saved_bytes = 0
        self.losses: dict[str, float] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._weights = {parameter.data_ptr() for parameter in model.parameters()}

    def on_step_begin(self, args, state, control, **kwargs):
        self._saved, self._start = {}, perf_counter()

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """A hook of autograd: count a tensor that is saved for the backward pass, except weights."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(perf_counter() - self._start)
        self.saved_bytes = max(self.saved_bytes, sum(self._saved.values()))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses |= {name: value for name, value in logs.items() if name.endswith("_loss") and name != "train_loss"}


def dry_run(
    task: Task,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: DistillationArguments,
) -> tuple[Meter, str]:
    """Steps on random rows, the longest batch first, in a copy of the student.

    Raises:
        ValueError: If a loss is not finite.
    """
    count, meter = min(DRY_STEPS * args.train_batch_size, len(rows)), Meter()
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        trainer = DistillationTrainer(
            copy.deepcopy(student),
            args,
            data_collator=task.collator(tokenizer),
            train_dataset=rows.shuffle(0).select(range(count)),
            processing_class=tokenizer,
            callbacks=[meter],
            teacher_model=teacher,
        )
        trainer.remove_callback(PrinterCallback)
        with torch.autograd.graph.saved_tensors_hooks(meter.save, lambda tensor: tensor):
            trainer.train()
    if bad := [name for name, value in meter.losses.items() if not math.isfinite(value)]:
        raise ValueError(f"{', '.join(bad)} became NaN or infinite within {DRY_STEPS} steps: lower learning_rate.")
    return meter, ", ".join(f"{name} {value:.3g}" for name, value in meter.losses.items())


def memory_needed(
    student: PreTrainedModel, teacher: PreTrainedModel, args: DistillationArguments, steps: Meter
) -> tuple[bool, str]:
    """The memory of both models, the optimizer and the longest batch.

    Raises:
        ValueError: If it is more than the device has.
    """
    weights = ADAMW_BYTES * student.num_parameters() + teacher.get_memory_footprint()
    needed, device = weights + steps.saved_bytes, args.device
    free = get_max_memory()["cpu" if device.type == "cpu" else device.index or 0]
    if needed > free:
        raise ValueError(
            f"About {needed / 1e9:.1f} GB are needed on {device}, which has {free / 1e9:.1f}: lower "
            "per_device_train_batch_size and raise gradient_accumulation_steps by the same factor."
        )
    return True, f"{weights / 1e9:.2f} GB of weights and AdamW, {steps.saved_bytes / 1e9:.2f} GB for the longest batch"


def time_needed(
    recipe: Recipe, labelled: int, transfer: int, args: DistillationArguments, steps: Meter
) -> tuple[bool, str]:
    """The time of the default recipe, an upper bound: the teacher ran in every step."""
    seconds = sum(steps.seconds[1:]) / len(steps.seconds[1:])  # the first step is the longest and warms up
    plain, work = labelled + transfer, []
    trains_layers = any(loss.reads_layers for loss in args.build_losses())
    phases = [(plain, recipe.intermediate_epochs)] if trains_layers else []
    phases += [(plain * (1 + recipe.copies), recipe.prediction_epochs), (labelled, recipe.labels_epochs)]
    for count, epochs in phases:
        if count:
            work.append((math.ceil(count / args.train_batch_size) * epochs, f"{count:,} rows × {epochs}"))
    minutes = seconds * sum(number for number, _ in work) / 60
    parts = " + ".join(text for _, text in work)
    time = f"{minutes:.2g} minutes" if minutes < 99 else f"{minutes / 60:.2g} hours"
    return True, f"{seconds:.2g} s a step; the default recipe, {parts}, takes at most about {time}"
