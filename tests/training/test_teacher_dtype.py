"""teacher_dtype="auto": decided by the device and the losses of the first batch, and kept."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import bert_config, build, pad, rows, word_tokenizer
from short_runs import arguments, assert_same_run, distil, launch
from transformers import BertForSequenceClassification

from hf_tinybert import DistillationTrainer, PredictionLoss, TaskLoss, cache_logits
from hf_tinybert.lineage import last_stage
from hf_tinybert.training.teacher_dtype import relative_changes

LARGEST_CHANGE = "hf_tinybert.native_dtypes.LARGEST_CHANGE"


@pytest.fixture
def dtypes(teacher):
    """The data types in which the teacher has run."""
    seen = []
    teacher.base_model.register_forward_hook(lambda module, *_: seen.append(module.dtype))
    return seen


@pytest.fixture
def native(cpu_capabilities):
    """A CPU that says that it multiplies bfloat16 natively."""
    cpu_capabilities["avx512_bf16"] = True


def decision(student) -> str | None:
    return last_stage(student.config).teacher_dtype


def dtype_errors(trainer) -> set[str]:
    return {name for log in trainer.state.log_history for name in log if "dtype_error" in name}


def test_a_device_without_bfloat16_keeps_the_teacher_and_says_so(
    tmp_path, student, teacher, dtypes, cpu_capabilities, warned
):
    plain = distil(tmp_path / "plain", copy.deepcopy(student), teacher, max_steps=2)
    run = distil(tmp_path / "auto", student, teacher, max_steps=2, teacher_dtype="auto")
    assert_same_run(run, plain, rtol=0, atol=0)
    assert {*dtypes} == {torch.float32}
    assert decision(student) is None
    assert not dtype_errors(run[0])
    assert warned().count("stays as it is loaded: its device does not multiply bfloat16 natively.") == 1


def test_losses_that_hardly_change_bring_the_teacher_to_bfloat16(tmp_path, student, teacher, dtypes, native, warned):
    teacher.classifier.weight.data *= 0.01  # nearly uniform predictions, which rounding hardly changes
    losses, weights = [PredictionLoss(), TaskLoss()], copy.deepcopy(teacher.state_dict())
    named = distil(tmp_path / "named", copy.deepcopy(student), teacher, losses, max_steps=2, teacher_dtype="bfloat16")
    dtypes.clear()
    run = distil(tmp_path / "auto", student, teacher, losses, max_steps=2, teacher_dtype="auto")
    assert dtypes == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert_same_run(run, named, rtol=0, atol=0)
    assert decision(student) == "bfloat16"
    assert dtype_errors(run[0]) == {"prediction_loss_dtype_error", "task_loss_dtype_error"}
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert "stays as it is loaded" not in warned()


def test_losses_that_change_keep_the_teacher_and_are_named(tmp_path, student, teacher, dtypes, native, warned):
    plain = distil(tmp_path / "plain", copy.deepcopy(student), teacher, max_steps=2)
    dtypes.clear()
    run = distil(tmp_path / "auto", student, teacher, max_steps=2, teacher_dtype="auto")
    assert torch.bfloat16 in dtypes
    assert dtypes[-1] == torch.float32
    assert_same_run(run, plain, rtol=0, atol=0)
    assert decision(student) is None
    assert not dtype_errors(run[0])
    assert "stays as it is loaded: bfloat16 changes attention_loss by " in warned()


def test_a_teacher_that_overflows_is_refused_in_training_only_by_name(tmp_path, student, teacher, native, warned):
    teacher.classifier.bias.data[0] = torch.finfo(torch.float32).max  # infinite in bfloat16
    losses = [PredictionLoss()]
    distil(tmp_path, copy.deepcopy(student), teacher, losses, teacher_dtype="auto")
    assert "prediction_loss by nan %" in warned()
    with pytest.raises(ValueError, match=r"step 1: prediction_loss is not finite because .*teacher"):
        distil(tmp_path, student, teacher, losses, teacher_dtype="bfloat16")


def test_an_attempt_that_ran_out_of_memory_decides_nothing(tmp_path, student, teacher, dtypes, native, monkeypatch):
    attempts = []

    def run_out_of_memory_once(*losses):
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("CUDA out of memory.")
        return relative_changes(*losses)

    monkeypatch.setattr("hf_tinybert.training.teacher_dtype.relative_changes", run_out_of_memory_once)
    trainer, _, _ = distil(tmp_path, student, teacher, max_steps=2, teacher_dtype="auto", auto_find_batch_size=True)
    assert len(attempts) == 2
    assert trainer._train_batch_size < 8
    assert dtypes[-1] == torch.float32
    assert decision(student) is None


def test_a_teacher_whose_logits_are_cached_does_not_run_and_stays(tmp_path, student, teacher, dtypes, native):
    data = cache_logits(teacher, rows(8), word_tokenizer(tmp_path), data_collator=pad)
    for dtype in ("auto", "bfloat16"):
        model = copy.deepcopy(student)
        trainer, _, _ = distil(tmp_path, model, teacher, [PredictionLoss()], data, teacher_dtype=dtype)
        assert not dtype_errors(trainer)
    assert {*dtypes} == {torch.float32}


CACHED = {"max_steps": 4, "loss_type": ["attention", "hidden"], "teacher_cache_gb": 1.0}
# of a teacher whose cache an earlier run has made: for the projections, to decide, and in the check of the first step
DECIDING = [torch.float32, torch.float32, torch.bfloat16, torch.float32]


def test_cached_activations_that_lose_little_are_computed_in_bfloat16(tmp_path, student, teacher, dtypes, native):
    named = distil(tmp_path / "named", copy.deepcopy(student), teacher, teacher_dtype="bfloat16", **CACHED)
    assert torch.bfloat16 in dtypes
    dtypes.clear()
    run = distil(tmp_path / "auto", student, teacher, teacher_dtype="auto", **CACHED)
    assert dtypes == DECIDING
    assert_same_run(run, named, rtol=0, atol=0)
    assert decision(student) == "bfloat16"
    assert teacher.dtype == torch.float32


def test_cached_activations_that_lose_much_are_computed_as_the_teacher_is_loaded(
    tmp_path, student, teacher, dtypes, native, monkeypatch, warned
):
    monkeypatch.setattr(LARGEST_CHANGE, 1e-9)
    plain = distil(tmp_path / "plain", copy.deepcopy(student), teacher, **CACHED)
    dtypes.clear()
    run = distil(tmp_path / "auto", student, teacher, teacher_dtype="auto", **CACHED)
    assert dtypes == DECIDING
    assert_same_run(run, plain, rtol=0, atol=0)
    assert decision(student) is None
    assert "stays as it is loaded: bfloat16 changes the cached activations by " in warned()


def test_equal_losses_have_not_changed_whatever_they_are():
    before = {"task_loss": torch.tensor(0.0), "hidden_loss": torch.tensor(0.0), "attention_loss": torch.tensor(2.0)}
    after = {"task_loss": torch.tensor(0.0), "hidden_loss": torch.tensor(0.1), "attention_loss": torch.tensor(1.5)}
    assert relative_changes(before, after) == {"task_loss": 0.0, "hidden_loss": float("inf"), "attention_loss": 0.25}


@pytest.mark.parametrize(
    ("first", "then"),
    [pytest.param(1.0, 0.0, id="accepted"), pytest.param(0.0, 1.0, id="refused", marks=pytest.mark.slow)],
)
def test_a_run_that_goes_on_keeps_the_decision(
    tmp_path, student, teacher, dtypes, native, monkeypatch, warned, cpu_capabilities, first, then
):
    def train(resumed):
        model = copy.deepcopy(student)
        args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, teacher_dtype="auto")
        trainer = DistillationTrainer(model, args, pad, rows(16), teacher_model=teacher)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1") if resumed else None)
        return model

    monkeypatch.setattr(LARGEST_CHANGE, first)
    whole = train(resumed=False)
    monkeypatch.setattr(LARGEST_CHANGE, then)  # what the losses of the later batch would decide
    resumed = train(resumed=True)
    assert decision(resumed) == decision(whole) == ("bfloat16" if first else None)
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), whole.parameters(), strict=True))
    cpu_capabilities.clear()  # another machine
    train(resumed=True)
    assert dtypes[-1] == torch.float32
    assert ("does not multiply bfloat16 natively" in warned()) == bool(first)


def trained(folder, data, **changes) -> DistillationTrainer:
    """One step by the prediction loss."""
    student, teacher = (build(BertForSequenceClassification, bert_config(2, 16), seed) for seed in (1, 2))
    return distil(folder, student, teacher, [PredictionLoss()], data, **changes)[0]


@pytest.mark.slow
def test_processes_decide_together(tmp_path):
    """What is allowed lies between the change on the rows of one process and that on the rows of both."""
    parts = [rows(8), rows(8).select(range(4)), rows(8).select(range(4, 8))]
    logs = [trained(tmp_path, part, teacher_dtype="bfloat16").state.log_history[0] for part in parts]
    change, *of_processes = [log["prediction_loss_dtype_error"] for log in logs]
    allowed = (change + max(of_processes)) / 2
    assert {value < allowed for value in of_processes} == {True, False}  # by themselves they would disagree
    script = Path(__file__).parent / "teacher_dtype_of_processes.py"
    launch(script, 2, "--folder", tmp_path, "--largest_change", allowed)
    decisions = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert decisions == ["native to both: bfloat16, to one: None"] * 2
