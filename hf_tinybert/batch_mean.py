"""Losses that are means over the whole accumulated and global batch, whatever the micro-batches and processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import find_batch_size

from .hub import HubTrainer


class BatchMeanTrainer(HubTrainer):
    """`Trainer` that, where it has `losses`, knows the examples and labels of the accumulated batch over all ranks."""

    _num_examples = _num_labels = None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, with the numbers of examples and labels counted."""
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.losses:
            counts = sum(map(find_batch_size, batch_samples)), sum(map(_count_labels, batch_samples))
            if self.args.world_size > 1:
                counts = torch.stack([torch.as_tensor(count, device=device) for count in counts])
                counts = self.accelerator.reduce(counts, "sum")
            self._num_examples, self._num_labels = counts
        return batch_samples, num_items_in_batch

    def _mean_of(self, inputs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """What takes a loss's values of the micro-batch `inputs` to its share of the mean over all examples.

        Values are (B,), or (B·choices,) in multiple choice, whose choices are averaged; a scalar is taken as it is.
        """
        examples = find_batch_size(inputs)
        total = self._num_examples if self._num_examples is not None else examples
        share = self.accelerator.num_processes / total  # DDP averages over ranks what is to be a mean over all
        return lambda values: values.view(examples, -1).mean(1).sum() * share if values.dim() else values

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "mean")

    def _label_loss(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch) -> tuple[Tensor, Any]:
        """This micro-batch's share of Trainer's label loss as a mean over all labels, and the outputs.

        Sequence classification heads accept `num_items_in_batch` and ignore it (their loss comes out too large by the
        number of accumulation steps), so the mean of this micro-batch is weighted here by its share of the labels.
        """
        compute_loss = super().compute_loss
        if self.compute_loss_func is not None:
            return compute_loss(model, inputs, True, num_items_in_batch)
        labels = _count_labels(inputs)
        loss, outputs = compute_loss(model, inputs, True, None)
        total = self._num_labels if self._num_labels is not None else labels
        share = self.accelerator.num_processes * labels / total
        return torch.where(torch.as_tensor(labels > 0, device=loss.device), loss * share, 0.0), outputs


def _count_labels(batch: dict[str, Any]) -> Tensor | int:
    """Labels that count in the label loss; examples where the labels have other names (start and end positions)."""
    labels = batch.get("labels")
    return find_batch_size(batch) if labels is None else (labels != -100).sum()
