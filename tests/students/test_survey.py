"""Principal components of a teacher's hidden states."""

import pytest
import torch
from tiny_teachers import TEACHERS, build, rows
from torch.nn import functional as F

from hf_tinybert.models.architectures import architecture_of
from hf_tinybert.students.calibration import calibration_batches
from hf_tinybert.students.fit_embeddings import embedded_states
from hf_tinybert.students.survey import SurveySize, survey, survey_batches


@torch.no_grad()
def surveyed(name, width):
    """What is found on all tokens, and the hidden states of the real tokens, the embedding output included."""
    teacher = build(*TEACHERS[name])
    batches = calibration_batches(rows(40), None, teacher, 16)
    blocks, states = architecture_of(teacher.config).blocks(teacher), embedded_states(teacher, batches, width, 1)
    basis, heads = survey(blocks, states, SurveySize(width, None, [2, 4]), lambda: None)
    assert heads is None
    hidden = []
    for i, batch in enumerate(batches):
        state = torch.zeros(*batch.mask.shape, 24)
        state[batch.mask] = states.teacher[i]
        hidden.append(state[batch.mask])
        for block in blocks:
            state = block.run(state, batch.mask)
            hidden.append(state[batch.mask])
    return basis, torch.cat(hidden).double()


@pytest.mark.parametrize("name", ["bert", "mpnet", "electra-projected"])
def test_the_basis_is_that_of_all_hidden_states(name):
    basis, hidden = surveyed(name, 16)
    captured = (hidden @ basis).square().sum()
    assert captured == pytest.approx(torch.linalg.svdvals(hidden)[:16].square().sum().item(), rel=1e-5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-6)


def test_before_a_norm_the_basis_holds_nothing_that_the_norm_removes():
    basis, hidden = surveyed("prelayernorm", 16)
    torch.testing.assert_close(basis.sum(1), torch.zeros(24, dtype=torch.float64), rtol=0, atol=1e-6)
    normalised = F.layer_norm(hidden, (24,))
    captured = (normalised @ basis).square().sum()
    assert captured == pytest.approx(torch.linalg.svdvals(normalised)[:15].square().sum().item(), rel=1e-5)


def test_at_the_teachers_width_it_is_the_identity():
    assert torch.equal(surveyed("prelayernorm", 24)[0], torch.eye(24, dtype=torch.float64))


@torch.no_grad()
def test_short_and_long_batches_are_chosen(monkeypatch):
    teacher = build(*TEACHERS["bert"])
    states = embedded_states(teacher, calibration_batches(rows(160), None, teacher, 8), 24, 1)
    assert survey_batches(states) == list(range(20))
    monkeypatch.setattr("hf_tinybert.students.survey.SURVEY_TOKENS", 300)
    assert survey_batches(states) == [1, 4, 7, 10, 13, 16, 19]
