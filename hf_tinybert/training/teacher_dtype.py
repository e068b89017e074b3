"""The data type of the teachers: set in the first step, where "auto" is decided by the losses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..native_dtypes import AUTO, NOT_NATIVE, native_to_all, reason_against_bfloat16, say_that_it_stays
from ..teachers import Ensemble, Teaching


@torch.no_grad()
def lower_teachers(
    teachers: Ensemble,
    dtype: str,
    decided: bool,
    inputs: Mapping[str, Any],
    teaching: Teaching,
    losses: Callable[[Teaching], Mapping[str, Tensor]],
) -> tuple[Teaching, dict[str, float]]:
    """Bring the teachers to a data type, and measure the share by which each loss of a batch changes.

    "auto" is bfloat16 if that is native to the teachers' devices and changes each loss by less than 0.1 %. Otherwise
    the log says why the teachers stay as they are loaded. All processes decide together.

    Args:
        teachers: The teachers, which are being read.
        dtype: The name of the data type, or "auto".
        decided: Whether "auto" was decided in favour of bfloat16 before, whatever the losses say now.
        inputs: The batch.
        teaching: What the teachers say of it as they are loaded.
        losses: What the teachers say → the value of each loss, equal in all processes.

    Returns:
        What the teachers say of the batch from now on, and the change of each loss; none if the teachers stay.
    """
    auto = dtype == AUTO
    if auto and not native_to_all(teacher.model for teacher in teachers.teachers):
        reason = NOT_NATIVE
    elif not teachers.lower(dtype, inputs):
        return teaching, {}
    else:
        lowered = teachers.teach(inputs)
        changes = relative_changes(losses(teaching), losses(lowered))
        reason = reason_against_bfloat16(changes) if auto and not decided else None
        if reason is None:
            return lowered, changes
        teachers.restore()
    say_that_it_stays(reason)
    return teaching, {}


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """|after / before − 1| of each value; 0 if they are equal."""
    return {
        name: 0.0 if torch.equal(after[name], before[name]) else abs(after[name] / before[name] - 1).item()
        for name in before
    }
