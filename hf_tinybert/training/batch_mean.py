"""Means over the whole accumulated and global batch, whatever the micro-batches and processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size


class BatchMean:
    """Knows the numbers of examples and labels of the accumulated batch over all processes.

    Args:
        accelerator: The trainer's.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.examples: Tensor | int | None = None
        self.labels: Tensor | int | None = None

    def count(self, micro_batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Count the examples and labels of the next accumulated batch."""
        counts = sum(map(find_batch_size, micro_batches)), sum(map(_count_labels, micro_batches))
        if self.accelerator.num_processes > 1:
            counts = torch.stack([torch.as_tensor(count, device=device) for count in counts])
            counts = self.accelerator.reduce(counts, "sum")
        self.examples, self.labels = counts

    def over_examples(self, inputs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """A function from a loss's values of the micro-batch `inputs` to its share of the mean over all examples.

        Values are (B,), or (B·choices,) in multiple choice, whose choices are averaged; a scalar is taken as it is.
        """
        examples = find_batch_size(inputs)
        total = self.examples if self.examples is not None else examples
        share = self.accelerator.num_processes / total  # DDP averages over processes what is to be a mean over all
        return lambda values: values.view(examples, -1).mean(1).sum() * share if values.dim() else values

    def over_labels(self, loss: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The share of a micro-batch's mean label loss in the mean over all labels; 0 for one without labels."""
        labels = _count_labels(inputs)
        total = self.labels if self.labels is not None else labels
        share = self.accelerator.num_processes * labels / total
        return torch.where(torch.as_tensor(labels > 0, device=loss.device), loss * share, 0.0)

    def over_processes(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(values, "mean")


def _count_labels(batch: dict[str, Any]) -> Tensor | int:
    """Labels that count in the label loss; examples if the labels have other names (start and end positions)."""
    labels = batch.get("labels")
    return find_batch_size(batch) if labels is None else (labels != -100).sum()
