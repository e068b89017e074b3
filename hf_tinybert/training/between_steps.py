"""The student between two training steps: plain, whoever looks at it."""

import contextlib
from collections.abc import Callable, Iterator

from transformers import TrainerCallback

from .run import DistillationRun


class BetweenSteps(TrainerCallback):
    """Keeps the student plain outside of its training steps. It has to come before all other callbacks.

    Args:
        run: The run.
        log: The trainer's log.
    """

    def __init__(self, run: DistillationRun, log: Callable[[dict[str, float]], None]):
        self.run, self._log = run, log

    @contextlib.contextmanager
    def ahead_of(self, callbacks: list[TrainerCallback]) -> Iterator[None]:
        """Come before the other callbacks of a trainer until the end."""
        callbacks.insert(0, self)
        try:
            yield
        finally:
            callbacks.remove(self)

    def _leave(self, args, state, control, **kwargs) -> None:
        self.run.leave_plain()

    on_train_begin = _leave  # the optimizer and DDP have been made
    on_substep_end = _leave
    on_pre_optimizer_step = _leave  # gradients have been clipped

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Trainer zeroes the gradients of the plain student alone."""
        for parameter in self.run.companions.parameters():
            parameter.grad = None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """What the first step noted is logged once the student is plain, as callbacks see every log."""
        if self.run.dtype_errors:
            errors, self.run.dtype_errors = self.run.dtype_errors, {}
            self._log(errors)
