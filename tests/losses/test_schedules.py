"""Scheduled and balanced weights: the pure functions, and training with them against what the log says."""

import copy
import math

import pytest
import torch
from conftest import pad, rows
from short_runs import assert_same_run, distil
from transformers import BertConfig

from hf_tinybert import AttentionLoss, DistillationTrainer, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.lineage import Lineage, last_stage
from hf_tinybert.losses.schedules import SCHEDULES, balance_factors, gradient_norm, scheduled_weight
from hf_tinybert.training.companions import is_companion

NAMES = ("attention", "hidden", "prediction", "task")


def losses():
    return [AttentionLoss(0.5), HiddenLoss(2.0), PredictionLoss(1.5), TaskLoss(3.0)]


def test_schedules_at_their_ends_and_in_the_middle():
    at = {name: [scheduled_weight(2.0, name, t) for t in (0, 0.5, 0.75, 1)] for name in SCHEDULES}
    assert at["constant"] == [2, 2, 2, 2]
    assert at["linear_decay"] == [2, 1, 0.5, 0]
    assert at["linear_growth"] == [0, 1, 1.5, 2]
    assert at["cosine_decay"] == pytest.approx([2, 1, 1 + math.cos(0.75 * math.pi), 0], abs=1e-12)


def test_balanced_gradients_are_equal_and_their_sum_is_kept():
    weights, norms = {"a": 0.5, "b": -2.0, "c": 1.0}, {"a": 8.0, "b": 0.25, "c": 1.5}
    factors = balance_factors(weights, norms)
    balanced = [factors[name] * abs(weights[name]) * norms[name] for name in weights]
    assert balanced == pytest.approx([2.0] * 3)
    assert min(factors.values()) > 0


@pytest.mark.parametrize(("weight", "norm"), [(0.0, 1.0), (1.0, 0.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_loss_without_a_gradient_is_not_balanced(weight, norm):
    with pytest.raises(ValueError, match="balance_losses: the b loss"):
        balance_factors({"a": 1.0, "b": weight}, {"a": 1.0, "b": norm})


def test_gradient_norm_leaves_the_graph_and_the_gradients():
    x, y, unused = (torch.nn.Parameter(torch.tensor(value)) for value in (3.0, 2.0, 1.0))
    value = x.square() + 4 * y
    assert gradient_norm(value, [x, y, unused]).item() == pytest.approx(math.hypot(6, 4))
    assert x.grad is None
    value.backward()
    assert x.grad.item() == 6


SCHEDULED = ["linear_decay", "cosine_decay", "linear_growth", "constant"]


def test_scheduled_weights_train_and_are_logged(tmp_path, student, teacher):
    trainer, logs, _ = distil(tmp_path, student, teacher, losses(), max_steps=4, loss_schedules=SCHEDULED)
    for step, log in enumerate(logs):
        weights = [scheduled_weight(loss.weight, s, step / 4) for loss, s in zip(losses(), SCHEDULED, strict=True)]
        assert [log[f"{name}_weight"] for name in NAMES[:3]] == pytest.approx(weights[:3])
        assert "task_weight" not in log
        assert log["loss"] == pytest.approx(sum(w * log[f"{n}_loss"] for w, n in zip(weights, NAMES, strict=True)))
    assert [loss.schedule for loss in last_stage(trainer.model.config).losses] == SCHEDULED


def test_a_growing_loss_starts_at_nothing(tmp_path, student, teacher):
    pair = [HiddenLoss(), TaskLoss()]
    growing = ["constant", "linear_growth"]
    (log,), (gradient,) = distil(tmp_path, copy.deepcopy(student), teacher, pair, loss_schedules=growing)[1:]
    (_,), (alone,) = distil(tmp_path, student, teacher, pair[:1])[1:]
    assert log["task_loss"] > 0
    for name, want in alone.items():
        torch.testing.assert_close(gradient[name], want)


def test_schedules_do_not_depend_on_the_split(tmp_path, student, teacher):
    run = {"max_steps": 2, "loss_schedules": SCHEDULED}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    whole = distil(tmp_path, copy.deepcopy(student), teacher, losses(), **run)
    assert_same_run(distil(tmp_path, student, teacher, losses(), **run, **split), whole)


def test_another_number_of_schedules_is_refused(tmp_path, student, teacher):
    with pytest.raises(ValueError, match="loss_schedules has 1 names for 4 losses"):
        distil(tmp_path, student, teacher, losses(), loss_schedules=["constant"])


def student_norm(gradients):
    """The norm of the student's gradient, without what its projections get."""
    student_gradients = [g.flatten() for name, g in gradients.items() if not is_companion(name)]
    return torch.linalg.vector_norm(torch.cat(student_gradients)).item()


def test_balance_against_one_run_a_loss(tmp_path, student, teacher):
    """Reference: the gradients of four runs, each of one loss; the batch is the only micro-batch."""
    single = [distil(tmp_path, copy.deepcopy(student), teacher, [loss]) for loss in losses()]
    steps = [gradients[0] for _, _, gradients in single]
    target = sum(map(student_norm, steps)) / 4
    trainer, (log,), (balanced,) = distil(tmp_path, student, teacher, losses(), balance_losses=True)
    expected = [target / student_norm(step) for step in steps]
    weights = [factor * loss.weight for factor, loss in zip(expected, losses(), strict=True)]
    assert max(expected) > 2 * min(expected)  # there is something to balance
    assert [log[f"{name}_weight"] for name in NAMES] == pytest.approx(weights, rel=1e-4)
    for name, gradient in balanced.items():
        parts = [factor * step[name] for factor, step in zip(expected, steps, strict=True) if name in step]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-3, atol=1e-5)
    assert last_stage(trainer.model.config).factors == pytest.approx(dict(zip(NAMES, expected, strict=True)), rel=1e-4)


def test_balanced_and_scheduled_training_resumes_bitwise(tmp_path, student, teacher):
    changes = {"train_dataset": rows(20), "max_steps": 6, "per_device_train_batch_size": 2, "optim": "adamw_torch"}
    changes |= {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "random", "learning_rate": 1e-3}
    changes |= {"gradient_accumulation_steps": 2, "balance_losses": True, "loss_schedules": SCHEDULED}
    whole = copy.deepcopy(student)
    trainer, logs, _ = distil(tmp_path, whole, teacher, losses(), **changes)
    assert len({log["task_weight"] for log in logs}) == 1
    factors = last_stage(whole.config).factors
    assert len(factors) == 4
    assert last_stage(BertConfig.from_pretrained(tmp_path / "checkpoint-2")).factors == factors
    args = copy.deepcopy(trainer.args)
    resumed = DistillationTrainer(student, args, pad, rows(20), teacher_model=teacher, losses=losses())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [log for log in resumed.state.log_history if "loss" in log] == logs
    assert student.config.distillation == whole.config.distillation
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), student.parameters(), strict=True))


def test_the_card_tells_schedules_and_factors(tmp_path, student, teacher):
    trainer, _, _ = distil(tmp_path, student, teacher, losses(), balance_losses=True, loss_schedules=SCHEDULED)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| schedules of weights | attention linear_decay, hidden cosine_decay" in card
    assert "| balancing factors of weights | attention " in card


def test_a_second_training_is_balanced_anew(tmp_path, student, teacher):
    trainer, _, _ = distil(tmp_path, student, teacher, losses(), balance_losses=True, max_steps=3)
    first = last_stage(student.config).factors
    trainer.train()
    before, after = (stage.factors for stage in Lineage.from_config(student.config).stages)
    assert before == first
    assert after != first
