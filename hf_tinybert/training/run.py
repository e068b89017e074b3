"""What lives only while `DistillationTrainer.train` runs: from the set-up of student and teachers to its undoing.

Students and teachers are set up to be read only in a training step. In between they are the plain models.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import find_executable_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length

from ..activations import Activations
from ..layer_mapping import map_layers
from ..lineage import last_stage, replace_last_stage, resume
from ..losses import DistillationLoss
from ..models.capture import ActivationCapture
from ..models.forward import forward_columns, same_modes
from ..models.prediction_heads import prediction_head_of
from ..models.row_checks import InputLimits, check_batch
from ..models.weights import check_weights
from ..native_dtypes import AUTO
from ..teachers import Ensemble, Execution, Teacher, Teaching, about_teacher, normalised
from .arguments import DistillationArguments
from .batch_mean import BatchMean
from .checks import check_activations, check_columns, check_compatible, check_mask
from .companions import Companions, is_companion
from .finite import FiniteCheck
from .objective import LayersRead, Lesson, Objective, Pair
from .projections import Projections, build_projections
from .resuming import save_stage
from .teacher_dtype import lower_teachers

PROJECTION_ROWS, PROJECTION_TOKENS = 256, 8192
WORTHWHILE_EPOCHS = 2  # the pass that caches the teacher's activations is won back after one (MiniLM-L6 on CoLA)

Collator = Callable[[list[dict]], dict[str, Any]]


def build_teachers(
    student: PreTrainedModel,
    models: Sequence[PreTrainedModel],
    losses: Sequence[DistillationLoss],
    args: DistillationArguments,
) -> list[Teacher]:
    """Check the teachers' models against the student and the losses, and map their layers.

    Raises:
        TypeError, ValueError: If one does not fit; the message names it and says what to change.
    """
    if len({id(model) for model in models}) < len(models):
        raise ValueError("teacher_model has the same model twice: give it a larger weight in teacher_weights.")
    weights, teachers = normalised(args.teacher_weights, len(models)) if models else [], []
    for number, (model, weight) in enumerate(zip(models, weights, strict=True), start=1):
        with about_teacher(number, len(models)):
            check_compatible(student, model, losses)
            check_weights(model)
            depths = student.config.num_hidden_layers, model.config.num_hidden_layers
            layer_mapping = map_layers(args.layer_mapping, *depths)
            teachers.append(Teacher(model, layer_mapping, weight))
    return teachers


class DistillationRun:
    """One training of a student by its teachers. `with run:` sets both up and restores them at the end.

    Args:
        student: The student.
        teachers: The teachers; none for losses that need none.
        losses: The losses.
        args: The trainer's arguments.
        accelerator: The trainer's.
        batch_mean: The trainer's.
        projections: Those of an earlier `train` of the same student, which go on training.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teachers: Sequence[Teacher],
        losses: Sequence[DistillationLoss],
        args: DistillationArguments,
        accelerator: Accelerator,
        batch_mean: BatchMean,
        projections: Projections | None = None,
    ):
        self.student, self.losses, self.args, self.batch_mean = student, losses, args, batch_mean
        self.teachers = Ensemble(teachers, args.teacher_logits)
        self.objective = Objective(losses, args.loss_schedules)
        self.reads = frozenset().union(*(loss.reads for loss in losses))
        self.layers = [LayersRead.by(losses, teacher.layer_mapping) for teacher in teachers]
        self.student_capture = ActivationCapture(
            student,
            [m for read in self.layers for m, _ in read.attention],
            [m for read in self.layers for m, _ in read.hidden],
            values="values" in self.reads,
            padding_free=args.padding_free,
        )
        compile_options = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
        self.execution = Execution(
            accelerator.autocast,  # as Accelerate does for the student
            compile_options if args.torch_compile else None,
            args.padding_free,
            args.device,
        )
        self.companions = Companions.of_losses(losses, projections)
        self.finite = FiniteCheck(accelerator, lambda inputs: self.teachers.teach(inputs).non_finite())
        # sharded modules cannot be taken apart, so that the companions stay in them
        self._shards = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self.in_step = False
        self.dtype_errors: dict[str, float] = {}
        choices = "choices" in prediction_head_of(student).input_axes
        self.limits = InputLimits.of_models([student, *(teacher.model for teacher in teachers)], choices)
        self._first_step = True

    def __enter__(self) -> "DistillationRun":
        with contextlib.ExitStack() as stack:
            stack.enter_context(same_modes(self.student))
            stack.callback(self.companions.leave, self.student)
            for teacher, read in zip(self.teachers.teachers, self.layers, strict=True):
                layers = [g for _, g in read.attention], [g for _, g in read.hidden]
                stack.enter_context(teacher.reading(self.reads, *layers, self.execution))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def start(self, dataset: Any, first_rows: Sequence[dict], collate: Collator) -> Any:
        """Fit the projections, and cache the teachers' activations.

        The batches of both are made smaller if memory runs out, without regard to `auto_find_batch_size`: their size
        changes nothing but rounding.

        Args:
            dataset: The training data.
            first_rows: Its first `PROJECTION_ROWS` rows, if there are as many.
            collate: Rows → a batch on the device, as training will see it.

        Returns:
            The training data, with a column of row numbers if there is a cache.
        """
        if self.companions.projections is None:
            self.companions.projections = build_projections(self.losses, self.student, self.teachers.teachers)
            if self.companions.projections is not None:
                self._fit_projections(first_rows, collate)
        if self._shards:
            self.companions.join(self.student)
        if not self.args.teacher_cache_gb:
            return dataset
        worthwhile = self._epochs(dataset) >= WORTHWHILE_EPOCHS
        budget_gb, dtype = self.args.teacher_cache_gb, self.args.teacher_dtype
        return self.teachers.cache_activations(dataset, collate, budget_gb, worthwhile, dtype)

    def save(self, folder: str) -> None:
        """Write into a checkpoint what `resume` needs, and which training it is of."""
        save_stage(last_stage(self.student.config), folder)
        if not self._shards:
            self.companions.save(folder)

    def resume(self, folder: str) -> None:
        """Go on as the run of a checkpoint did, apart from the student's weights, which Trainer loads.

        Raises:
            ValueError: If the checkpoint is of other losses.
        """
        resume(self.student.config, folder)
        self.objective.factors = last_stage(self.student.config).factors
        if not self._shards:
            self.companions.load(folder)

    def _epochs(self, dataset: Any) -> float:
        args = self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        by_steps = args.max_steps > 0 and has_length(dataset)
        return args.max_steps * batch / len(dataset) if by_steps else args.num_train_epochs

    def _fit_projections(self, rows: Sequence[dict], collate: Collator) -> None:
        def fit(batch_size: int) -> None:
            self.companions.projections.fit(self._first_states(rows, collate, batch_size))

        find_executable_batch_size(fit, starting_batch_size=self.args.per_device_train_batch_size)()

    @torch.no_grad()
    def _first_states(
        self, rows: Sequence[dict], collate: Collator, batch_size: int
    ) -> Iterator[tuple[Any, list[Activations], Any]]:
        """Hidden states of student and teachers on the first training rows, as `Projections.fit` takes them.

        Every process reads the same rows, so that any number of processes starts from the same projections.
        """
        student, tokens = self.student, 0
        student.eval()
        for start in range(0, len(rows), batch_size):
            if tokens >= PROJECTION_TOKENS:
                return
            inputs = collate(rows[start : start + batch_size])
            check_batch(inputs, self.limits)
            teachers = self.teachers.run_all(inputs)
            inputs = {name: inputs[name].to(student.device) for name in forward_columns(student) if name in inputs}
            with self.student_capture.enabled():
                states = student(**inputs, **self.student_capture.forward_arguments).hidden_states
            real = inputs["attention_mask"].flatten(0, -2).bool() if "attention_mask" in inputs else slice(None)
            yield states, teachers, real
            hidden = next(state for state in states if state is not None)
            tokens += hidden[real].numel() // hidden.shape[-1]

    # ---- A step ----

    def restart(self, batch_size: int) -> None:
        """Record the batch size of an attempt to train, and forget what an earlier attempt left unfinished."""
        config = self.student.config
        replace_last_stage(config, replace(last_stage(config), batch_size=batch_size))
        self.objective.restart()
        self.finite.restart()
        if self._first_step:
            self.teachers.restore()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a training step, backward pass included: the student is captured and has its companions.

        The companions stay until its gradients are clipped (`BetweenSteps`).
        """
        self.companions.join(self.student)
        self.in_step = True
        try:
            with self.student_capture.enabled():
                yield
        except BaseException:
            self.leave_plain()
            raise
        finally:
            self.in_step = False

    def prediction_step(self) -> AbstractContextManager:
        """Around a forward pass of the evaluation during training, which also runs on real tokens alone."""
        return self.student_capture.enabled() if self.args.padding_free else contextlib.nullcontext()

    def leave_plain(self) -> None:
        """Take the companions out of the student."""
        if not self._shards:
            self.companions.leave(self.student)

    def check_inputs(self, inputs: Mapping[str, Any], dataset: Any) -> None:
        """Check a batch before the models see it.

        Raises:
            ValueError: If a column does not fit the models, if padding has no mask or, in the first step, if the data
                collator dropped a column.
        """
        check_batch(inputs, self.limits, self._first_step)
        check_mask(inputs, self.student.config.pad_token_id)
        if self._first_step:
            check_columns(self.teachers.columns, dataset, inputs)

    def loss(
        self,
        inputs: Mapping[str, Any],
        forward: Callable[[Mapping[str, Any], bool], tuple[Tensor | None, Any]],
        step: int,
        max_steps: int,
    ) -> tuple[Tensor, Any]:
        """Σ λ_i·L_i of a micro-batch, and the student's outputs.

        Args:
            inputs: The batch.
            forward: Called with the student's extra arguments and whether the label loss is needed; returns the label
                loss and the student's outputs.
            step: The number of optimizer steps that are done.
            max_steps: The number of optimizer steps in all.
        """
        teaching = self.teachers.teach(inputs, verify=self._first_step)
        student, outputs = self._run_student(inputs, forward)
        lesson = self._lesson(student, outputs, teaching)
        if self._first_step:
            for number, pair in enumerate(lesson.pairs or [lesson.combined], start=1):
                with about_teacher(number, len(teaching.activations)):
                    check_activations(self.losses, pair.student, pair.teacher)
            teaching = self._lower_teachers(inputs, teaching, student, outputs)
            lesson = self._lesson(student, outputs, teaching)
            self._first_step = False
        values = self.objective.values(lesson, self.batch_mean.over_examples(inputs))
        self.finite.watch(inputs, values, teaching.non_finite)
        if self.args.balance_losses and not self.objective.factors:
            self._balance(values)
        return self.objective.total(values, step, max_steps), outputs

    def _run_student(self, inputs, forward) -> tuple[Activations, Any]:
        capture, mask = self.student_capture, inputs.get("attention_mask")
        if mask is not None and mask.device.type == "cpu" and mask.all():  # elsewhere asking would mean waiting
            mask = None  # spares the losses their masked copies
        with capture.recording() as scores:
            loss, outputs = forward(capture.forward_arguments, "loss" in self.reads)
        return capture.collect(outputs, mask, scores, loss, inputs.get("labels")), outputs

    def _lesson(self, student: Activations, outputs: Any, teaching: Teaching) -> Lesson:
        projections, teachers = self.companions.projections, self.teachers.teachers
        views = [student] * len(teachers)
        if projections is not None:
            views = [
                replace(student, projected_states=states) for states in projections.split(outputs["hidden_states"])
            ]
        pairs = [
            Pair(view, activations, teacher.layer_mapping, teacher.weight)
            for view, activations, teacher in zip(views, teaching.activations, teachers, strict=True)
        ]
        combined = Pair(student, Activations(student.attention_mask, teaching.logits), [])
        return Lesson(pairs, combined, lambda loss, *compared: self.companions.call(outputs, loss, *compared))

    def _lower_teachers(self, inputs, teaching: Teaching, student: Activations, outputs: Any) -> Teaching:
        """Bring the teachers to `teacher_dtype`, note the changes of the losses, and record what "auto" became."""
        stage, dtype = last_stage(self.student.config), self.args.teacher_dtype
        if stage.teacher_dtype is None:  # also "auto" that was decided against it before the checkpoint
            return teaching

        def losses(teaching: Teaching) -> dict[str, Tensor]:
            lesson = self._lesson(student, outputs, teaching)
            values = self.objective.values(lesson, self.batch_mean.over_examples(inputs))
            return dict(zip(values, self.batch_mean.over_processes(torch.stack([*values.values()])), strict=True))

        decided = stage.teacher_dtype != AUTO
        teaching, changes = lower_teachers(self.teachers, dtype, decided, inputs, teaching, losses)
        self.dtype_errors = {f"{name}_dtype_error": change for name, change in changes.items()}
        if dtype == AUTO:
            lower = bool(changes) or any(teacher.cached_lower for teacher in self.teachers.teachers)
            replace_last_stage(self.student.config, replace(stage, teacher_dtype="bfloat16" if lower else None))
        return teaching

    def _balance(self, values: Mapping[str, Tensor]) -> None:
        named = self.student.named_parameters()
        parameters: list[nn.Parameter] = [p for name, p in named if p.requires_grad and not is_companion(name)]
        self.objective.balance(values, parameters, self.batch_mean.over_processes)
        stage = last_stage(self.student.config)
        replace_last_stage(self.student.config, stage.balanced(self.objective.factors))
