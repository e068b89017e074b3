"""The agreement of converted models with their original, for every kind of prediction head, by naive formulas."""

import copy

import numpy as np
import pytest
import torch
from conftest import bert_config, build, word_tokenizer
from head_kinds import KINDS, Kind
from transformers import BertForSequenceClassification, BertModel

from hf_tinybert.formats.agreement import QualityGate, agreement, answers, join_answers
from hf_tinybert.formats.comparison_rows import comparison_rows
from hf_tinybert.models.prediction_heads import prediction_head_of
from hf_tinybert.models.row_checks import InputLimits

EMBEDDINGS = Kind(BertModel, KINDS["classes"].rows, lambda outputs, row: [])
ALL = {**KINDS, "embeddings": EMBEDDINGS}
NAMES = ["input_ids", "attention_mask"]


@pytest.fixture
def tokenizer(tmp_path):
    return word_tokenizer(tmp_path)


def model_of(name: str):
    return build(ALL[name].model_class, bert_config(2, 32, **ALL[name].config)).eval()


def forward_of(model):
    @torch.no_grad()
    def forward(inputs):
        return dict(model(**inputs))

    return forward


def rows_of(name, model, tokenizer, dataset=None):
    limits = InputLimits.of_models([model], choices=name == "choices")
    return comparison_rows(dataset, tokenizer, limits, prediction_head_of(model), NAMES)


@torch.no_grad()
def alone(name: str, model, batch: dict, mask) -> list[np.ndarray]:
    """The answers for each row of a batch by itself, without padding."""
    values = []
    for number, (ids, real) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)):
        if name == "choices":
            scores = [model(input_ids=c[r][None, None]).logits.item() for c, r in zip(ids, real, strict=True)]
            values.append([np.argmax(scores)])
            continue
        outputs = model(input_ids=ids[real][None])
        if name == "embeddings":
            values.append(outputs.last_hidden_state[0].mean(0).numpy())
        elif name == "spans":
            values.append([outputs.start_logits.argmax().item(), outputs.end_logits.argmax().item()])
        elif name == "several labels":
            values.append((outputs.logits[0] > 0).int().tolist())
        elif "score" in name:
            values.append(outputs.logits[0].tolist())
        else:
            chosen = outputs.logits[0].argmax(-1).reshape(-1)
            values.append(chosen[mask[number][real]] if name == "masked tokens" else chosen)
    return [np.asarray(row) for row in values]


@pytest.mark.parametrize("name", ALL)
def test_answers_are_those_of_rows_by_themselves(name, tokenizer):
    model = model_of(name)
    rows = rows_of(name, model, tokenizer, ALL[name].rows(tokenizer))
    assert rows.real
    for batch, mask in zip(rows.batches, rows.masks, strict=True):
        expected = np.concatenate(alone(name, model, batch, mask))
        found = answers(prediction_head_of(model), forward_of(model)(batch), mask)
        if name == "embeddings":
            assert set(found) == {"last_hidden_state", "pooler_output"}
            found = {"last_hidden_state": found["last_hidden_state"].ravel()}
        elif name == "two scores":
            found = {"scores": np.stack([found["score 0"], found["score 1"]], 1).ravel()}
        ((_, values),) = found.items()
        np.testing.assert_allclose(values.ravel(), expected, atol=1e-5)


def with_int8_embeddings(model):
    """The table of tokens in 256 steps over its whole range, as ONNX Runtime quantises it."""
    model = copy.deepcopy(model)
    table = model.get_input_embeddings().weight.data
    step = (table.max() - table.min()) / 255
    table.copy_((table / step).round() * step)
    return model


@pytest.mark.parametrize("name", ALL)
def test_int8_is_refused_once_a_token_is_an_outlier(name, tokenizer):
    model = model_of(name)
    head, rows = prediction_head_of(model), rows_of(name, model, tokenizer, ALL[name].rows(tokenizer))
    assert QualityGate(forward_of(model), head, rows).measure(forward_of(with_int8_embeddings(model))) > 0.9
    for scale in (100, 5):  # then 500
        model.get_input_embeddings().weight.data[7] *= scale
        gate = QualityGate(forward_of(model), head, rows)
        value = gate.measure(forward_of(with_int8_embeddings(model)))
        with pytest.raises(ValueError, match=r"int8 (gives .*%|correlates .* by).* rows .*min_agreement=0\.9[89]"):
            gate.check("int8", value)


def test_equal_answers_count_and_the_most_frequent_one_hides_nothing():
    one = {"decisions": np.array([0, 1, 2, 0])}
    other = {"decisions": np.array([0, 1, 0, 0])}
    assert agreement(one, other, rows=4) == 0.75
    assert agreement(one, other, rows=2) == 0.5  # several decisions a row: both say 0 twice
    silent = {"decisions": np.zeros(100, int)}
    entities = {"decisions": np.arange(100) % 50 // 49}  # 2 of 100 tokens
    assert agreement(entities, silent, rows=100) == 0.98
    assert agreement(entities, silent, rows=10) == 0
    assert agreement(silent, silent, rows=10) == 1


def test_the_concordance_correlation_is_that_of_lin():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 1))
    y = 0.9 * x + 0.1 * generator.normal(size=(50, 1)) + 0.2
    expected = 2 * np.cov(x.T, y.T, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert agreement({"score 0": x}, {"score 0": y}, 50) == pytest.approx(expected)
    assert expected < np.corrcoef(x.T, y.T)[0, 1]
    assert agreement({"a": x, "b": x}, {"a": x, "b": y}, 50) == pytest.approx(expected)  # the lowest
    assert agreement({"a": x}, {"a": np.full_like(x, np.nan)}, 50) == 0
    constant = np.ones((5, 1))
    assert agreement({"a": constant}, {"a": 1.001 * constant}, 5) == 1
    assert agreement({"a": constant}, {"a": 2 * constant}, 5) == 0


def test_nan_is_no_answer(tokenizer):
    model = build(BertForSequenceClassification, bert_config(1, 16))
    broken = copy.deepcopy(model)
    broken.classifier.bias.data[0] = float("nan")
    rows, head = rows_of("classes", model, tokenizer), prediction_head_of(model)
    assert (rows.count, rows.real) == (256, False)
    gate = QualityGate(forward_of(model), head, rows)
    with pytest.raises(ValueError, match=r"float16 gives 0\.0% of the model's answers"):
        gate.check("float16", gate.measure(forward_of(broken)))
    with pytest.raises(ValueError, match="The model gives NaN on 256 rows"):
        QualityGate(forward_of(broken), head, rows)


def test_answers_of_batches_are_joined():
    batches = [{"decisions": np.array([1])}, {"decisions": np.array([2, 3])}]
    assert join_answers(batches)["decisions"].tolist() == [1, 2, 3]
