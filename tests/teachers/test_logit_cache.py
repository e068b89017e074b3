"""Cached teacher logits: the same training as with a live teacher, in one pass, refused when stale."""

import copy

import pytest
import torch
from conftest import bert_config, build, rows, word_tokenizer
from head_kinds import KINDS
from short_runs import assert_same_run, distil
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from hf_tinybert import AttentionLoss, DistillationTrainer, PredictionLoss, TaskLoss, cache_logits
from hf_tinybert.models.prediction_heads import prediction_head_of
from hf_tinybert.models.weights import weights_digest
from hf_tinybert.teachers.logit_cache import share_lost


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


def logits_of(model, data) -> torch.Tensor:
    """One row at a time, as a reference."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row["input_ids"]])).logits.float() for row in data])


def test_the_data_type_is_the_teachers_while_it_runs_and_part_of_the_name(tmp_path, teacher, collator, calls, warned):
    rows(8).to_parquet(tmp_path / "rows.parquet")
    data = type(rows(1)).from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    plain = cache_logits(teacher, data, collator.tokenizer)
    weights, lower = copy.deepcopy(teacher.state_dict()), copy.deepcopy(teacher).to(torch.bfloat16)
    calls.clear()
    cached = cache_logits(teacher, data, collator.tokenizer, dtype="bfloat16")
    assert sum(calls) == 8
    torch.testing.assert_close(torch.tensor(cached["teacher_logits"]), logits_of(lower, data), rtol=0.02, atol=0.02)
    assert cached["teacher_logits"] != plain["teacher_logits"]
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    calls.clear()
    assert cache_logits(teacher, data, collator.tokenizer, dtype="bfloat16").to_dict() == cached.to_dict()
    assert cache_logits(teacher, data, collator.tokenizer, dtype="float32").to_dict() == plain.to_dict()
    assert not calls
    with pytest.raises(ValueError, match="dtype='int8': give one of auto"):
        cache_logits(teacher, data, collator.tokenizer, dtype="int8")


def test_auto_is_bfloat16_where_it_is_native_and_little_is_lost(teacher, collator, cpu_capabilities, warned):
    data, tokenizer = rows(8), collator.tokenizer
    plain, lower = (cache_logits(teacher, data, tokenizer, dtype=dtype).to_dict() for dtype in (None, "bfloat16"))
    assert plain != lower
    assert cache_logits(teacher, data, tokenizer, dtype="auto").to_dict() == plain
    assert "stays as it is loaded: its device does not multiply bfloat16 natively" in warned()
    cpu_capabilities["avx512_bf16"] = True
    assert cache_logits(teacher, data, tokenizer, dtype="auto").to_dict() == lower
    assert "bfloat16 changes" not in warned()
    assert not len(cache_logits(teacher, data.select([]), tokenizer, dtype="auto"))
    teacher.classifier.bias.data += 1000  # the softmax is the same, the differences are rounded off
    exact = cache_logits(teacher, data, tokenizer).to_dict()
    assert cache_logits(teacher, data, tokenizer, dtype="auto").to_dict() == exact
    assert "stays as it is loaded: bfloat16 changes the logits by " in warned()


def test_auto_of_several_teachers_lowers_those_in_float32(teacher, collator, cpu_capabilities):
    cpu_capabilities["avx512_bf16"] = True
    data, tokenizer = rows(8), collator.tokenizer
    other = build(BertForSequenceClassification, bert_config(4, 32), seed=9).eval().to(torch.bfloat16)
    lower = cache_logits([teacher, other], data, tokenizer, dtype="bfloat16")
    assert cache_logits([teacher, other], data, tokenizer, dtype="auto").to_dict() == lower.to_dict()
    assert {model.dtype for model in (teacher, other)} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("name", ["several labels", "score", "tokens", "spans", "choices"])
def test_auto_decides_for_every_kind_of_head(tmp_path, name, cpu_capabilities, warned):
    cpu_capabilities["avx512_bf16"] = True
    kind, tokenizer = KINDS[name], word_tokenizer(tmp_path)
    teacher = build(kind.model_class, bert_config(1, 16, **kind.config))
    data, how = kind.rows(tokenizer).select(range(8)), {"data_collator": kind.collator(tokenizer)}
    plain, auto = (cache_logits(teacher, data, tokenizer, dtype=dtype, **how) for dtype in (None, "auto"))
    assert auto["teacher_logits"] != plain["teacher_logits"]
    assert "stays as it is loaded" not in warned()


def test_the_share_lost_of_classes_is_a_quotient_of_divergences(teacher):
    logits, noise = torch.randn(2, 6, 3).double()
    mean = logits.mean(0).expand(6, 3)
    (p, q, r), total = (z.softmax(-1) for z in (logits, logits + 0.1 * noise, mean)), [0.0, 0.0]
    for row in range(6):
        for option in range(3):
            for index, other in enumerate((q, r)):
                total[index] += p[row, option] * (p[row, option] / other[row, option]).log()
    head = prediction_head_of(teacher)
    assert share_lost(logits + 0.1 * noise, logits, head, None) == pytest.approx(
        (total[0] / total[1]).item(), rel=1e-3
    )
    assert share_lost(logits + 5, logits, head, None) == pytest.approx(0, abs=1e-6)


def test_the_share_lost_of_scores_is_the_unexplained_variance_whatever_their_offset():
    config = bert_config(1, 16, num_labels=1, id2label={0: "score"}, label2id={"score": 0})
    head = prediction_head_of(build(BertForSequenceClassification, config))
    years = torch.tensor([[1990.0], [2000.0], [2004.0], [2010.0]])
    expected = (years.bfloat16().float() - years).square().mean() / years.var(correction=0)
    assert share_lost(years.bfloat16().float(), years, head, None) == pytest.approx(expected.item())
    assert expected > 0.01


def test_the_share_lost_of_tokens_is_that_of_real_ones(token_teacher):
    head = prediction_head_of(token_teacher)
    logits, noise = torch.randn(2, 2, 4, 3)
    padded, mask = logits.clone(), torch.ones(2, 4)
    padded[:, 3], mask[:, 3] = 100, 0
    share = share_lost(padded + 0.1 * noise, padded, head, mask)
    assert share == pytest.approx(share_lost((logits + 0.1 * noise)[:, :3], logits[:, :3], head, torch.ones(2, 3)))
