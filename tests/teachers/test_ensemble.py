"""Several teachers: their logits against float64 references, and training with them against training with one."""

import copy
import json

import datasets
import pytest
import torch
from conftest import bert_config, build, pad, rows, word_tokenizer
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from short_runs import arguments, assert_same_run, distil
from torch.nn import functional as F
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from hf_tinybert import (
    AttentionLoss,
    CosineLoss,
    DistillationTrainer,
    EmbeddingLoss,
    HiddenLoss,
    PredictionLoss,
    TaskLoss,
    cache_logits,
)
from hf_tinybert.models.prediction_heads import Classes, Labels, Regression, Spans, TokenClasses
from hf_tinybert.teachers import combine_logits, normalised
from hf_tinybert.training.companions import PROJECTIONS_FILE

WEIGHTS = [0.5, 0.3, 0.2]


def losses():
    return [AttentionLoss(0.5), HiddenLoss(2.0), EmbeddingLoss(), CosineLoss(), PredictionLoss(1.5), TaskLoss()]


@pytest.fixture
def other():
    """A second teacher: deeper, wider and with other heads' sizes than the first."""
    return build(BertForSequenceClassification, bert_config(6, 48), 7).eval()


def draw(*shape, dtype=torch.float64, count=3):
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (2, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mean_of_logits(shape, dtype):
    logits = draw(*shape, dtype=dtype)
    expected = sum(w * z.double() for w, z in zip(WEIGHTS, logits, strict=True))
    combined = combine_logits(logits, WEIGHTS, Classes())
    assert combined.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(combined.double(), expected, rtol=1e-6, atol=1e-6)


def reference(logits, weights, probabilities):
    """One distribution, number by number."""
    entropies = [-sum(p * p.log() for p in probabilities(z)) for z in logits]
    shares = [w * (-h).exp() for w, h in zip(weights, entropies, strict=True)]
    return sum(s * z for s, z in zip(shares, logits, strict=True)) / sum(shares)


def test_confidence_of_classes():
    logits = draw(2, 5, 7)
    combined = combine_logits(logits, WEIGHTS, TokenClasses(), "confidence")
    for b in range(2):
        for s in range(5):
            want = reference([z[b, s] for z in logits], WEIGHTS, lambda z: z.softmax(0))
            torch.testing.assert_close(combined[b, s], want, rtol=1e-12, atol=1e-12)


def test_confidence_of_labels():
    logits = draw(4, 3)
    combined = combine_logits(logits, WEIGHTS, Labels(), "confidence")
    for b in range(4):
        for c in range(3):
            want = reference([z[b, c] for z in logits], WEIGHTS, lambda z: [z.sigmoid(), (-z).sigmoid()])
            torch.testing.assert_close(combined[b, c], want, rtol=1e-12, atol=1e-12)


def test_confidence_of_positions_leaves_padding_out():
    logits, lengths = draw(3, 6, 2), [6, 4, 1]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    combined = combine_logits(logits, WEIGHTS, Spans(), "confidence", mask)
    for b, n in enumerate(lengths):
        for end in (0, 1):
            want = reference([z[b, :n, end] for z in logits], WEIGHTS, lambda z: z.softmax(0))
            torch.testing.assert_close(combined[b, :n, end], want, rtol=1e-12, atol=1e-12)
    assert combined.isfinite().all()


def test_the_surer_teacher_is_heard_more():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.1]])
    assert combine_logits([sure, unsure], [0.5, 0.5], Classes(), "confidence")[0, 0] > 0.6 * 9
    torch.testing.assert_close(combine_logits([sure], [1.0], Classes(), "confidence"), sure, rtol=0, atol=0)


def test_a_score_has_no_confidence():
    with pytest.raises(ValueError, match="set teacher_logits='mean'"):
        combine_logits(draw(4, 1), WEIGHTS, Regression(), "confidence")


def test_weights_sum_to_one():
    assert normalised(None, 4) == [0.25] * 4
    assert normalised([1, 3], 2) == [0.25, 0.75]
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="one positive number for each of the 2 teachers"):
            normalised(weights, 2)


