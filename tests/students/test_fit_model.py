"""A student of the teacher's sizes, fitted without copied layers: the one invariant of the fit is the identity."""

import pytest
import torch
from tiny_teachers import SMALL, TEACHERS, build, distance, outputs, rows
from torch import nn

from hf_tinybert.students import create_student, survey
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


@pytest.mark.parametrize("name", ["bert-tokens", "mpnet-tokens", "xlm-roberta-xl"])
def test_the_error_falls_as_the_width_grows(name):
    teacher, dataset = build(*TEACHERS[name]), rows(160)
    sizes = [{"hidden_size": width, "intermediate_size": 2 * width} for width in (8, 16, 24)]
    students = [create_student(teacher, **size, calibration_dataset=dataset) for size in sizes]
    errors = [distance(student, teacher, dataset).item() for student in students]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 1e-8 * errors[0]


@torch.no_grad()
def test_heads_that_write_nothing_are_left_out_with_their_columns_of_the_shared_bias():
    teacher, dataset = build(*TEACHERS["mpnet"]), rows(160)
    for layer in teacher.mpnet.encoder.layer:
        layer.attention.attn.o.weight[:, 6:18] = 0  # two of four attention heads of size 6
    student = create_student(teacher, num_attention_heads=2, calibration_dataset=dataset)
    bias = teacher.mpnet.encoder.relative_attention_bias.weight
    assert torch.equal(student.mpnet.encoder.relative_attention_bias.weight, bias[:, [0, 3]])
    for a, b in zip(outputs(student, dataset), outputs(teacher, dataset), strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


@pytest.mark.parametrize(("name", "linear"), [("bert", "output.dense"), ("prelayernorm", "output.dense")])
def test_the_teacher_runs_once_and_on_some_batches_once_more(monkeypatch, name, linear):
    monkeypatch.setattr(survey, "SURVEY_TOKENS", 200)
    teacher, dataset, tokens = build(*TEACHERS[name]), rows(160), []
    teacher.base_model.encoder.layer[-1].get_submodule(linear).register_forward_hook(
        lambda module, args, output: tokens.append(args[0].shape[:-1].numel())
    )
    create_student(teacher, **SMALL, calibration_dataset=dataset, batch_size=16)
    count = sum(len(row["input_ids"]) for row in dataset)
    assert count + 100 < sum(tokens) < count + 400


def test_a_folder_without_room_for_the_states_is_named(monkeypatch):
    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)
    with pytest.raises(OSError, match="TMPDIR"):
        create_student(build(*TEACHERS["bert"]), **SMALL, calibration_dataset=rows())
