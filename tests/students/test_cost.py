"""What a fit takes, before it starts."""

import logging

import pytest
import torch
from tiny_teachers import SMALL, TEACHERS, build, rows

from hf_tinybert.students import create_student, fit_cost, seconds_per_row


@pytest.fixture
def teacher():
    return build(*TEACHERS["mpnet"])


def test_the_cost_grows_with_the_rows_and_the_sizes(teacher):
    small, large = (create_student(teacher, **sizes, init="random") for sizes in (SMALL, {}))
    few, many, wide = (
        fit_cost(student, teacher, [10] * count) for student, count in ((small, 10**6), (small, 10**7), (large, 10**6))
    )
    assert few.parameters == small.num_parameters()
    assert 9 < many.seconds / few.seconds < 11
    assert few.seconds < wide.seconds
    assert few.memory == many.memory < wide.memory
    teacher.config.num_hidden_layers = 8
    deeper = fit_cost(small, build(type(teacher), teacher.config), [10] * 10**6)
    assert deeper.seconds > 1.05 * few.seconds
    assert few.disk == 10**7 * 4 * (2 * 24 + 3 * 16)
    merged = fit_cost(small, teacher, [10] * 10**6, merge_layers=True)
    assert merged.seconds > few.seconds
    assert merged.disk > few.disk


def test_the_cost_is_logged_before_the_fit(teacher, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("INFO", "hf_tinybert"), caplog.at_level("INFO", "transformers"):
            student = create_student(teacher, **SMALL, calibration_dataset=rows(20))
    finally:
        logger.removeHandler(caplog.handler)
    assert f"{student.num_parameters() / 1e6:.1f} M parameters" in caplog.text
    assert "GB of memory" in caplog.text


def test_the_time_of_a_row_leaves_the_model_as_it_was(teacher):
    teacher.train()
    state = torch.get_rng_state()
    assert 0 < seconds_per_row(teacher, 8) < 10
    assert teacher.training
    assert torch.equal(state, torch.get_rng_state())
