"""Batches of rows of similar length whose order depends on seed and epoch alone, so that resuming is exact."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..training.trainer import DistillationTrainer


class EpochLengthSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` with a generator of its own for each epoch.

    transformers' draws from the global random state as it is when an epoch begins. A training that is resumed within a
    later epoch cannot know that state, and processes whose dropout drew different numbers do not agree on it.

    Args:
        batch_size: Rows a batch.
        lengths: The length of each row.
        seed: The seed of the training.
        epoch: Returns the number of whole epochs that are done.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int, epoch: Callable[[], int]):
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return super().__iter__()


class ResumableTrainer(DistillationTrainer):
    """`DistillationTrainer` that also resumes exactly within an epoch of rows that are grouped by length."""

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthSampler(sampler.batch_size, sampler.lengths, seed, lambda: int(self.state.epoch or 0))