def plain(run):
    """The run without what only several teachers have: a log and projections of each."""
    trainer, logs, gradients = run
    logs = [{name: log[name] for name in log if "_teacher" not in name} for log in logs]
    return trainer, logs, [{name: g for name, g in step.items() if "_teacher2" not in name} for step in gradients]


@pytest.mark.parametrize("how", ["mean", "confidence"])
def test_two_copies_of_a_teacher_are_that_teacher(tmp_path, student, teacher, how):
    alone = distil(tmp_path / "one", copy.deepcopy(student), copy.deepcopy(teacher), losses(), max_steps=1)
    pair = [teacher, copy.deepcopy(teacher)]
    both = distil(tmp_path / "two", student, pair, losses(), teacher_weights=[1, 2], teacher_logits=how)
    for name in ("attention", "hidden", "cosine"):
        parts = [both[1][0][f"{name}_loss_teacher{k}"] for k in (1, 2)]
        assert parts == pytest.approx([alone[1][0][f"{name}_loss"]] * 2, rel=1e-5)
    assert "prediction_loss_teacher1" not in both[1][0]
    shared = {name: g for name, g in alone[2][0].items() if "projections" not in name}
    _, logs, (gradients,) = plain(both)
    own = {name: g for name, g in gradients.items() if "projections" not in name}
    assert_same_run((None, logs, [own]), (None, alone[1], [shared]))
    for name in ("hidden.weight", "cosine.bias", "embedding.weight"):  # each by its weight
        loss, part = name.split(".")
        want = alone[2][0][f"distillation_projections.{name}"]
        first, second = (both[2][0][f"distillation_projections.{loss}{k}.{part}"] for k in ("", "_teacher2"))
        torch.testing.assert_close(first, want / 3, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(second, want * 2 / 3, rtol=1e-4, atol=1e-6)


def test_a_teacher_of_hardly_any_weight_is_not_heard(tmp_path, student, teacher, other):
    alone = distil(tmp_path / "one", copy.deepcopy(student), copy.deepcopy(teacher), losses(), max_steps=2)
    both = distil(tmp_path / "two", student, [teacher, other], losses(), max_steps=2, teacher_weights=[1.0, 1e-9])
    assert_same_run(plain(both), alone)


def test_losses_are_weighted_sums_over_teachers(tmp_path, student, teacher, other):
    _, (log,), _ = distil(tmp_path, student, [teacher, other], losses(), teacher_weights=[3, 1])
    for name in ("attention", "hidden", "embedding", "cosine"):
        parts = [log[f"{name}_loss_teacher{k}"] for k in (1, 2)]
        assert parts[0] != pytest.approx(parts[1], rel=1e-2)
        assert log[f"{name}_loss"] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=1e-5)
    assert log["loss"] == pytest.approx(sum(loss.weight * log[f"{loss.name}_loss"] for loss in losses()), rel=1e-5)


def test_each_teacher_has_its_own_layers(tmp_path, student, teacher, other):
    """Alone, with the same start of the projections, each gives the part that is logged for it."""
    trainer, (log,), _ = distil(tmp_path / "both", copy.deepcopy(student), [teacher, other], losses())
    assert [each.layer_mapping for each in trainer.teachers] == [[(1, 2), (2, 4)], [(1, 3), (2, 6)]]
    for k, each in enumerate((teacher, other), start=1):
        _, (alone,), _ = distil(tmp_path / str(k), copy.deepcopy(student), each, losses())
        for name in ("attention", "hidden", "embedding", "cosine"):
            assert log[f"{name}_loss_teacher{k}"] == pytest.approx(alone[f"{name}_loss"], rel=1e-5)


@pytest.mark.parametrize("how", ["mean", "confidence"])
def test_the_prediction_loss_reads_the_combined_logits(tmp_path, student, teacher, other, how):
    batch = {name: values for name, values in pad(rows(8).to_list()).items() if name != "labels"}
    with torch.no_grad():
        logits, *teacher_logits = (model.eval()(**batch).logits.double() for model in (student, teacher, other))
    want = F.cross_entropy(logits, combine_logits(teacher_logits, [0.4, 0.6], Classes(), how).softmax(-1))
    settings = {"teacher_weights": [2, 3], "teacher_logits": how}
    _, (log,), _ = distil(tmp_path, student, [teacher, other], [PredictionLoss()], **settings)
    assert log["prediction_loss"] == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("change", [{}, {"data_collator": lambda features: pad(features, 31)}], ids=["", "padding"])
