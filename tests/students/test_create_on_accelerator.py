"""The initialisation from the teacher on an accelerator such as a GPU."""

import copy
from functools import partial

import torch
from conftest import needs_accelerator
from tiny_teachers import BERT, SMALL, build, outputs, rows
from transformers import BertConfig, BertForSequenceClassification

from hf_tinybert import create_student


@needs_accelerator
def test_a_student_starts_as_on_the_cpu():
    teacher = build(BertForSequenceClassification, BertConfig(**BERT))
    create = partial(create_student, **SMALL, calibration_dataset=rows())
    student = create(copy.deepcopy(teacher).to(torch.accelerator.current_accelerator()))
    assert student.device.type == torch.accelerator.current_accelerator().type
    for values, expected in zip(
        outputs(student.cpu(), rows(8, seed=1)), outputs(create(teacher), rows(8, seed=1)), strict=True
    ):
        torch.testing.assert_close(values, expected, rtol=1e-2, atol=1e-3)
