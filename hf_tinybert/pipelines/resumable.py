"""Order and masks of batches that depend on no random state that a checkpoint lacks, so that resuming is exact."""

import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling
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


class BatchMasks(DataCollatorForLanguageModeling):
    """`DataCollatorForLanguageModeling` whose masks follow from the tokens of the batch.

    A data loader collates a batch ahead. transformers' masks, from the global random state, are therefore others after
    a checkpoint than without one. As the rows of a batch change from epoch to epoch, the masks do too.
    """

    def torch_mask_tokens(self, inputs: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Masked tokens and their labels."""
        self.generator = torch.Generator().manual_seed(zlib.crc32(inputs.contiguous().numpy()))
        return super().torch_mask_tokens(inputs, *args, **kwargs)
