"""Parameters of a user's loss: trained, clipped, checkpointed, resumed, and never in the saved student."""

import copy
import json

import pytest
import torch
from conftest import bert_config, build, pad, rows
from extensions import ScaledLogits
from safetensors.torch import load_file
from short_runs import arguments, assert_same_run, distil
from transformers import BertForSequenceClassification

from hf_tinybert import DistillationTrainer, HiddenLoss, TaskLoss

FILE = "distillation_losses.safetensors"


def test_one_step_of_sgd_against_autograd(tmp_path, student, teacher):
    loss, batch = ScaledLogits(0.5, start=1.5), pad(rows(8).to_list())
    batch.pop("labels")
    factor, offset = torch.tensor(1.5, requires_grad=True), torch.zeros(3, requires_grad=True)
    difference = factor * student(**batch).logits + offset - teacher(**batch).logits.detach()
    (0.5 * difference.square().mean()).backward()
    distil(tmp_path, student, teacher, [loss])
    torch.testing.assert_close(loss.factor.detach(), 1.5 - 0.1 * factor.grad)
    torch.testing.assert_close(loss.offset.detach(), -0.1 * offset.grad)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_all_parameters_are_clipped_together(tmp_path, student, teacher, accumulation):
    options = {"max_grad_norm": 0.01, "gradient_accumulation_steps": accumulation}
    options["per_device_train_batch_size"] = 8 // accumulation
    _, _, (gradients,) = distil(tmp_path, student, teacher, [ScaledLogits(), HiddenLoss()], **options)
    assert {"distillation_losses.scaled_logits.factor", "distillation_losses.scaled_logits.offset"} <= set(gradients)
    total = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
    assert total == pytest.approx(0.01, rel=1e-3)


def test_the_split_of_a_batch_changes_nothing(tmp_path, student, teacher):
    whole = distil(tmp_path, copy.deepcopy(student), teacher, [ScaledLogits(), TaskLoss()])
    split = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}
    assert_same_run(distil(tmp_path, student, teacher, [ScaledLogits(), TaskLoss()], **split), whole)


def test_resume_is_bitwise_equal_and_the_saved_student_is_plain(tmp_path, student, teacher):
    changes = {"train_dataset": rows(20), "max_steps": 6, "per_device_train_batch_size": 4, "optim": "adamw_torch"}
    changes |= {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "random", "learning_rate": 1e-2}
    plain, whole, loss = set(student.state_dict()), copy.deepcopy(student), ScaledLogits()
    trainer, logs, _ = distil(tmp_path, whole, teacher, [loss, HiddenLoss()], **changes)
    at_three = load_file(tmp_path / "checkpoint-3" / FILE)
    assert not torch.equal(at_three["scaled_logits.factor"], loss.factor)
    assert set(load_file(tmp_path / "checkpoint-3/model.safetensors")) == plain == set(whole.state_dict())
    args, again = copy.deepcopy(trainer.args), ScaledLogits()
    resumed = DistillationTrainer(student, args, pad, rows(20), teacher_model=teacher, losses=[again, HiddenLoss()])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [log for log in resumed.state.log_history if "loss" in log] == logs
    for left, right in ((whole, student), (loss, again)):
        assert all(torch.equal(p, q) for p, q in zip(left.parameters(), right.parameters(), strict=True))
    (tmp_path / "checkpoint-3" / FILE).unlink()
    with pytest.raises(ValueError, match=f"has no {FILE}"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_users_optimizer_trains_them_too(tmp_path, student, teacher):
    loss, optimizer = ScaledLogits(), torch.optim.SGD(student.parameters(), lr=0.1)
    options = {"teacher_model": teacher, "losses": [loss], "optimizers": (optimizer, None)}
    DistillationTrainer(student, arguments(tmp_path), pad, rows(8), **options).train()
    assert loss.factor.item() != 1.0


def test_every_student_of_model_init_meets_the_losses_first_parameters(tmp_path, teacher):
    loss, ends = ScaledLogits(), []
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=2),
        data_collator=pad,
        train_dataset=rows(8),
        model_init=lambda: build(BertForSequenceClassification, bert_config(2, 16), 2),
        teacher_model=teacher,
        losses=[loss],
    )
    for _ in range(2):
        trainer.train()
        ends.append(loss.factor.item())
    assert ends[0] == ends[1] != 1.0


def test_the_lineage_has_the_settings(tmp_path, student, teacher):
    trainer, _, _ = distil(tmp_path, student, teacher, [ScaledLogits(0.5, start=2.0)])
    trainer.save_model()
    (stage,) = json.loads((tmp_path / "config.json").read_text())["distillation"]["stages"]
    (record,) = stage["losses"]
    assert (record["name"], record["weight"], record["settings"]) == (
        "scaled_logits",
        0.5,
        {"start": 2.0, "classes": 3},
    )
