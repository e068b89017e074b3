"""DistillationTrainer: transformers' Trainer with a teacher."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import has_length

from .activations import Activations
from .arguments import DistillationArguments
from .capture import ActivationCapture
from .compatibility import (
    check_activations,
    check_columns,
    check_compatible,
    check_finite,
    check_mask,
)
from .hub import HubTrainer
from .layer_mapping import map_layers
from .lineage import describe_data, describe_stage, hub_ids, lineage_of, recorded, resume
from .losses import DistillationLoss
from .model_card import extend_card, final_evaluation
from .projections import PROJECTIONS, Projections, detached, projected_layers
from .teachers import TEACHER_LOGITS, TEACHER_ROW, Teacher, forward_columns, freeze, load_teacher

PROJECTION_ROWS, PROJECTION_TOKENS = 256, 8192
WORTHWHILE_EPOCHS = 2  # the pass that keeps the teacher's activations is won back after one (MiniLM-L6 on CoLA)


class DistillationTrainer(HubTrainer):
    """`Trainer` that trains `model`, the student, on Σ λ_i·L_i against `teacher_model`; without one it is Trainer.

    - `teacher_model`: a model, a Hub id or a local path; frozen, in eval mode, never saved.
    - `losses`: loss modules; None builds them from `args` (`DistillationArguments`).
    - Every loss is the mean over examples of the whole accumulated and global batch; the log has each, before its
      weight, as `{name}_loss`. Evaluation and prediction are Trainer's own, on the student alone.
    - Projections to the teacher's width start at the least-squares fit on the first training rows (256, or
      8,192 tokens), live in the student only while `train` runs, and have a file of their own in each checkpoint.
    - What it trains is recorded in the student's config and told by its model card (`lineage`, `model_card`): set
      `data_name` and `augmentation` (its settings) before `train`, `report` before `push_to_hub`.

    Raises ValueError or TypeError, before any training, where student, teacher and losses do not fit.
    """

    data_name: str | None = None
    augmentation: Mapping[str, Any] | None = None
    report = None
    losses: Sequence[DistillationLoss] = ()
    _running: contextlib.ExitStack | None = None
    _projections: Projections | None = None

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        model_init=None,
        compute_loss_func=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        optimizer_cls_and_kwargs=None,
        preprocess_logits_for_metrics=None,
        teacher_model: PreTrainedModel | str | None = None,
        losses: Sequence[DistillationLoss] | None = None,
    ):
        distils = teacher_model is not None or bool(losses)
        if distils and args is None:
            args = DistillationArguments(output_dir="tmp_trainer")
        if distils and not isinstance(args, DistillationArguments):
            raise TypeError("With a teacher or losses, pass args=DistillationArguments(...), not TrainingArguments.")
        if isinstance(teacher_model, str):
            teacher_model = load_teacher(teacher_model)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.teacher_model = teacher_model
        self._check_bar()
        if not distils:
            return
        self.losses = self.args.build_losses() if losses is None else list(losses)
        self.layer_mapping = []
        cached_logits = TEACHER_LOGITS in (getattr(train_dataset, "column_names", None) or ())
        check_compatible(self.model, teacher_model, self.losses, cached_logits)
        if self.args.n_gpu > 1:
            raise ValueError("nn.DataParallel is not supported: start one process a GPU with torchrun or accelerate.")
        self.loss_is_scaled_for_ga = True  # compute_loss below normalises over the accumulated batch
        if teacher_model is not None:
            depths = self.model.config.num_hidden_layers, teacher_model.config.num_hidden_layers
            self.layer_mapping = map_layers(self.args.layer_mapping, *depths)
            freeze(teacher_model, self.args.device)
            self._measure_teacher()

    # ---- The time in which student and teacher are set up to be read ----

    def train(self, *args, **kwargs):
        """Trainer's `train`; the student is handed back as it came, also where training ends in an exception."""
        if not self.losses:
            return super().train(*args, **kwargs)
        try:
            with contextlib.ExitStack() as self._running:
                if self.model_init is None:
                    self._set_up(self.model)
                return super().train(*args, **kwargs)
        finally:
            self._running = None

    def call_model_init(self, trial=None):
        """A new student: with it come new projections."""
        student = super().call_model_init(trial)
        if self._running is not None:
            self._running.close()
            self._projections = None
            self._set_up(student)
        return student

    def create_optimizer(self, model=None):
        """Trainer's; projections also join an optimizer that the user made before they existed."""
        optimizer = super().create_optimizer(model)
        if self._running is None:
            return optimizer
        # each attempt of auto_find_batch_size begins here
        self._student.config.distillation["stages"][-1]["batch_size"] = self.get_total_train_batch_size(self.args)
        self._components.clear()
        self._components_since = None
        if self._projections is not None and not self._shards_itself:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            missing = [parameter for parameter in self._projections.parameters() if id(parameter) not in held]
            # into a group of the user's, so that the user's scheduler knows its learning rate
            optimizer.param_groups[0]["params"].extend(missing)
        return optimizer

    def _set_up(self, student: PreTrainedModel) -> None:
        if self.train_dataset is None or (has_length(self.train_dataset) and len(self.train_dataset) == 0):
            raise ValueError("train_dataset is missing or empty: check the path or the filter that made it.")
        reads = frozenset().union(*(loss.reads for loss in self.losses))
        attentions = [pair for loss in self.losses for pair in loss.attention_layers(self.layer_mapping)]
        hidden_states = [pair for loss in self.losses for pair in loss.hidden_layers(self.layer_mapping)]
        student_layers, teacher_layers = (
            [[pair[side] for pair in pairs] for pairs in (attentions, hidden_states)] for side in (0, 1)
        )
        self._record(student, [*attentions, *hidden_states])
        self._student_capture = ActivationCapture(student, *student_layers, "values" in reads)
        self._running.enter_context(self._student_capture.enabled())
        self._teacher = None
        if self.teacher_model is not None:
            capture = ActivationCapture(self.teacher_model, *teacher_layers, "values" in reads, "logits" not in reads)
            self._running.enter_context(capture.enabled())
            compiles = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
            compiles = compiles if self.args.torch_compile else None
            autocast = self.accelerator.autocast  # as Accelerate does for the student
            self._teacher = Teacher(self.teacher_model, capture, "logits" in reads, autocast, compiles)
        widths = [model.config.hidden_size for model in (student, self.teacher_model) if model is not None]
        projected = projected_layers(self.losses, self.layer_mapping, len(set(widths)) == 1)
        if projected:
            if self._projections is None:
                self._projections = Projections(projected, *widths).to(student.device, student.dtype)
                self._projections.fit(self._first_states(student))
            self._running.enter_context(self._projections.attached(student))
        if self.args.teacher_cache_gb and self._teacher is not None and self._teacher.captures:
            self._keep_teacher_activations()
        self._first_step = True
        self._num_examples = self._num_labels = None
        self._components, self._components_since = defaultdict(float), None

    def _record(self, student: PreTrainedModel, layers: list[tuple[int, int]]) -> None:
        teacher = None if self.teacher_model is None else self.teacher_model.config
        data = describe_data(self.train_dataset, self.data_name)
        batch_size = self.get_total_train_batch_size(self.args)
        stage = describe_stage(self.losses, layers, teacher, self.args, data, self.augmentation, batch_size)
        self._running.enter_context(recorded(student.config, stage))

    @torch.no_grad()
    def _first_states(self, student: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor]]:
        """States of student and teacher on the first training rows, as `Projections.fit` takes them.

        Every rank reads the same rows, so that any number of processes starts from the same projections.
        """
        data, collate, tokens = self.train_dataset, self._collate, 0
        rows = (data[i] for i in range(len(data))) if has_length(data) else iter(data)
        rows = islice(rows, PROJECTION_ROWS)
        student.eval()
        while tokens < PROJECTION_TOKENS and (batch := list(islice(rows, self.args.per_device_train_batch_size))):
            inputs = collate(batch)
            teacher = self._teacher.run(inputs)
            check_finite(teacher)
            inputs = {name: inputs[name].to(student.device) for name in forward_columns(student) if name in inputs}
            states = student(**inputs, **self._student_capture.forward_arguments).hidden_states
            mask = inputs.get("attention_mask")
            real = slice(None) if mask is None else mask.bool()
            for loss in self.losses:
                for m, g in loss.hidden_layers(self.layer_mapping) if loss.name in self._projections.layers else []:
                    ours, theirs = states[m][real], teacher.hidden_states[g].to(student.device)[real]
                    yield loss.name, ours.flatten(0, -2), theirs.flatten(0, -2)
            tokens += ours.numel() // ours.shape[-1]

    @property
    def _collate(self) -> Callable[[list[dict]], dict[str, Any]]:
        """Rows of the training data → a batch on the device, as training will see it."""
        collator = self._get_collator_with_removed_columns(self.data_collator)
        return lambda features: self._prepare_inputs(collator(features))

    def _keep_teacher_activations(self) -> None:
        rows, args = self.train_dataset, self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        epochs = args.max_steps * batch / len(rows) if args.max_steps > 0 else args.num_train_epochs
        worthwhile = epochs >= WORTHWHILE_EPOCHS
        self.train_dataset = self._teacher.keep(rows, self._collate, args.teacher_cache_gb, worthwhile)
        self._running.callback(setattr, self, "train_dataset", rows)

    # ---- The loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ λ_i·L_i while `train` runs and the model is in train mode; Trainer's own loss otherwise."""
        if self._running is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        check_mask(inputs, self.model.config.pad_token_id)
        if self._teacher is None:
            teacher = Activations(logits=inputs.get(TEACHER_LOGITS))
        else:
            if self._first_step:
                check_columns(self._teacher.columns, self.train_dataset, inputs)
            teacher = self._teacher.read(inputs, check=self._first_step)
        outputs, student = self._student_forward(model, inputs, num_items_in_batch)
        if self._first_step:
            check_activations(self.losses, student, teacher)
            teacher = self._lower_teacher(inputs, student, teacher)
            self._first_step = False
        total = 0.0
        for loss in self.losses:
            value = loss(student, teacher, self.layer_mapping)
            if value.dim():  # DDP averages over ranks what is to be a mean over all their examples
                examples = self._num_examples if self._num_examples is not None else len(value)
                value = value.sum() * (self.accelerator.num_processes / examples)
            self._components[loss.name] += value.detach()
            total = total + loss.weight * value
        return (total, outputs) if return_outputs else total

    @torch.no_grad()
    def _lower_teacher(self, inputs: dict[str, Any], student: Activations, teacher: Activations) -> Activations:
        """Bring the teacher to `teacher_dtype` and log by what share of it each loss of these rows changes."""
        dtype = getattr(torch, self.args.teacher_dtype or "", None)
        if self._teacher is None or self._teacher.cache or dtype in (None, self.teacher_model.dtype):
            return teacher
        self.teacher_model.to(dtype)
        lowered = self._teacher.read(inputs)
        check_finite(lowered)
        errors = {}
        for loss in self.losses:
            before, after = (loss(student, of, self.layer_mapping).mean() for of in (teacher, lowered))
            errors[f"{loss.name}_loss_dtype_error"] = abs(after / before - 1).item()
        self.log(errors)
        return lowered

    def _student_forward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch
    ) -> tuple[Any, Activations]:
        capture = self._student_capture
        mask = inputs.get("attention_mask")
        if mask is not None and mask.device.type == "cpu" and mask.all():  # elsewhere asking would mean waiting
            mask = None  # spares the losses their masked copies
        inputs = {**self._student_inputs(inputs), **capture.forward_arguments}
        loss = None
        with capture.recording() as scores:
            if any("loss" in loss.reads for loss in self.losses):
                loss, outputs = self._task_loss(model, inputs, num_items_in_batch)
            else:
                outputs = model(**{name: value for name, value in inputs.items() if name not in self.label_names})
        activations = capture.read(outputs, mask, scores, loss)
        if self._projections is not None:
            count = sum(map(len, self._projections.layers.values()))
            activations.projected_states = self._projections.split(outputs["hidden_states"][-count:])
        return outputs, activations

    def _task_loss(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch) -> tuple[Tensor, Any]:
        """Trainer's label loss as a mean over all labels of the accumulated and global batch.

        Sequence classification heads accept `num_items_in_batch` and ignore it (their loss comes out too large by the
        number of accumulation steps), so the mean of this micro-batch is weighted here by its share of the labels.
        """
        if self.compute_loss_func is not None:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        labels = _count_labels(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, None)
        total = self._num_labels if self._num_labels is not None else labels
        share = self.accelerator.num_processes * labels / total
        return torch.where(torch.as_tensor(labels > 0, device=loss.device), loss * share, 0.0), outputs

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, and the numbers of examples and labels of the accumulated batch over all ranks."""
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._running is not None:
            counts = sum(map(find_batch_size, batch_samples)), sum(map(_count_labels, batch_samples))
            if self.args.world_size > 1:
                counts = torch.stack([torch.as_tensor(count, device=device) for count in counts])
                counts = self.accelerator.reduce(counts, "sum")
            self._num_examples, self._num_labels = counts
        return batch_samples, num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log with `{name}_loss` of each loss beside `loss`: means over the steps since the last log."""
        if "loss" in logs and self._running is not None and self._components:
            values = torch.stack([torch.as_tensor(value) for value in self._components.values()])
            steps = self.state.global_step - (self._components_since or self._initial_global_step)
            values = (self.accelerator.reduce(values, "mean") / max(steps, 1)).tolist()
            logs |= {f"{name}_loss": value for name, value in zip(self._components, values, strict=True)}
            self._components.clear()
            self._components_since = self.state.global_step
        super().log(logs, start_time)

    # ---- Inputs: the student's, and what only the teacher takes ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.losses:
            ours = [
                TEACHER_LOGITS,
                TEACHER_ROW,
                *(forward_columns(self.teacher_model) if self.teacher_model is not None else []),
            ]
            self._signature_columns += [c for c in ours if c not in self._signature_columns]

    def _student_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` without what only the teacher has (cached logits, token types beside a DistilBERT student)."""
        if not self.losses:
            return inputs
        teacher_only = {TEACHER_LOGITS, TEACHER_ROW}
        if self.teacher_model is not None:
            teacher_only |= set(forward_columns(self.teacher_model)) - set(forward_columns(self._student))
        return {name: value for name, value in inputs.items() if name not in teacher_only}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Trainer's, on the columns that the student takes."""
        return super().prediction_step(model, self._student_inputs(inputs), prediction_loss_only, ignore_keys)

    # ---- Checkpoints: the student as it is, projections beside it ----

    @property
    def _student(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def _shards_itself(self) -> bool:
        """FSDP and DeepSpeed checkpoints hold every submodule, projections included."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is not None:
            state_dict = {name: value for name, value in state_dict.items() if f"{PROJECTIONS}." not in name}
        with detached(self._student):
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        projections = self._projections if self._running is not None and not self._shards_itself else None
        if projections is not None and self.args.should_save:
            projections.save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._running is not None:
            resume(self._student.config, resume_from_checkpoint)
        if self._running is None or self._projections is None or self._shards_itself:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with detached(self._student):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._projections.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with detached(self._student) if not self._shards_itself else contextlib.nullcontext():
            super()._load_best_model()

    # ---- The model card ----

    def create_model_card(self, *args, **kwargs) -> None:
        """Trainer's, extended with lineage and `report` (`extend_card`) where there are losses."""
        student, path = self._student, Path(self.args.output_dir, "README.md")
        lineage = lineage_of(student.config) if self.losses else None
        if lineage and not student.config._name_or_path:  # the licence is then the teacher's
            kwargs.setdefault("finetuned_from", next(iter(hub_ids(lineage)), None))
        super().create_model_card(*args, **kwargs)
        if lineage is None or not self.is_world_process_zero():
            return
        best_step = self.state.best_global_step if self.args.load_best_model_at_end else None
        scores = final_evaluation(self.state, best_step), describe_data(self.eval_dataset, self.data_name)
        with detached(student):
            extend_card(ModelCard.load(path), student, self.report, *scores, self.hub_model_id).save(path)


def _count_labels(batch: dict[str, Any]) -> Tensor | int:
    """Labels that count in the label loss; examples where the labels have other names (start and end positions)."""
    labels = batch.get("labels")
    return find_batch_size(batch) if labels is None else (labels != -100).sum()
