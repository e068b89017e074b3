"""Stops a training before a value that is not finite reaches the student's weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


@dataclass
class _MicroBatch:
    inputs: Mapping[str, Any]
    losses: dict[str, Tensor]
    cause: str | None

    def not_finite(self) -> list[str]:
        return [name for name, value in self.losses.items() if not value.isfinite().all()]


def is_near(losses: Mapping[str, Tensor]) -> bool:
    """Whether losses can be read without waiting for a device."""
    return all(value.device.type == "cpu" for value in losses.values())


class FiniteCheck:
    """Watches the losses of each micro-batch and, once for each optimizer step, asks the device about all of them.

    Args:
        accelerator: The trainer's.
        find_cause: A batch → what of the teachers is not finite for it, in words; None if all is.
    """

    def __init__(self, accelerator: Accelerator, find_cause: Callable[[Mapping[str, Any]], str | None]):
        self.accelerator, self.find_cause = accelerator, find_cause
        self._micro_batches: list[_MicroBatch] = []

    def restart(self) -> None:
        """Forget the micro-batches of an accumulated batch that was left unfinished."""
        self._micro_batches = []

    def watch(self, inputs: Mapping[str, Any], losses: Mapping[str, Tensor], cause: Callable[[], str | None]) -> None:
        """Remember the losses of a micro-batch.

        Args:
            inputs: The batch.
            losses: The value of each loss.
            cause: What of the teachers is not finite, in words; it is asked now if the losses need no waiting for, and
                otherwise the batch is run again if need be.
        """
        micro_batch = _MicroBatch(inputs, {name: value.detach() for name, value in losses.items()}, None)
        if is_near(losses) and micro_batch.not_finite():
            micro_batch.cause = cause()
        self._micro_batches.append(micro_batch)

    def check(self, student: nn.Module, step: int) -> None:
        """Check the losses of the accumulated batch, and the student's gradients unless a loss scaler watches them.

        All processes raise if one has to, so that none waits for another.

        Args:
            student: The student, after the backward pass.
            step: The number of the optimizer step that is to follow, counted from 1.

        Raises:
            ValueError: If one is not finite; the message says what, and why.
        """
        micro_batches, self._micro_batches = self._micro_batches, []
        if not micro_batches:
            return
        losses = torch.stack([~value.isfinite().all() for batch in micro_batches for value in batch.losses.values()])
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        failures = torch.stack([losses.any(), self._overflow(gradients).to(losses.device)]).float()
        if self.accelerator.num_processes > 1:
            failures = self.accelerator.reduce(failures, "sum")
        loss_failures, gradient_failures = failures.tolist()  # the one wait for the device
        if not (loss_failures or gradient_failures):
            return
        reason = self._about_losses(micro_batches) if loss_failures else _about_gradients(gradients)
        student.zero_grad()
        raise ValueError(
            f"Training stopped before optimizer step {step}: {reason}. The student and its checkpoints are as step "
            f"{step - 1} left them."
        )

    def _overflow(self, gradients: Mapping[str, Tensor]) -> Tensor:
        if not gradients or self.accelerator.scaler is not None:  # a scaler leaves such steps out by itself
            return torch.tensor(False)
        norm = get_total_norm(gradients.values())
        return ~(norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite()

    def _about_losses(self, micro_batches: list[_MicroBatch]) -> str:
        for batch in micro_batches:
            names = batch.not_finite()
            if not names:
                continue
            cause = batch.cause or self.find_cause(batch.inputs)
            because = (
                f"because {cause} holds NaN or infinity (a float16 teacher overflows where bfloat16 does not)"
                if cause
                else "while the teacher's values are finite (check the labels, the loss and the learning rate)"
            )
            return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not finite {because}"
        return "a loss of another process is not finite, as its own message says"


def _about_gradients(gradients: Mapping[str, Tensor]) -> str:
    name = next((name for name, gradient in gradients.items() if not gradient.isfinite().all()), "another process")
    return f"the gradient of '{name}' is not finite although every loss is (check square roots and quotients at 0)"
