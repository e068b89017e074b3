"""A student of the teacher's sizes, fitted without copied layers: the one invariant of the fit is the identity."""

import pytest
import torch
from tiny_teachers import TEACHERS, build, outputs, rows
from torch import nn

from hf_tinybert.students.calibration import calibration_batches
from hf_tinybert.students.fit_model import fit_model


@torch.no_grad()
def unfriendly(teacher):
    """The teacher with weights that training leaves behind: LayerNorm weights that are zero, tiny or negative."""
    generator = torch.Generator().manual_seed(2)
    for norm in (module for module in teacher.modules() if isinstance(module, nn.LayerNorm)):
        norm.weight.uniform_(0.3, 2.0, generator=generator)
        norm.bias.normal_(generator=generator)
        norm.weight[:8] = torch.tensor([0.0, 0.0, 1e-8, -1e-6, 4e-4, -3e-3, 9e-3, 0.02])
        norm.weight[8:14] *= -1
        norm.weight.copy_(norm.weight[torch.randperm(len(norm.weight), generator=generator)])
    return teacher


@torch.no_grad()
def fitted(teacher, dataset):
    """A student of the teacher's sizes whose weights all come from the fit, in eval mode."""
    torch.manual_seed(1)
    student = type(teacher)(teacher.config).eval()
    layers = list(range(1, teacher.config.num_hidden_layers + 1))
    fit_model(student, teacher, layers, calibration_batches(dataset, None, teacher, 32))
    return student


@pytest.mark.parametrize("name", TEACHERS)
def test_the_fit_alone_gives_the_teacher_at_its_sizes(name):
    teacher, dataset = unfriendly(build(*TEACHERS[name])), rows(20, seed=9)
    student = fitted(teacher, rows())
    for a, b in zip(outputs(student, dataset), outputs(teacher, dataset), strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
