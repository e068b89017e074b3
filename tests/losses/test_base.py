import pytest
import torch

from hf_tinybert import AttentionLoss, EmbeddingLoss, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.activations import token_mean


@pytest.mark.parametrize("loss", [AttentionLoss, HiddenLoss, EmbeddingLoss, PredictionLoss, TaskLoss])
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite_numbers(loss, weight):
    with pytest.raises(ValueError, match="finite"):
        loss(weight=weight)


def test_a_sequence_without_real_tokens_counts_as_zero():
    values, mask = torch.ones(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert token_mean(values, mask).tolist() == [1.0, 0.0]
