"""Order and masks of batches depend on seed, epoch and tokens alone, whatever was drawn before."""

import torch
from conftest import word_tokenizer

from hf_tinybert.pipelines.resumable import BatchMasks, EpochLengthSampler


def test_the_order_of_an_epoch():
    epochs = [0, 1, 0, 1]
    sampler = EpochLengthSampler(4, [3, 9, 5, 7] * 50, seed=1, epoch=lambda: epochs.pop(0))
    orders = []
    for draws in range(4):
        torch.rand(draws)  # the global random state has nothing to do with it
        orders.append(list(sampler))
    assert orders[:2] == orders[2:]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == list(range(200))
    assert orders[0] != list(EpochLengthSampler(4, [3, 9, 5, 7] * 50, seed=2, epoch=lambda: 0))


def test_the_masks_of_a_batch(tmp_path):
    collator = BatchMasks(word_tokenizer(tmp_path), mlm_probability=0.5)
    rows = [{"input_ids": [2, *range(5, 15), 3]} for _ in range(8)]
    first = collator(rows)
    other = collator([{"input_ids": [2, *range(6, 16), 3]}, *rows[1:]])
    torch.rand(7)
    again = collator(rows)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["labels"] == -100, other["labels"] == -100)  # others in a batch of other rows
    assert 0.2 < (first["labels"] != -100).float().mean() < 0.7
