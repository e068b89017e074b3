"""Operations by formula, and the order in which engines take turns."""

import numpy as np

from hf_tinybert.evaluation.engines import Run, count_flops, latencies


def test_flops_by_formula(teacher):
    layers, d, f, classes, s = 4, 32, 64, 3, 11
    batch = {
        "input_ids": np.ones((1, s), dtype=int),
        "attention_mask": np.ones((1, s), dtype=int),
        "labels": np.ones(1),
    }
    layer = 2 * s * (4 * d * d + 2 * d * f) + 2 * 2 * s * s * d
    assert count_flops(teacher, batch) == layers * layer + 2 * (d * d + d * classes)


def test_every_engine_is_timed_on_every_row_in_turns():
    calls = []
    runs = [Run(name, "torch", lambda batch, name=name: calls.append((name, batch["row"])), 0) for name in "ab"]
    times = latencies(runs, [{"row": number} for number in range(25)])
    assert [len(milliseconds) for milliseconds in times] == [25, 25]
    assert all(value >= 0 for milliseconds in times for value in milliseconds)
    first_turn = [("a", 0), *(("a", number) for number in range(10))]  # one call that is not timed
    assert calls[:11] == first_turn
    assert calls[11] == ("b", 0)
