"""What must hold on an accelerator such as a GPU. `test_batches.py` compares every loss and head with the CPU."""

import copy

import pytest
import torch
from conftest import needs_accelerator, pad, rows, word_tokenizer
from short_runs import arguments, assert_same_run, distil

from hf_tinybert import DistillationTrainer, cache_logits
from hf_tinybert.losses import attention_score_mse, relation_kl

pytestmark = needs_accelerator
ON_DEVICE = {"use_cpu": False}
LOSSES = {"loss_type": ["attention", "hidden", "embedding", "prediction"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_cache_gb": 1.0},
        {"balance_losses": True},
        {"torch_compile": True},
        {"activation_checkpointing": True},
        {"dataloader_pin_memory": True, "dataloader_num_workers": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_argument_changes_nothing_on_the_device(tmp_path, student, teacher, changes):
    short = {"max_steps": 3, "per_device_train_batch_size": 4}
    runs = [
        distil(tmp_path / name, copy.deepcopy(student), copy.deepcopy(teacher), **short, **LOSSES, **options)
        for name, options in {
            "device": ON_DEVICE | changes,
            "cpu": {"balance_losses": "balance_losses" in changes},
        }.items()
    ]
    assert_same_run(*runs, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{"bf16": True}, {"fp16": True}, {"teacher_dtype": "bfloat16"}], ids=str)
def test_half_precision_is_close(tmp_path, student, teacher, changes):
    _, (log,), _ = distil(tmp_path, copy.deepcopy(student), copy.deepcopy(teacher), **ON_DEVICE, **LOSSES, **changes)
    _, (expected,), _ = distil(tmp_path, student, teacher, **LOSSES)
    assert log["loss"] == pytest.approx(expected["loss"], rel=0.03)


def test_an_overflow_that_the_scaler_handles_does_not_stop_training(tmp_path, student, teacher):
    """The scale of the loss is 65,536 in the first step, in which the gradients of these losses overflow."""
    trainer, logs, _ = distil(tmp_path, student, teacher, **ON_DEVICE, fp16=True, max_steps=20, loss_weights=[1e3] * 4)
    assert len(logs) == 20
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_resume_is_bitwise_equal_on_the_device(tmp_path, student, teacher):
    changes = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "optim": "adamw_torch",
        **LOSSES,
        **ON_DEVICE,
    }
    whole, other = copy.deepcopy(student), copy.deepcopy(student)
    _, logs, _ = distil(tmp_path, whole, teacher, **changes)
    resumed = DistillationTrainer(other, arguments(tmp_path, **changes), pad, rows(8), teacher_model=teacher)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [log for log in resumed.state.log_history if "loss" in log] == logs
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), other.parameters(), strict=True))


def test_cached_logits_are_those_of_the_cpu(tmp_path, teacher):
    tokenizer = word_tokenizer(tmp_path)
    expected = cache_logits(teacher, rows(8), tokenizer)["teacher_logits"]
    logits = cache_logits(teacher.to(torch.accelerator.current_accelerator()), rows(8), tokenizer)["teacher_logits"]
    torch.testing.assert_close(torch.tensor(logits[:]), torch.tensor(expected[:]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", [attention_score_mse, relation_kl])
def test_the_memory_of_a_loss_is_linear_in_the_length(loss):
    """Twice the length takes twice the memory, not four times."""

    def peak(length: int) -> int:
        query = torch.randn(1, 4, length, 16, device="cuda", requires_grad=True)
        inputs = (query, query, query, query) if loss is attention_score_mse else (query, query)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(*inputs).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    if not torch.cuda.is_available():
        pytest.skip("reads the peak memory of CUDA")
    peak(256)
    assert peak(8192) < 2.5 * peak(4096)
