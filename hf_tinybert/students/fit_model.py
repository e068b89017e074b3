"""Every weight of a student fitted to its teacher: embeddings, encoder and prediction heads in turn."""

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from ..least_squares import fit_norm
from ..models.architectures import architecture_of
from .calibration import CalibrationBatch
from .cost import fit_cost
from .fit_embeddings import embedded_states, fit_embeddings
from .fit_encoder import fit_encoder, layer_groups
from .fit_heads import fit_heads
from .states import CalibrationStates, padded
from .survey import SurveySize, survey, survey_batches

logger = logging.get_logger(__name__)


def fit_model(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: list[int],
    batches: list[CalibrationBatch],
    merge_layers: bool = False,
) -> None:
    """Fit every weight of the student that follows from the teacher.

    The student's hidden states approximate Pᵀh of the teacher's hidden states h, with P (D, D') the leading principal
    components of all of them. The teacher runs once on the calibration data, and once more on some of it for P.

    Args:
        student: The student, in float32 and eval mode; it is changed.
        teacher: The teacher, in float32 and eval mode.
        layers: The teacher layer of each student layer, counted from 1 and increasing.
        batches: The calibration data.
        merge_layers: Whether a student layer takes heads and units of all teacher layers that it stands for.
    """
    lengths = [length for batch in batches for length in batch.mask.sum(1).tolist()]
    cost = fit_cost(student, teacher, lengths, len(batches[0].held_out_rows), merge_layers)
    logger.info("Fitting a student: %s.", cost)
    architecture = architecture_of(teacher.config)
    blocks, teacher_blocks = architecture_of(student.config).blocks(student), architecture.blocks(teacher)
    groups = layer_groups(teacher_blocks, layers, merge_layers)
    group_size = max(len(group.taken) for group in groups)
    states = embedded_states(teacher, batches, student.config.hidden_size, group_size)
    bias = architecture.relative_bias(teacher)
    num_heads = None if bias is None else blocks[0].attention.num_heads
    counted = list(range(1, layers[-1] + 1)) if merge_layers else layers
    size = SurveySize(student.config.hidden_size, num_heads, counted)
    runs = len(teacher_blocks) * (len(batches) + len(survey_batches(states)))
    description = f"Fitting {cost.parameters / 1e6:.1f} M parameters"
    with tqdm(total=runs, desc=description, unit="layer", mininterval=1.0) as bar:
        basis, heads = survey(teacher_blocks, states, size, bar.update)
        if bias is not None:
            architecture.relative_bias(student).weight.copy_(bias.weight[:, heads])
        table_map = fit_embeddings(student, teacher, basis, states)
        fit_encoder(blocks, groups, basis, states, heads, bar.update)
        for i, batch in enumerate(batches):
            for block in teacher_blocks[layers[-1] :]:
                states.teacher[i] = block.run(padded(states.teacher[i], batch.mask), batch.mask)[batch.mask]
                bar.update()
        _fit_final_norm(student, teacher, basis, states)
        fit_heads(student, teacher, basis, table_map, states)
        bar.update(runs - bar.n)


def _fit_final_norm(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor, states: CalibrationStates
) -> None:
    """Fit the norm after the last layer, if there is one; the states become those after it."""
    place = architecture_of(teacher.config).final_norm(teacher)
    if place is None:
        return
    norm = getattr(*architecture_of(student.config).final_norm(student))
    for i in range(len(states.batches)):
        states.teacher[i] = getattr(*place)(states.teacher[i])
        states.targets[i] = states.teacher[i] @ basis.float()
    fit_norm(norm, ((states.student[i], states.targets[i]) for i in range(len(states.batches))))
    for i in range(len(states.batches)):
        states.student[i] = norm(states.student[i])
