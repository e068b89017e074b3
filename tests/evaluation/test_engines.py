"""Operations by formula, and the order in which engines take turns."""

import numpy as np
import pytest
from conftest import rows, word_tokenizer

from hf_tinybert.evaluation import engines
from hf_tinybert.evaluation.comparison import Agreement
from hf_tinybert.evaluation.engines import Run, count_flops, latencies, predict, torch_forward
from hf_tinybert.evaluation.rows import EvaluationRows
from hf_tinybert.models.prediction_heads import prediction_head_of


def test_flops_by_formula(teacher):
    layers, d, f, classes, s = 4, 32, 64, 3, 11
    batch = {
        "input_ids": np.ones((1, s), dtype=int),
        "attention_mask": np.ones((1, s), dtype=int),
        "labels": np.ones(1),
    }
    layer = 2 * s * (4 * d * d + 2 * d * f) + 2 * 2 * s * s * d
    assert count_flops(teacher, batch) == layers * layer + 2 * (d * d + d * classes)


def test_an_engine_is_compared_with_the_same_model_in_the_first_engine(teacher, student, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PAUSE", 0)
    data = EvaluationRows(rows(24), [teacher, student], word_tokenizer(tmp_path))
    teacher_call, student_call = map(torch_forward, (teacher.eval(), student.eval()))
    changed = [number for number, ids in enumerate(rows(24)["input_ids"]) if len(ids) < 7]

    def lossy(batch):
        short = batch["attention_mask"].sum(1) < 7
        return np.where(short[:, None], -student_call(batch), student_call(batch))

    calls = {"teacher": (teacher_call, teacher_call), "student": (student_call, lossy)}
    runs = [
        Run(role, engine, call, 0)
        for role in calls
        for engine, call in zip(("torch", "onnx_int8"), calls[role], strict=True)
    ]
    for preprocess in (None, lambda logits, labels: logits):
        agreement = Agreement(prediction_head_of(teacher), teacher.config.id2label, 4)
        outputs = predict(runs, data, 5, agreement, preprocess)
        assert outputs.engine_agreement == pytest.approx([1, 1, 1, 1 - len(changed) / 24])


def test_every_engine_is_timed_on_every_row_in_turns():
    calls = []
    runs = [Run(name, "torch", lambda batch, name=name: calls.append((name, batch["row"])), 0) for name in "ab"]
    times = latencies(runs, [{"row": number} for number in range(25)])
    assert [len(milliseconds) for milliseconds in times] == [25, 25]
    assert all(value >= 0 for milliseconds in times for value in milliseconds)
    first_turn = [("a", 0), *(("a", number) for number in range(10))]  # one call that is not timed
    assert calls[:11] == first_turn
    assert calls[11] == ("b", 0)
