"""Cached teacher logits: the same training as with a live teacher, in one pass, refused when stale."""

import copy

import pytest
import torch
from conftest import bert_config, build, rows, word_tokenizer
from short_runs import assert_same_run, distil
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from hf_tinybert import AttentionLoss, DistillationTrainer, PredictionLoss, TaskLoss, cache_logits
from hf_tinybert.models.weights import weights_digest


@pytest.fixture
def collator(tmp_path):
    return DataCollatorWithPadding(word_tokenizer(tmp_path))


@pytest.fixture
def calls(teacher):
    """How many rows the teacher has been given."""
    counted = []
    teacher.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: counted.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    return counted


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_column_holds_the_logits_of_each_row(teacher, collator, batch_size):
    data = rows(8)
    cached = cache_logits(teacher, data, collator.tokenizer, batch_size)
    for row, logits in zip(data, cached["teacher_logits"], strict=True):
        want = teacher(torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(torch.tensor(logits), want)
    assert cached.remove_columns("teacher_logits").to_dict() == data.to_dict()


@pytest.mark.parametrize("losses", [[PredictionLoss()], [PredictionLoss(2.0), AttentionLoss(), TaskLoss()]])
def test_cached_and_live_training_are_equal(tmp_path, teacher, student, collator, losses):
    data = rows(16)
    options = {"data_collator": collator, "max_steps": 3, "per_device_train_batch_size": 4}
    live = distil(tmp_path / "live", copy.deepcopy(student), teacher, losses, data, **options)
    cached = cache_logits(teacher, data, collator.tokenizer)
    assert_same_run(distil(tmp_path / "cached", student, teacher, losses, cached, **options), live)


def test_the_teacher_runs_in_the_first_step_only_or_not_at_all(tmp_path, teacher, student, collator, calls):
    data = cache_logits(teacher, rows(16), collator.tokenizer)
    calls.clear()
    options = {"data_collator": collator, "max_steps": 4, "per_device_train_batch_size": 4}
    with_check = distil(tmp_path, copy.deepcopy(student), teacher, [PredictionLoss()], data, **options)
    assert calls == [4]
    without = distil(tmp_path, student, None, [PredictionLoss()], data, **options)
    assert_same_run(without, with_check)
    assert calls == [4]


def test_stale_logits_are_refused(tmp_path, teacher, student, collator):
    data = cache_logits(teacher, rows(8), collator.tokenizer)
    other = build(BertForSequenceClassification, bert_config(4, 32), seed=9).eval()
    with pytest.raises(ValueError, match="teacher_logits is not what teacher_model computes"):
        distil(tmp_path, copy.deepcopy(student), other, [PredictionLoss()], data, data_collator=collator)
    moved = data.remove_columns("teacher_logits").add_column("teacher_logits", data["teacher_logits"][::-1])
    with pytest.raises(ValueError, match="teacher_logits is not what teacher_model computes"):
        distil(tmp_path, student, teacher, [PredictionLoss()], moved, data_collator=collator)


def test_other_losses_still_need_a_teacher(tmp_path, teacher, student, collator):
    data = cache_logits(teacher, rows(8), collator.tokenizer)
    with pytest.raises(ValueError, match="need a teacher"):
        distil(tmp_path, student, None, [PredictionLoss(), AttentionLoss()], data)


def test_evaluation_ignores_the_column(tmp_path, teacher, student, collator):
    data = cache_logits(teacher, rows(8), collator.tokenizer)
    trainer, _, _ = distil(tmp_path, student, teacher, [PredictionLoss()], data, data_collator=collator)
    assert isinstance(trainer, DistillationTrainer)
    plain = trainer.evaluate(data.remove_columns("teacher_logits"))["eval_loss"]
    assert trainer.evaluate(data)["eval_loss"] == plain


def test_cached_on_disk_by_rows_and_weights(tmp_path, teacher, collator, calls):
    rows(8).to_parquet(tmp_path / "rows.parquet")
    data = type(rows(1)).from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    first = cache_logits(teacher, data, collator.tokenizer)
    assert sum(calls) == 8
    assert cache_logits(teacher, data, collator.tokenizer).to_dict() == first.to_dict()
    assert sum(calls) == 8
    before = weights_digest(teacher)
    with torch.no_grad():
        teacher.classifier.bias += 1
    assert weights_digest(teacher) != before
    again = cache_logits(teacher, data, collator.tokenizer)
    assert sum(calls) == 16
    torch.testing.assert_close(torch.tensor(again["teacher_logits"]), torch.tensor(first["teacher_logits"]) + 1)
