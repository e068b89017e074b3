import pytest
import torch
from conftest import bert_config, build
from short_runs import distil
from transformers import BertForSequenceClassification

from hf_tinybert.activations import Activations
from hf_tinybert.losses import CosineLoss, HiddenLoss, PatienceLoss, cosine_distance
from hf_tinybert.training.companions import PROJECTIONS


def test_equals_torchs_cosine_embedding_loss_over_real_tokens():
    student, teacher, lengths = torch.randn(3, 7, 5), torch.randn(3, 7, 5), [7, 4, 1]
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in lengths])
    expected = [
        torch.nn.functional.cosine_embedding_loss(student[b, :n].double(), teacher[b, :n].double(), torch.ones(n))
        for b, n in enumerate(lengths)
    ]
    result = cosine_distance(student, teacher, mask)
    torch.testing.assert_close(result.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosine_distance(3 * student, 0.1 * teacher, mask), result)
    torch.testing.assert_close(cosine_distance(student, teacher)[0], result[0])


def test_reads_the_last_mapped_layers():
    states = [torch.randn(2, 4, 3) for _ in range(5)]
    student = Activations(hidden_states=(None, states[0], states[1]))
    teacher = Activations(hidden_states=(None, None, states[2], None, states[3]))
    value = CosineLoss()(student, teacher, [(1, 2), (2, 4)])
    torch.testing.assert_close(value, cosine_distance(states[1], states[3]))


@pytest.mark.parametrize("loss", [CosineLoss, PatienceLoss])
@pytest.mark.parametrize("width", [16, 32])
def test_projected_only_where_the_widths_differ(tmp_path, teacher, loss, width):
    student = build(BertForSequenceClassification, bert_config(2, width), 5)
    losses = [loss(), HiddenLoss(0.0)]  # which projects always
    _, logs, gradients = distil(tmp_path, student, teacher, losses, max_steps=5, learning_rate=0.05)
    projections = {name.split(".")[1] for name in gradients[0] if name.startswith(PROJECTIONS)}
    assert projections == {"hidden", loss.name} - ({loss.name} if width == 32 else set())
    assert logs[-1][f"{loss.name}_loss"] < logs[0][f"{loss.name}_loss"]