def test_split_batches(tmp_path, student, teacher, other, change):
    settings = {"teacher_logits": "confidence", "teacher_weights": [2, 1]}
    whole = distil(tmp_path, copy.deepcopy(student), [teacher, other], losses(), **settings)
    split = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}
    assert_same_run(distil(tmp_path, student, [teacher, other], losses(), **settings, **split, **change), whole)


def test_resume_is_bitwise_equal(tmp_path, student, teacher, other):
    changes = {"train_dataset": rows(20), "max_steps": 6, "per_device_train_batch_size": 4, "optim": "adamw_torch"}
    changes |= {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "random", "learning_rate": 1e-3}
    whole = copy.deepcopy(student)
    trainer, logs, _ = distil(tmp_path, whole, [teacher, other], **changes)
    saved = load_file(tmp_path / f"checkpoint-3/{PROJECTIONS_FILE}")
    names = {f"{loss}{k}" for loss in ("hidden", "embedding") for k in ("", "_teacher2")}
    assert set(saved) == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    assert (len(saved["hidden.weight"]), len(saved["hidden_teacher2.weight"])) == (32, 48)
    last = load_file(tmp_path / f"checkpoint-6/{PROJECTIONS_FILE}")
    resumed = DistillationTrainer(student, copy.deepcopy(trainer.args), pad, rows(20), teacher_model=[teacher, other])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [log for log in resumed.state.log_history if "loss" in log] == logs
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), student.parameters(), strict=True))
    projections = load_file(tmp_path / f"checkpoint-6/{PROJECTIONS_FILE}")
    assert all(torch.equal(value, last[name]) for name, value in projections.items())


def test_models_are_handed_back_and_cached_activations_train_alike(tmp_path, student, teacher, other):
    options = {"loss_type": ["attention", "hidden"], "max_steps": 6, "per_device_train_batch_size": 4}
    before = [copy.deepcopy(model.state_dict()) for model in (teacher, other)]
    live = distil(tmp_path / "live", copy.deepcopy(student), [teacher, other], **options)
    calls = []
    hooks = [model.base_model.register_forward_hook(lambda *_: calls.append(1)) for model in (teacher, other)]
    cached = distil(tmp_path / "cached", student, [teacher, other], **options, teacher_cache_gb=1.0)
    assert len(calls) == 2 * 5  # projections 2, layout, one pass of 8 rows, check in the first step
    assert_same_run(cached, live, rtol=2e-2)
    for hook in hooks:
        hook.remove()
    for model, want in zip((teacher, other), before, strict=True):
        assert model.config._attn_implementation == "sdpa"
        assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_one_budget_for_all_cached_activations(tmp_path, student, teacher, other):
    options = {"loss_type": ["hidden"], "max_steps": 6, "per_device_train_batch_size": 4}
    size = sum(map(len, rows(8)["input_ids"])) * 2 * 32 * 2 / 1e9  # tokens × two layers × width × bytes
    distil(tmp_path, student, [teacher, other], **options, teacher_cache_gb=1.5 * size)
    assert len(list((datasets.config.HF_DATASETS_CACHE / "teacher_activations").glob("*/layout.json"))) == 1


def test_cached_logits_are_the_combined_ones(tmp_path, student, teacher, other):
    tokenizer, weighed = word_tokenizer(tmp_path), {"teacher_weights": [3, 1]}
    cached = cache_logits([teacher, other], rows(8), tokenizer, weights=[3, 1])
    live = distil(tmp_path / "live", copy.deepcopy(student), [teacher, other], losses(), **weighed)
    run = {"train_dataset": cached, "data_collator": DataCollatorWithPadding(tokenizer)}
    again = distil(tmp_path / "cached", copy.deepcopy(student), [teacher, other], losses(), **run, **weighed)
    assert_same_run(again, live)
    with pytest.raises(ValueError, match="teacher_logits is not what teacher_model computes"):
        distil(tmp_path / "other", student, [teacher, other], losses(), **run)


