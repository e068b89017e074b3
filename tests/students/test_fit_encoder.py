"""The layers of a student: what the fit computes of the teacher's layers, and what it leaves out."""

import pytest
import torch
from transformers import BertConfig, BertModel

from hf_tinybert.models.architectures import architecture_of
from hf_tinybert.students.calibration import CalibrationBatch
from hf_tinybert.students.fit_encoder import LayerGroup, fit_encoder, layer_groups
from hf_tinybert.students.states import CalibrationStates

BERT = {"vocab_size": 50, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 30}
BERT |= {"initializer_range": 0.2}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def blocks(model):
    return architecture_of(model.config).blocks(model)


def entering(states, mask):
    batch = CalibrationBatch({"attention_mask": mask}, torch.zeros(len(mask), dtype=torch.bool))
    stored = CalibrationStates.allocate([batch], states.shape[-1], states.shape[-1], 2)
    stored.teacher[0] = stored.student[0] = states[batch.mask]
    return stored


@torch.no_grad()
@pytest.mark.parametrize("merge", [False, True])
def test_a_layer_absorbs_the_teacher_layers_that_it_skips(merge):
    teacher = BertModel(BertConfig(**BERT, num_hidden_layers=4)).eval()
    student = BertModel(BertConfig(**BERT, num_hidden_layers=2)).eval()
    ids, mask = torch.randint(0, 50, (6, 7)), torch.ones(6, 7, dtype=torch.long)
    states = teacher(input_ids=ids, output_hidden_states=True).hidden_states
    hidden = entering(states[0], mask)
    fit_encoder(
        blocks(student), layer_groups(blocks(teacher), [2, 4], merge), torch.eye(24, dtype=torch.float64), hidden
    )
    torch.testing.assert_close(hidden.teacher[0], states[4].flatten(0, 1), atol=1e-4, rtol=1e-4)
    assert (hidden.student[0] - states[4].flatten(0, 1)).square().mean() < 0.5 * (
        states[2] - states[4]
    ).square().mean()


@torch.no_grad()
def test_attention_heads_and_units_that_write_nothing_are_the_ones_left_out():
    teacher = BertModel(BertConfig(**BERT, num_hidden_layers=1)).eval()
    smaller = BERT | {"num_attention_heads": 2, "intermediate_size": 12}
    student = BertModel(BertConfig(**smaller, num_hidden_layers=1)).eval()
    (block,) = blocks(teacher)
    silent = torch.randperm(30)[:18]
    block.feed_forward.output.weight[:, silent] = 0
    block.attention.output.weight[:, 6:18] = 0  # two of four attention heads of size 6
    student_block = blocks(student)[0]
    ids, mask = torch.randint(0, 50, (40, 7)), torch.ones(40, 7, dtype=torch.long)
    hidden = entering(teacher(input_ids=ids, output_hidden_states=True).hidden_states[0], mask)
    fit_encoder([student_block], [LayerGroup([], [block])], torch.eye(24, dtype=torch.float64), hidden)
    error, size = (hidden.student[0] - hidden.teacher[0]).square().mean(), hidden.teacher[0].square().mean()
    assert error < 1e-4 * size


@torch.no_grad()
@pytest.mark.parametrize("merge", [False, True])
def test_heads_and_units_come_from_all_layers_that_are_merged(merge):
    """The last layer adds nothing, so that a student of its heads and units alone cannot follow the teacher."""
    teacher = BertModel(BertConfig(**BERT, num_hidden_layers=2)).eval()
    student = BertModel(BertConfig(**BERT, num_hidden_layers=1)).eval()
    last = blocks(teacher)[1]
    for linear in (last.attention.output, last.feed_forward.output):
        linear.weight.zero_()
    ids, mask = torch.randint(0, 50, (40, 7)), torch.ones(40, 7, dtype=torch.long)
    hidden = entering(teacher(input_ids=ids, output_hidden_states=True).hidden_states[0], mask)
    fit_encoder(blocks(student), layer_groups(blocks(teacher), [2], merge), torch.eye(24, dtype=torch.float64), hidden)
    left = (hidden.student[0] - hidden.teacher[0]).square().mean() / hidden.teacher[0].square().mean()
    assert (left < 0.03) == merge
