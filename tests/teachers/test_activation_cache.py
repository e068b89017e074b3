"""The cache itself; what training makes of it is in test_trainer.py and invariants/."""

import multiprocessing
import time

import pytest
import torch
from conftest import pad, rows

from hf_tinybert.activations import Activations, QueryKey
from hf_tinybert.teachers.activation_cache import cache_activations, variance_lost

DATA = rows(40)


def states(ids, width, seed):
    table = torch.randn(100, width, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    return table[ids]


def forward(inputs):
    """Activations that are functions of the token, exact in bf16."""
    ids = inputs["input_ids"]
    heads = [states(ids, 12, seed).unflatten(-1, (3, 4)).transpose(1, 2) for seed in (1, 2, 3)]
    attentions = None, QueryKey(*heads[:2], 0.5, heads[2])
    return Activations(inputs["attention_mask"], None, (states(ids, 8, 0), None, None), {}, attentions)


def slowly(inputs):
    time.sleep(0.04)
    return forward(inputs)


def assert_right(cache):
    for chosen in ([3, 17, 5], [39], list(range(40))):
        batch = pad([DATA[i] for i in chosen], to=15)
        real, want = batch["attention_mask"].bool(), forward(batch)
        got = cache.lookup(torch.tensor(chosen), batch["attention_mask"])
        assert torch.equal(got.hidden_states[0][real].float(), want.hidden_states[0][real])
        assert got.hidden_states[1] is got.attentions[0] is None
        scores, wanted = got.attentions[1], want.attentions[1]
        assert scores.scaling == wanted.scaling
        for a, b in zip(scores.vectors, wanted.vectors, strict=True):
            assert torch.equal(a.transpose(1, 2)[real].float(), b.transpose(1, 2)[real])


def test_reads_what_was_written_whatever_the_padding():
    cache = cache_activations(forward, DATA, pad, "key", 1.0, batch_size=7)
    assert_right(cache)
    left = {name: values.flip(1) for name, values in pad([DATA[i] for i in (3, 17)]).items() if values.dim() == 2}
    got = cache.lookup(torch.tensor([3, 17]), left["attention_mask"])
    want = pad([DATA[i] for i in (3, 17)])
    for b, length in enumerate(want["attention_mask"].sum(1)):  # padding on the left, tokens in the same order
        expected = states(want["input_ids"][b, :length], 8, 0)
        assert torch.equal(got.hidden_states[0][b, -length:].float(), expected)


def test_other_lengths_are_refused():
    cache = cache_activations(forward, DATA, pad, "key", 1.0)
    mask = pad([DATA[3], DATA[17]])["attention_mask"]
    with pytest.raises(ValueError, match="teacher_cache_gb=0"):
        cache.lookup(torch.tensor([17, 3]), mask)


def test_scores_without_factors_are_not_cached():
    def dense(inputs):
        return Activations(inputs["attention_mask"], attentions=(torch.zeros(1, 2, 12, 12),))

    assert cache_activations(dense, DATA, pad, "dense", 1.0) is None


def test_not_worthwhile_but_already_there():
    assert cache_activations(forward, DATA, pad, "key", 1.0, worthwhile=False) is None
    cache_activations(forward, DATA, pad, "key", 1.0)
    assert_right(cache_activations(slowly, DATA, pad, "key", 1.0, worthwhile=False))


def _other_run():
    assert_right(cache_activations(slowly, DATA, pad, "key", 1.0, batch_size=1))


def test_two_runs_at_once_do_not_disturb_each_other():
    other = multiprocessing.get_context("fork").Process(target=_other_run)
    other.start()
    time.sleep(1.2)  # the other has written three quarters
    _other_run()
    other.join()
    assert other.exitcode == 0


def test_the_variance_lost_is_that_of_real_tokens_and_of_the_worst_part():
    batch = pad(list(DATA.select(range(5))))
    exact, real = forward(batch), batch["attention_mask"].bool()
    noise = torch.randn(exact.attentions[1].key.shape, generator=torch.Generator().manual_seed(0))
    query, key, value = exact.attentions[1].vectors
    states = exact.hidden_states[0].clone()
    states[~real] += 9.0  # padding, which does not count
    states[0, 0, 0] += 0.5
    rounded = Activations(
        batch["attention_mask"], None, (states, None, None), {}, (None, QueryKey(query, key + noise, 0.5, value))
    )
    record = torch.cat([x.transpose(1, 2).flatten(2)[real] for x in (query, key, value)], -1).double()
    loss = noise.transpose(1, 2).flatten(2)[real].double().square().sum()
    expected = loss / (record - record.mean(0)).square().sum()
    assert variance_lost(rounded, exact) == pytest.approx(expected.item(), rel=1e-5)
    assert variance_lost(exact, exact) == 0
    constant = Activations(batch["attention_mask"], None, (torch.ones(*real.shape, 4),))
    assert not variance_lost(constant, constant) < 1e-3  # not a number
    assert variance_lost(Activations(), Activations(batch["attention_mask"])) == 0
