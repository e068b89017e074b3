"""DistillationTrainer: transformers' Trainer with a teacher."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import has_length

from .activations import Activations
from .arguments import DistillationArguments
from .batch_mean import BatchMeanTrainer
from .capture import ActivationCapture
from .compatibility import check_activations, check_columns, check_compatible, check_mask
from .ensemble import about_teacher, normalised
from .layer_mapping import map_layers
from .lineage import describe_data, describe_stage, describe_teacher, recorded, resume
from .logit_cache import pad_logits
from .losses import DistillationLoss
from .objective import Objective, layers_read
from .projections import PROJECTIONS, Projections, build_projections, detached
from .teachers import TEACHER_LOGITS, TEACHER_ROW, Ensemble, Teacher, checked, forward_columns, freeze, load_teacher

PROJECTION_ROWS, PROJECTION_TOKENS = 256, 8192
WORTHWHILE_EPOCHS = 2  # the pass that keeps the teacher's activations is won back after one (MiniLM-L6 on CoLA)


class DistillationTrainer(BatchMeanTrainer):
    """`Trainer` that trains `model`, the student, on Σ λ_i·L_i against `teacher_model`; without one it is Trainer.

    - `teacher_model`: a model, a Hub id or a local path, or a list of them (`teacher_weights`, `teacher_logits`); each
      is frozen, in eval mode, never saved, and has its own layer mapping and projections.
    - `losses`: loss modules; None builds them from `args` (`DistillationArguments`).
    - Every loss is the mean over examples of the whole accumulated and global batch; the log has each, before its
      weight, as `{name}_loss`. Evaluation and prediction are Trainer's own, on the student alone.
    - Projections to the teacher's width start at the least-squares fit on the first training rows (256, or
      8,192 tokens), live in the student only while `train` runs, and have a file of their own in each checkpoint.
    - What it trains is recorded in the student's config and told by its model card (`lineage`, `model_card`): set
      `data_name` and `augmentation` (its settings) before `train`, `report` before `push_to_hub`.

    Raises ValueError or TypeError, before any training, where student, teacher and losses do not fit.
    """

    augmentation: Mapping[str, Any] | None = None
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
        teacher_model: PreTrainedModel | str | Sequence[PreTrainedModel | str] | None = None,
        losses: Sequence[DistillationLoss] | None = None,
    ):
        distils = teacher_model is not None or bool(losses)
        if distils and args is None:
            args = DistillationArguments(output_dir="tmp_trainer")
        if distils and not isinstance(args, DistillationArguments):
            raise TypeError("With a teacher or losses, pass args=DistillationArguments(...), not TrainingArguments.")
        given = list(teacher_model) if isinstance(teacher_model, list | tuple) else [teacher_model]
        teachers = [
            load_teacher(each, processing_class) if isinstance(each, str) else each
            for each in given
            if each is not None
        ]
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
        self.teacher_models = teachers
        self._check_bar()
        if not distils:
            return
        self.losses = self.args.build_losses() if losses is None else list(losses)
        cached_logits = TEACHER_LOGITS in (getattr(train_dataset, "column_names", None) or ())
        if self.args.n_gpu > 1:
            raise ValueError("nn.DataParallel is not supported: start one process a GPU with torchrun or accelerate.")
        if self.args.balance_losses and self._shards_itself:
            raise ValueError("balance_losses does not work with FSDP or DeepSpeed: leave it out.")
        if len({id(teacher) for teacher in teachers}) < len(teachers):
            raise ValueError("teacher_model has the same model twice: give it a larger weight in teacher_weights.")
        self.loss_is_scaled_for_ga = True  # compute_loss below normalises over the accumulated batch
        self.teacher_weights = normalised(self.args.teacher_weights, len(teachers)) if teachers else [1.0]
        self.layer_mappings = [] if teachers else [[]]
        for number, teacher in enumerate(teachers, start=1):
            with about_teacher(number, len(teachers)):
                check_compatible(self.model, teacher, self.losses, cached_logits)
                depths = self.model.config.num_hidden_layers, teacher.config.num_hidden_layers
                self.layer_mappings.append(map_layers(self.args.layer_mapping, *depths))
                freeze(teacher, self.args.device)
        if not teachers:
            check_compatible(self.model, None, self.losses, cached_logits)
        self._objective = Objective(self.losses, self.args.loss_schedules, self.teacher_weights, self.layer_mappings)
        self._measure_teachers()

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
        self._objective.restart()
        if self._projections is not None and not self._shards_itself:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            missing = [parameter for parameter in self._projections.parameters() if id(parameter) not in held]
            # into a group of the user's, so that the user's scheduler knows its learning rate
            optimizer.param_groups[0]["params"].extend(missing)
        return optimizer

    def _set_up(self, student: PreTrainedModel) -> None:
        if self.train_dataset is None or (has_length(self.train_dataset) and len(self.train_dataset) == 0):
            raise ValueError("train_dataset is missing or empty: check the path or the filter that made it.")
        if TEACHER_LOGITS in (getattr(self.train_dataset, "column_names", None) or ()):
            self._running.callback(setattr, self, "data_collator", self.data_collator)
            self.data_collator = pad_logits(self.data_collator)
        pairs = [layers_read(self.losses, mapping) for mapping in self.layer_mappings]
        self._record(student, pairs)
        reads = frozenset().union(*(loss.reads for loss in self.losses))
        layers = [[m for of_teacher in kind for m, _ in of_teacher] for kind in zip(*pairs, strict=True)]
        self._student_capture = ActivationCapture(
            student, *layers, "values" in reads, padding_free=self.args.padding_free
        )
        self._running.enter_context(self._student_capture.enabled())
        compiles = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
        compiles = compiles if self.args.torch_compile else None
        autocast = self.accelerator.autocast  # as Accelerate does for the student
        teachers = []
        for model, of_teacher in zip(self.teacher_models, pairs, strict=False):
            layers = [[g for _, g in kind] for kind in of_teacher]
            teachers.append(Teacher(model, reads, *layers, autocast, compiles, self.args.padding_free))
            self._running.enter_context(teachers[-1].capture.enabled())
        self._teachers = Ensemble(teachers, self.teacher_weights, self.args.teacher_logits)
        if self._projections is None:
            self._projections = build_projections(self.losses, self.layer_mappings, student, self.teacher_models)
            if self._projections is not None:
                self._projections.fit(self._first_states(student))
        if self._projections is not None:
            self._running.enter_context(self._projections.attached(student))
        if self.args.teacher_cache_gb:
            self._keep_teacher_activations()
        self._first_step = True
        self._objective.restart()
        self._objective.factors = {}

    def _record(self, student: PreTrainedModel, pairs) -> None:
        teachers = [
            describe_teacher(model and model.config, chain(*read), weight)
            for model, read, weight in zip(self.teacher_models or [None], pairs, self.teacher_weights, strict=True)
        ]
        data = describe_data(self.train_dataset, self.data_name)
        batch_size = self.get_total_train_batch_size(self.args)
        stage = describe_stage(self.losses, teachers, self.args, data, self.augmentation, batch_size)
        self._running.enter_context(recorded(student.config, stage))

    @torch.no_grad()
    def _first_states(self, student: PreTrainedModel) -> Iterator[tuple[Any, list[Activations], Any]]:
        """Hidden states of student and teachers on the first training rows, as `Projections.fit` takes them.

        Every rank reads the same rows, so that any number of processes starts from the same projections.
        """
        data, collate, tokens = self.train_dataset, self._collate, 0
        rows = (data[i] for i in range(len(data))) if has_length(data) else iter(data)
        rows = islice(rows, PROJECTION_ROWS)
        student.eval()
        while tokens < PROJECTION_TOKENS and (batch := list(islice(rows, self.args.per_device_train_batch_size))):
            inputs = collate(batch)
            teachers = self._teachers.run(inputs)
            inputs = {name: inputs[name].to(student.device) for name in forward_columns(student) if name in inputs}
            states = student(**inputs, **self._student_capture.forward_arguments).hidden_states
            real = inputs["attention_mask"].flatten(0, -2).bool() if "attention_mask" in inputs else slice(None)
            yield states, teachers, real
            hidden = next(state for state in states if state is not None)
            tokens += hidden[real].numel() // hidden.shape[-1]

    @property
    def _collate(self) -> Callable[[list[dict]], dict[str, Any]]:
        """Rows of the training data → a batch on the device, as training will see it."""
        collator = self._get_collator_with_removed_columns(self.data_collator)
        return lambda features: self._prepare_inputs(collator(features))

    def _keep_teacher_activations(self) -> None:
        rows, args = self.train_dataset, self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        by_steps = args.max_steps > 0 and has_length(rows)
        epochs = args.max_steps * batch / len(rows) if by_steps else args.num_train_epochs
        worthwhile = epochs >= WORTHWHILE_EPOCHS
        self.train_dataset = self._teachers.keep(rows, self._collate, args.teacher_cache_gb, worthwhile)
        self._running.callback(setattr, self, "train_dataset", rows)

    # ---- The loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ λ_i·L_i while `train` runs and the model is in train mode; Trainer's own loss otherwise."""
        if self._running is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        check_mask(inputs, self.model.config.pad_token_id)
        if self._first_step:
            check_columns(self._teachers.columns, self.train_dataset, inputs)
        teachers = self._teachers.read(inputs, check=self._first_step)
        outputs, students = self._student_forward(model, inputs, num_items_in_batch)
        if self._first_step:
            for number, pair in enumerate(zip(students, teachers, strict=True), start=1):
                with about_teacher(number, len(teachers)):
                    check_activations(self.losses, *pair)
            teachers = self._lower_teachers(inputs, students, teachers)
            self._first_step = False
        values = self._objective.values(students, teachers, self._mean_of(inputs))
        if self.args.balance_losses and not self._objective.factors:
            self._objective.balance(values, self._student, self._mean_over_ranks)
            self._student.config.distillation["stages"][-1]["loss_factors"] = self._objective.factors
        total = self._objective.total(values, self.state.global_step / self.state.max_steps)
        return (total, outputs) if return_outputs else total

    @torch.no_grad()
    def _lower_teachers(self, inputs, students: list[Activations], teachers: list[Activations]) -> list[Activations]:
        """Bring the teachers to `teacher_dtype` and log by what share of it each loss of these rows changes."""
        dtype = getattr(torch, self.args.teacher_dtype or "", None)
        if dtype is None or not self._teachers.lower(dtype):
            return teachers
        lowered = checked(self._teachers.read(inputs))
        mean = self._mean_of(inputs)
        before, after = (self._objective.values(students, of, mean) for of in (teachers, lowered))
        self.log({f"{name}_dtype_error": abs(after[name] / before[name] - 1).item() for name in before})
        return lowered

    def _student_forward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch
    ) -> tuple[Any, list[Activations]]:
        """The student's outputs, and its activations as each teacher sees them: in projections to that one's width."""
        capture = self._student_capture
        mask = inputs.get("attention_mask")
        if mask is not None and mask.device.type == "cpu" and mask.all():  # elsewhere asking would mean waiting
            mask = None  # spares the losses their masked copies
        inputs = {**self._student_inputs(inputs), **capture.forward_arguments}
        loss = None
        with capture.recording() as scores:
            if any("loss" in loss.reads for loss in self.losses):
                loss, outputs = self._label_loss(model, inputs, num_items_in_batch)
            else:
                outputs = model(**{name: value for name, value in inputs.items() if name not in self.label_names})
        activations = capture.read(outputs, mask, scores, loss, inputs.get("labels"))
        if self._projections is None:
            return outputs, [activations] * len(self.layer_mappings)
        projected = self._projections.split(outputs["hidden_states"][-self._projections.count :])
        return outputs, [replace(activations, projected_states=states) for states in projected]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log with `{name}_loss` of each loss beside `loss`: means over the steps since the last log."""
        if "loss" in logs and self._running is not None:
            logs |= self._objective.means(self.state.global_step, self._initial_global_step, self._mean_over_ranks)
        super().log(logs, start_time)

    # ---- Inputs: the student's, and what only the teacher takes ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.losses:
            ours = [TEACHER_LOGITS, TEACHER_ROW, *self._teacher_columns]
            self._signature_columns += [c for c in ours if c not in self._signature_columns]

    @property
    def _teacher_columns(self) -> set[str]:
        return set().union(*map(forward_columns, self.teacher_models))

    def _student_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` without what only the teacher has (cached logits, token types beside a DistilBERT student)."""
        if not self.losses:
            return inputs
        teacher_only = {TEACHER_LOGITS, TEACHER_ROW} | self._teacher_columns - set(forward_columns(self._student))
        return {name: value for name, value in inputs.items() if name not in teacher_only}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Trainer's, on the columns that the student takes."""
        return super().prediction_step(model, self._student_inputs(inputs), prediction_loss_only, ignore_keys)

    # ---- Checkpoints: the student as it is, projections beside it ----

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
            stage = resume(self._student.config, resume_from_checkpoint)
            self._objective.factors = stage.get("loss_factors", {})
        if self._running is None or self._projections is None or self._shards_itself:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with detached(self._student):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._projections.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with detached(self._student) if not self._shards_itself else contextlib.nullcontext():
            super()._load_best_model()
