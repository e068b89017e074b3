"""Small students of a teacher's architecture, initialised from the teacher."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..lineage import Lineage, ModelRecord
from ..models.architectures import architecture_of
from ..models.forward import evaluation_mode
from ..models.loading import load_teacher_model
from ..models.sources import check_no_adapters, transformers_model
from ..models.weights import check_weights
from .calibration import calibration_batches
from .config import StudentPlan, StudentSize, check_can_initialise, plan_student
from .copy_layers import copy_layers
from .fit_model import fit_model

INITS = ("teacher", "layers", "random")
CHOICES = ("layer_mapping", "dropout", "merge_layers")  # of a student beside its sizes


def create_student(
    teacher: PreTrainedModel | str | os.PathLike,
    num_hidden_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    init: str = "teacher",
    layer_mapping: str | Sequence = "uniform",
    calibration_dataset: Iterable[Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    batch_size: int = 32,
    embedding_size: int | None = None,
    dropout: float | None = None,
    merge_layers: bool = False,
) -> PreTrainedModel:
    """Create a smaller model of the teacher's class, with its labels and vocabulary.

    The result depends on nothing but the arguments, except that `init="random"` draws from torch's global random
    state. The student's configuration tells how it was made (`Lineage`).

    Args:
        teacher: The teacher: a model, which is left as it is, or a Hub id or local folder.
        num_hidden_layers: The number of layers. The default of this and every other size is None, the teacher's size;
            no size may exceed the teacher's.
        hidden_size: The width D of the hidden states, a multiple of the number of attention heads.
        intermediate_size: The number of feed-forward units of a layer.
        num_attention_heads: The number of attention heads of a layer.
        init: How the weights are initialised.

            - `"teacher"` (default): student layer m is initialised from teacher layer g(m), compressed to the new
              sizes and fitted by least squares on calibration data. At the teacher's own sizes the student computes
              what the teacher computes.
            - `"layers"`: teacher layers g(m) are copied. Only the number of layers may differ from the teacher's.
            - `"random"`: the initialisation of the architecture.
        layer_mapping: g, default `"uniform"`; see `map_layers`. It has to name one teacher layer for each student
            layer.
        calibration_dataset: A few hundred tokenised rows of the task without labels, as a `datasets.Dataset` or a list
            of dictionaries. `init="teacher"` needs it unless only the number of layers changes.
        processing_class: A tokenizer whose `pad` pads the calibration rows. By default they are padded with the
            teacher's `pad_token_id`.
        batch_size: The number of calibration rows a batch, default 32.
        embedding_size: The number of columns E of the embedding tables, from 3 to `hidden_size`. Below `hidden_size`
            the token embeddings are factorised into V×E and E×D (Lan et al., 2020, arXiv 1909.11942, section 3.1).
            The student of an ELECTRA remains an ELECTRA. The student of a BERT is an ALBERT whose layers share
            nothing.
        dropout: The probability of every dropout. By default the probabilities are the teacher's.
        merge_layers: Whether a layer that is fitted takes the attention heads and feed-forward units that write most
            of all teacher layers that it stands for: g(m) and those skipped before it. Such a student learned more of
            CoLA and STS-B from labels. Default False: those of teacher layer g(m) alone, which losses that
            compare attention heads need.

    Returns:
        The student, in float32, in training mode and on the teacher's device.

    Raises:
        TypeError: If the teacher is no model and holds none; the message says what to pass.
        OSError: If there is no teacher of that name, here or on the Hub.
        ValueError: If the sizes, `init`, the layer mapping, the dropout or the calibration data do not fit the
            teacher, or if a weight of the teacher is not finite; the message names what to change.
    """
    if isinstance(teacher, str | os.PathLike):
        teacher = load_teacher_model(teacher)
    teacher = transformers_model(teacher, "teacher")
    check_no_adapters(teacher, "teacher")
    size = StudentSize(num_hidden_layers, hidden_size, intermediate_size, num_attention_heads, embedding_size)
    lineage = Lineage(teacher=ModelRecord.from_config(teacher.config), init=init)
    teacher, size = _with_factorised_embeddings(teacher, size)
    plan = plan_student(teacher.config, size, layer_mapping, dropout)
    _check_init(init, teacher.config, plan, has_data=calibration_dataset is not None)
    if init == "random":
        lineage.write(plan.config)
        return type(teacher)(plan.config).float().to(teacher.device).train()
    lineage = replace(lineage, layers=plan.layers)
    lineage.write(plan.config)
    check_weights(teacher)
    # Parameters that no weight of the teacher determines are drawn from a fixed seed.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluation_mode(teacher):
        torch.manual_seed(0)
        student = type(teacher)(plan.config).float().to(teacher.device).eval()
        if not plan.changed_widths:
            copy_layers(student, teacher, plan.layers)
        if init == "teacher" and calibration_dataset is not None:
            batches = calibration_batches(calibration_dataset, processing_class, teacher, batch_size)
            fit_model(student, _in_float32(teacher), plan.layers, batches, merge_layers)
            calibration_rows = sum(len(batch.held_out_rows) for batch in batches)
            replace(lineage, calibration_rows=calibration_rows).write(student.config)
    return student.train()


def _with_factorised_embeddings(teacher: PreTrainedModel, size: StudentSize) -> tuple[PreTrainedModel, StudentSize]:
    """The teacher with a projection after its embeddings if the student needs one and the teacher has none."""
    architecture = architecture_of(teacher.config)
    if size.embedding_size is None or architecture.has_size(teacher.config, "embedding_size"):
        return teacher, size
    if size.embedding_size == (size.hidden_size or teacher.config.hidden_size):
        return teacher, replace(size, embedding_size=None)
    return architecture.with_embedding_projection(teacher), size


def _in_float32(teacher: PreTrainedModel) -> PreTrainedModel:
    """The teacher, or a copy of it, in float32."""
    if all(parameter.dtype == torch.float32 for parameter in teacher.parameters()):
        return teacher
    return copy.deepcopy(teacher).float()


def check_student(teacher_config: PretrainedConfig, student: Mapping[str, Any], init: str) -> None:
    """Check sizes and initialisation of a student before its teacher has weights.

    Args:
        teacher_config: The teacher's configuration.
        student: Sizes, dropout and layer mapping as `create_student` takes them.
        init: How the student starts, on calibration data if need be.

    Raises:
        ValueError: As in `create_student`.
    """
    sizes = {name: student.get(name) for name in StudentSize.__dataclass_fields__}
    if unknown := [*student.keys() - {*sizes, *CHOICES}]:
        known = ", ".join([*sizes, *CHOICES])
        raise ValueError(f"The student has unknown sizes {unknown}; it may have {known}.")
    if not architecture_of(teacher_config).has_size(teacher_config, "embedding_size"):
        del sizes["embedding_size"]  # of a teacher with a projection after its embeddings
    plan = plan_student(
        teacher_config, StudentSize(**sizes), student.get("layer_mapping", "uniform"), student.get("dropout")
    )
    _check_init(init, teacher_config, plan, has_data=True)


def _check_init(init: str, teacher_config: PretrainedConfig, plan: StudentPlan, has_data: bool) -> None:
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown: choose one of {', '.join(map(repr, INITS))}.")
    if init == "random":
        return
    changed = ", ".join(plan.changed_widths)
    if init == "layers":
        if changed:
            raise ValueError(
                f"init='layers' copies whole layers, but {changed} differs from the teacher: leave it at None, or use "
                "init='teacher' with a calibration_dataset, or init='random'."
            )
        return
    check_can_initialise(teacher_config, plan.layers)
    if changed and not has_data:
        raise ValueError(
            f"init='teacher' with another {changed} fits the student on data: pass calibration_dataset, a few hundred "
            "tokenised rows of the task (labels are not used), or use init='random'."
        )