def test_lower_precision_is_logged_for_all(tmp_path, student, teacher, other):
    seen = []
    for model in (teacher, other):
        model.base_model.register_forward_hook(lambda module, *_: seen.append(module.dtype))
    trainer, _, _ = distil(tmp_path, student, [teacher, other], teacher_dtype="bfloat16")
    errors = {name: value for name, value in trainer.state.log_history[0].items() if "dtype_error" in name}
    assert {"prediction_loss_dtype_error", "hidden_loss_teacher2_dtype_error"} <= set(errors)
    assert all(0 < value < 0.03 for value in errors.values())
    assert seen[-2:] == [torch.bfloat16] * 2
    assert {p.dtype for model in (teacher, other) for p in model.parameters()} == {torch.float32}


def test_lineage_and_card_name_every_teacher(tmp_path, student, teacher, other):
    for name, model in (("first", teacher), ("second", other)):
        model.save_pretrained(tmp_path / name)
    paths = [str(tmp_path / "first"), str(tmp_path / "second")]
    trainer, _, _ = distil(tmp_path / "run", student, paths, teacher_weights=[3, 1], teacher_logits="confidence")
    trainer.save_model()
    trainer.create_model_card()
    (stage,) = json.loads((tmp_path / "run/config.json").read_text())["distillation"]["stages"]
    assert [each["model"]["name"] for each in stage["teachers"]] == ["./first", "./second"]
    assert [each["weight"] for each in stage["teachers"]] == [0.75, 0.25]
    mappings = [[[0, 0], [1, 2], [2, 4]], [[0, 0], [1, 3], [2, 6]]]
    assert [each["layer_mapping"] for each in stage["teachers"]] == mappings
    assert stage["teacher_logits"] == "confidence"
    card = (tmp_path / "run/README.md").read_text()
    assert "the student of `./first` (a local folder) and `./second` (a local folder)" in card
    assert "`./second` (a local folder) (weight 0.25)" in card
    assert "1 ← 2, 2 ← 4; 0 ← 0, 1 ← 3, 2 ← 6" in card


def test_base_model_lists_the_hub_ids_of_all_teachers(tmp_path, student, teacher, other):
    teacher.config._name_or_path, other.config._name_or_path = "user/first", "user/second"
    trainer, _, _ = distil(tmp_path, student, [teacher, other])
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == ["user/first", "user/second"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 8}, "Teacher 2 of 2: The student has 4 attention heads and the teacher 8"),
        ({"vocab_size": 60}, "Teacher 2 of 2: .*vocab_size"),
        ({"num_hidden_layers": 1}, "Teacher 2 of 2: The student has 2 layers, the teacher 1"),
        ({"num_labels": 2}, "Teacher 2 of 2: .*labels"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(tmp_path, student, teacher, change, message):
    config = bert_config(4, 32)
    config.update(change)
    if "num_labels" in change:
        config.num_labels = change["num_labels"]
    other = BertForSequenceClassification(config)
    with pytest.raises(ValueError, match=message):
        distil(tmp_path, student, [teacher, other])


def test_an_explicit_mapping_must_fit_every_teacher(tmp_path, student, teacher, other):
    trainer, _, _ = distil(tmp_path, copy.deepcopy(student), [teacher, other], layer_mapping="3,4")
    assert [each.layer_mapping for each in trainer.teachers] == [[(1, 3), (2, 4)]] * 2
    with pytest.raises(ValueError, match=r"Teacher 1 of 2: .*\(2, 6\)"):
        distil(tmp_path, student, [teacher, other], layer_mapping="3,6")


def test_what_else_is_refused(tmp_path, student, teacher, other):
    with pytest.raises(ValueError, match="one positive number for each of the 2 teachers"):
        distil(tmp_path, student, [teacher, other], teacher_weights=[1.0])
    with pytest.raises(ValueError, match="the same model twice"):
        distil(tmp_path, student, [teacher, teacher])
    with pytest.raises(ValueError, match="need a teacher"):
        distil(tmp_path, student, [])
    with pytest.raises(ValueError, match=r"teacher_logits='median'.*mean, confidence"):
        arguments(tmp_path, teacher_logits="median")
    other.classifier.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Teacher 2 of 2: .*classifier\.weight"):
        distil(tmp_path, student, [teacher, other])
