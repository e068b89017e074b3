"""DistillationTrainer: transformers' Trainer with a teacher."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..lineage import DataRecord, recorded
from ..losses import DistillationLoss
from ..models.prediction_heads import prediction_head_of
from ..publishing.hub import Token
from ..publishing.publisher import Publisher
from ..teachers import Teacher, load_teachers, pad_logits
from .batch_mean import BatchMean
from .between_steps import BetweenSteps
from .checks import check_forgotten_teacher, check_losses, check_parallelism, distillation_arguments
from .columns import holds_cached_logits, student_inputs, teacher_columns
from .companions import detached, is_companion
from .data_checks import check_data
from .first_rows import is_stream, read_first_rows
from .objective import Objective
from .problem_type import decide_problem_types
from .projections import Projections
from .quality_threshold import QualityThreshold, check_threshold, measure_threshold
from .record import describe_stage
from .resuming import check_plain_checkpoint, check_same_training, chosen_checkpoint
from .run import PROJECTION_ROWS, DistillationRun, build_teachers


class DistillationTrainer(Trainer):
    """`Trainer` that trains `model`, the student, on Σ λ_i·L_i against `teacher_model`; without one it is Trainer.

    Every loss is the mean over examples of the accumulated and global batch. The log shows each loss before its weight
    as `{name}_loss`. Evaluation and prediction are Trainer's own and run the student alone.

    Projections to the teacher's width start at the least-squares fit on the first training rows (256 rows or 8,192
    tokens). They live in the student only within a training step, and each checkpoint has a file for them. The same
    holds for the parameters of losses. Callbacks, evaluation and whoever saves the student meet the plain student. At
    the end student and teachers are handed back as they came. The student's configuration records what it was trained
    on (`hf_tinybert.lineage`), and its model card shows the record.

    With `push_to_hub`, the constructor fails if the Hub cannot be reached or refuses the student. A push that fails
    during training is a warning, because the push at the end holds everything. No file holds `hub_token`.

    Args:
        teacher_model: A model, a Hub id or a local path, or a list of them (`teacher_weights`, `teacher_logits`). Each
            is frozen, in eval mode, never saved, and has its own layer mapping and projections.
        losses: Loss modules; None builds them from `args` (`DistillationArguments`). All other arguments are those of
            `transformers.Trainer`.

    Attributes:
        data_name: The name of the training data in the record; set it before `train` if the data has none.
        augmentation: The settings that the training data was augmented with; set it before `train`.
        report: A `StudentReport` for the model card; set it before `push_to_hub`.

    Raises:
        ValueError, TypeError: Before any training, if student, teacher, losses and arguments do not fit.
        RuntimeError: If `push_to_hub` is set and the Hub refuses.
    """

    data_name: str | None = None
    augmentation: Mapping[str, Any] | None = None
    report: Any = None
    losses: Sequence[DistillationLoss] = ()
    threshold: QualityThreshold | None = None
    push_in_progress = None
    _runs: contextlib.ExitStack | None = None
    _run: DistillationRun | None = None
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
        distils = teacher_model is not None or bool(losses) or holds_cached_logits(train_dataset)
        args = distillation_arguments(args) if distils else args
        if not distils:
            check_forgotten_teacher(args)
        models = load_teachers(teacher_model, processing_class)
        self._publisher = Publisher(self)
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
        if self.args.hub_token is not None:
            self.args.hub_token = Token(self.args.hub_token)
        self._batch_mean = BatchMean(self.accelerator)
        self.teachers: list[Teacher] = []
        if self._has_threshold:
            check_threshold(self, models)
        if distils:
            self._set_up_losses(losses, models)

    def _set_up_losses(self, losses: Sequence[DistillationLoss] | None, models: list[PreTrainedModel]) -> None:
        self._passed_losses = None if losses is None else list(losses)
        self.losses = self.args.build_losses() if losses is None else self._passed_losses
        self._initial_losses = [copy.deepcopy(loss.state_dict()) for loss in self._passed_losses or ()]
        check_parallelism(self.args, self._shards_itself)
        self.loss_is_scaled_for_ga = True  # compute_loss below normalises over the accumulated batch
        check_losses(self.losses, bool(models), holds_cached_logits(self.train_dataset))
        check_data(self, models)
        rows = [] if is_stream(self.train_dataset) else self.train_dataset or []
        decide_problem_types(self, models, rows, self._collate)
        self.teachers = build_teachers(self.model, models, self.losses, self.args)
        Objective(self.losses, self.args.loss_schedules)  # raises for another number of schedules
        if self._has_threshold:
            self.threshold = measure_threshold(self, models)

    @property
    def _student(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def _has_threshold(self) -> bool:
        return getattr(self.args, "push_to_hub_min_retained", None) is not None

    # ---- The time in which student and teacher are set up to be read ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Trainer's `train`; the student is handed back as it came, also if training ends in an exception.

        Raises:
            ValueError: If the checkpoint is not one of this training: of other losses, layers or sizes, or of none.
        """
        self._checkpoint = chosen_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if not self.losses:
            check_plain_checkpoint(self._checkpoint)
            return super().train(resume_from_checkpoint, *args, **kwargs)
        try:
            with contextlib.ExitStack() as self._runs:
                if self.model_init is None:
                    self._start_run(self.model)
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._runs = self._run = None

    def call_model_init(self, trial=None):
        """A new student; with it come new projections and the losses' first parameters."""
        if self._runs is not None:
            self._runs.close()
            self._projections = None
            for loss, state in zip(self._passed_losses or (), self._initial_losses, strict=True):
                loss.load_state_dict(state)
        return super().call_model_init(trial)

    def _hp_search_setup(self, trial) -> None:
        """Trainer's, called in each `train` once the student exists; only now `args` have the values of the trial."""
        super()._hp_search_setup(trial)
        if self._runs is not None and self.model_init is not None:
            self._start_run(self.model)

    def _start_run(self, student: PreTrainedModel) -> None:
        self._runs.callback(setattr, self, "data_collator", self.data_collator)
        self._runs.callback(setattr, self, "train_dataset", self.train_dataset)
        # args may have changed since the trainer was made (hyperparameter_search)
        self.losses = self.args.build_losses() if self._passed_losses is None else self._passed_losses
        check_losses(self.losses, bool(self.teachers), holds_cached_logits(self.train_dataset))
        models = [teacher.model for teacher in self.teachers]
        data = DataRecord.from_rows(self.train_dataset, self.data_name)
        first_rows, self.train_dataset = read_first_rows(self.train_dataset, PROJECTION_ROWS)
        check_data(self, models)
        decide_problem_types(self, models, first_rows, self._collate)
        self.teachers = build_teachers(student, models, self.losses, self.args)
        self._batch_mean = BatchMean(self.accelerator)  # which each trial replaces
        if holds_cached_logits(self.train_dataset):
            self.data_collator = pad_logits(self.data_collator, prediction_head_of(student))
        batch_size = self.get_total_train_batch_size(self.args)
        stage = describe_stage(self.losses, self.teachers, self.args, data, self.augmentation, batch_size)
        check_same_training(self._checkpoint, student, stage)
        self._runs.enter_context(recorded(student.config, stage))
        run = DistillationRun(
            student, self.teachers, self.losses, self.args, self.accelerator, self._batch_mean, self._projections
        )
        self._run = self._runs.enter_context(run)
        self._runs.enter_context(BetweenSteps(run, self.log).ahead_of(self.callback_handler.callbacks))
        self.train_dataset = run.start(self.train_dataset, first_rows, self._collate)
        self._projections = run.companions.projections

    @property
    def companions(self) -> dict[str, nn.Module]:
        """What trains beside the student while `train` runs, by name: projections, and losses with parameters."""
        return {} if self._run is None else self._run.companions.modules

    @property
    def _collate(self) -> Callable[[list[dict]], dict[str, Any]]:
        """Rows of the training data → a batch on the device, as training will see it."""
        collator = self._get_collator_with_removed_columns(self.data_collator)
        return lambda features: self._prepare_inputs(collator(features))

    def create_optimizer(self, model=None):
        """Trainer's; projections and losses' parameters also join an optimizer that was made before them."""
        if self._run is None:
            return super().create_optimizer(model)
        self._run.companions.join(self._run.student)
        optimizer = super().create_optimizer(model)
        self._run.restart(self.get_total_train_batch_size(self.args))  # also of an attempt of auto_find_batch_size
        if not self._shards_itself:
            self._run.companions.join_optimizer(optimizer)
        return optimizer

    # ---- The loss ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, with the numbers of examples and labels counted."""
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.losses:
            self._batch_mean.count(batch_samples, device)
        return batch_samples, num_items_in_batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Trainer's, in which the student is set up to be read and losses and gradients have to be finite."""
        if self._run is None:
            return super().training_step(model, inputs, num_items_in_batch)
        with self._run.step():
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.accelerator.sync_gradients:
                self._run.finite.check(self._student, self.state.global_step + 1)
            return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ λ_i·L_i in a training step; Trainer's own loss otherwise."""
        if self._run is None or not self._run.in_step:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._run.check_inputs(inputs, self.train_dataset)
        forward = partial(self._student_forward, model, self._student_inputs(inputs), num_items_in_batch)
        loss, outputs = self._run.loss(inputs, forward, self.state.global_step, self.state.max_steps)
        return (loss, outputs) if return_outputs else loss

    def _student_forward(self, model: nn.Module, inputs, num_items_in_batch, extra: dict[str, Any], labels: bool):
        """The label loss, None unless `labels` asks for it, and the student's outputs."""
        inputs = {**inputs, **extra}
        if not labels:
            return None, model(**{name: value for name, value in inputs.items() if name not in self.label_names})
        if self.compute_loss_func is not None:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        # Sequence classification heads accept num_items_in_batch and ignore it: their loss would be too large by the
        # number of accumulation steps. So the mean of this micro-batch is weighted by its share of the labels.
        loss, outputs = super().compute_loss(model, inputs, True, None)
        return self._batch_mean.over_labels(loss, inputs), outputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log with `{name}_loss` of each loss beside `loss`: means over the steps since the last log."""
        if "loss" in logs and self._run is not None:
            logs |= self._run.objective.means(self.state.global_step, self._batch_mean.over_processes)
        super().log(logs, start_time)

    # ---- Inputs: the student's, and what only the teacher takes ----

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.losses:
            self._signature_columns += sorted(teacher_columns(self.teachers) - set(self._signature_columns))

    def _student_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return student_inputs(inputs, self._student, self.teachers) if self.losses else inputs

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Trainer's, on the columns that the student takes; without padding if training is."""
        with contextlib.nullcontext() if self._run is None else self._run.prediction_step():
            return super().prediction_step(model, self._student_inputs(inputs), prediction_loss_only, ignore_keys)

    # ---- Checkpoints: the student as it is, its companions beside it ----

    @property
    def _shards_itself(self) -> bool:
        """FSDP and DeepSpeed checkpoints hold every submodule, companions included."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict is not None:
            state_dict = {name: value for name, value in state_dict.items() if not is_companion(name)}
        with detached(self._student):
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._run is not None and self.args.should_save:
            self._run.save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._run is not None:
            self._run.resume(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    # ---- The Hub ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Trainer's, tried again; raises RuntimeError that says what to do, also if `hub_revision` does not exist."""
        self._publisher.init_repo(partial(super().init_hf_repo, token, private), token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Trainer's, once the student is saved, and tried again if the connection or the Hub breaks.

        Raises:
            ValueError: If the student keeps less than `push_to_hub_min_retained` of the teacher's score.
            RuntimeError: If the push fails, in one line. Both say where the student is.
        """
        push = partial(super().push_to_hub, commit_message, blocking, token, revision, private, **kwargs)
        return self._publisher.push(push, commit_message, token, revision, private, self.threshold)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._publisher.push_checkpoint(partial(super()._push_from_checkpoint, checkpoint_folder), self.threshold)

    def _finish_current_push(self) -> None:
        self._publisher.finish_pushes(super()._finish_current_push)

    def create_model_card(self, *args, **kwargs) -> None:
        """Trainer's, extended with lineage and `report` if there are losses (`extend_card`)."""
        write = partial(super().create_model_card, *args)
        if not self.losses:
            return write(**kwargs)
        with detached(self._student):
            self._publisher.write_card(write, self._student, self.report, self.data_name, **kwargs)
