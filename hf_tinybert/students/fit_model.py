"""Every weight of a student fitted to its teacher: embeddings, encoder and prediction heads in turn."""

from torch import Tensor
from transformers import PreTrainedModel

from ..least_squares import principal_basis
from ..models.architectures import Block, architecture_of
from .calibration import CalibrationBatch
from .fit_embeddings import embedded_states, fit_embeddings
from .fit_encoder import HiddenStates, fit_encoder
from .fit_heads import fit_heads


def fit_model(
    student: PreTrainedModel, teacher: PreTrainedModel, layers: list[int], batches: list[CalibrationBatch]
) -> None:
    """Fit every weight of the student that follows from the teacher.

    The student's hidden states approximate Pᵀh of the teacher's hidden states h, with P (D, D') the leading principal
    components of all of them.

    Args:
        student: The student, in eval mode; it is changed.
        teacher: The teacher, in eval mode.
        layers: The teacher layer of each student layer, counted from 1 and increasing.
        batches: The calibration data.
    """
    blocks = architecture_of(student.config).blocks(student)
    teacher_blocks = architecture_of(teacher.config).blocks(teacher)
    states = embedded_states(teacher, batches)
    basis = principal_basis(hidden_moment(teacher_blocks, states), student.config.hidden_size)
    table_map = fit_embeddings(student, teacher, basis, states)
    fit_encoder(blocks, teacher_blocks, layers, basis, states)
    fit_heads(student, teacher, basis, table_map, batches)


def hidden_moment(blocks: list[Block], states: list[HiddenStates]) -> Tensor:
    """Σ hhᵀ (D, D) over the real tokens and all hidden states of the teacher, the embedding output included.

    Args:
        blocks: The teacher's layers.
        states: What enters the first of them.
    """
    moment = 0.0
    for hidden in states:
        layer_states = hidden.teacher
        moment = moment + _second_moment(layer_states[hidden.mask])
        for block in blocks:
            layer_states = block.feed_forward(block.attend(layer_states, hidden.mask))
            moment = moment + _second_moment(layer_states[hidden.mask])
    return moment


def _second_moment(tokens: Tensor) -> Tensor:
    tokens = tokens.double()
    return tokens.T @ tokens
