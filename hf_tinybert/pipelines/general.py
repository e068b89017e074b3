"""General distillation: a pre-trained teacher and plain text, before there is a task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
from accelerate import PartialState
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DataCollatorWithPadding,
    PreTrainedModel,
    set_seed,
)

from ..losses import DistillationLoss
from ..models.loading import from_pretrained, load_tokenizer
from ..sound_caches import with_sound_caches
from ..students import TINYBERT4, create_student
from .phase import GENERAL, Phase
from .resumable import BatchMasks
from .runs import TrainingData, claim, has_begun, train_once
from .text import tokenize_text


def general_distillation(
    data: datasets.Dataset | datasets.IterableDataset,
    teacher: str | Path,
    output_dir: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    calibration_rows: int = 500,
    text: str = "text",
    max_length: int = 128,
    packed: bool = True,
    mlm_probability: float = 0.15,
    losses: Sequence[DistillationLoss] | None = None,
    **arguments,
) -> PreTrainedModel:
    """Distil a pre-trained teacher on plain text: the first stage of TinyBERT (Jiao et al., 2020, section 3.1).

    The student learns the teacher's layers; neither has a prediction head and no token is masked. If a loss reads
    logits or the label loss, teacher and student are masked language models instead. The student is saved in
    `output_dir`. The same call continues a run that was stopped, and ends with the same student.

    Args:
        data: Rows with a column of text. A stream needs `max_steps`, and as many shards as there are processes.
        teacher: A Hub id or folder.
        output_dir: The folder of the run.
        student: The sizes of a student that `create_student` makes from the teacher, or the Hub id or folder of a
            student. Default TinyBERT4.
        init: How a student of these sizes starts, as in `create_student`; default "teacher".
        calibration_rows: The number of sequences that `init="teacher"` fits the student on, default 500.
        text: The name of the column of text, default "text".
        max_length: The most tokens of a sequence, default 128.
        packed: Whether texts are joined and split into sequences of `max_length` tokens (`tokenize_text`), default
            True.
        mlm_probability: The share of the tokens that is masked in masked language models (BERT's 80/10/10), default
            0.15.
        losses: Losses in place of `loss_type` and `loss_weights`. They are copied before they train.
        arguments: `DistillationArguments`; the default of `loss_type` is "attention", "hidden" and "embedding".

    Returns:
        The student.

    Raises:
        ValueError: If a masked language model is needed and the teacher is none, if the data has no column of text, or
            if `output_dir` holds a run with other settings.
    """
    streamed = isinstance(data, datasets.IterableDataset)
    phase = Phase.build("general_distillation", Path(output_dir), {**_defaults(packed), **arguments}, losses)
    claim(
        phase.folder,
        {
            "teacher": str(teacher),
            "student": dict(student) if isinstance(student, Mapping) else str(student),
            "init": init,
            "calibration_rows": calibration_rows,
            "text": text,
            "max_length": max_length,
            "packed": packed,
            "mlm_probability": mlm_probability,
            "losses": phase.loss_settings,
            "arguments": phase.arguments,
        },
    )
    masks = bool(phase.reads & {"logits", "loss"})
    tokenizer, teacher_model = load_tokenizer(teacher), _teacher(teacher, masks)
    with PartialState().main_process_first():
        rows = with_sound_caches(data, partial(tokenize_text, data, tokenizer, text, max_length, packed))
    if streamed:  # each process reads shards of its own, for as long as the others do
        rows = rows.repeat(None)
        phase = replace(phase, arguments={**phase.arguments, "accelerator_config": {"dispatch_batches": False}})
    set_seed(phase.seed)
    if isinstance(student, Mapping):
        sequences = list(islice(rows, max(calibration_rows, 0)))
        init = "random" if has_begun(phase) else init
        model = create_student(
            teacher_model, **student, init=init, calibration_dataset=sequences, processing_class=tokenizer
        )
    else:
        model = from_pretrained(_model_class(masks), student)
    collator = BatchMasks(tokenizer, mlm_probability=mlm_probability)
    training_data = TrainingData(rows, tokenizer, collator if masks else DataCollatorWithPadding(tokenizer))
    return train_once(model, phase, training_data, [teacher_model])[0]


def _defaults(packed: bool) -> dict:
    """Packed sequences are equally long: grouping them by length would change nothing."""
    return GENERAL | {"train_sampling_strategy": "random"} if packed else GENERAL


def _model_class(masks: bool) -> type:
    return AutoModelForMaskedLM if masks else AutoModel


def _teacher(name: str | Path, masks: bool) -> PreTrainedModel:
    model, loading = from_pretrained(_model_class(masks), name, output_loading_info=True)
    if masks and (missing := loading["missing_keys"]):
        raise ValueError(
            f"Teacher '{name}' is no masked language model, it lacks {sorted(missing)}: take the pre-trained one, or "
            "leave out the losses that read logits or labels ('prediction', 'task')."
        )
    return model
