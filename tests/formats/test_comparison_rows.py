"""Which rows a converted model is compared on."""

import pytest
import torch
from conftest import bert_config, build, word_tokenizer
from datasets import Dataset
from head_kinds import KINDS
from transformers import BertForMaskedLM, BertForMultipleChoice, BertForSequenceClassification

from hf_tinybert.formats.comparison_rows import comparison_rows
from hf_tinybert.models.prediction_heads import prediction_head_of
from hf_tinybert.models.row_checks import InputLimits

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture
def rows_of(tmp_path):
    tokenizer = word_tokenizer(tmp_path)

    def make(dataset, model_class=BertForSequenceClassification):
        model = build(model_class, bert_config(1, 16))
        limits = InputLimits.of_models([model], choices=model_class is BertForMultipleChoice)
        return comparison_rows(dataset, tokenizer, limits, prediction_head_of(model), NAMES)

    return make


def test_256_rows_are_spread_over_the_data_and_missing_inputs_are_zeros(rows_of):
    rows = rows_of(Dataset.from_dict({"input_ids": [[5 + i // 256] * (1 + i % 7) for i in range(1024)]}))
    assert (rows.count, str(rows)) == (256, "256 rows of calibration_dataset")
    first = torch.cat([batch["input_ids"][:, 0] for batch in rows.batches])
    assert torch.bincount(first)[5:].tolist() == [64, 64, 64, 64]
    for batch, mask in zip(rows.batches, rows.masks, strict=True):
        assert list(batch) == NAMES
        assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != 0)
        assert torch.equal(mask, batch["attention_mask"].bool())
        assert not batch["token_type_ids"].any()


def test_a_stream_is_read_no_further_than_it_has_to_be(rows_of):
    seen = []
    stream = ({"input_ids": [5, 6], "number": seen.append(number)} for number in range(1000))
    assert rows_of(stream).count == 256
    assert len(seen) == 256


def test_random_tokens_are_the_same_in_every_call(rows_of):
    one, two = rows_of(None), rows_of(None)
    assert (one.count, one.real, str(one)) == (256, False, "256 rows of random tokens")
    for a, b in zip(one.batches, two.batches, strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])
        assert a["input_ids"].shape[1] <= 64
    assert rows_of(None, BertForMultipleChoice).batches[0]["input_ids"].shape[:2] == (16, 2)


def test_every_seventh_token_is_masked_unless_rows_have_masks(rows_of):
    (batch,), (mask,) = (lambda rows: (rows.batches, rows.masks))(
        rows_of([{"input_ids": list(range(5, 25))}], BertForMaskedLM)
    )
    assert mask[0].nonzero().flatten().tolist() == [1, 8, 15]
    assert (batch["input_ids"][mask] == 4).all()
    masked = rows_of(KINDS["masked tokens"].rows(None), BertForMaskedLM)
    for batch, mask in zip(masked.batches, masked.masks, strict=True):
        assert torch.equal(mask, batch["input_ids"] == 4)


@pytest.mark.parametrize(
    ("dataset", "model_class", "says"),
    [
        ([], BertForSequenceClassification, "holds no tokens"),
        ([{"text": "a"}], BertForSequenceClassification, "holds no tokens"),
        ([{"input_ids": []}], BertForSequenceClassification, "holds no tokens"),
        (
            [{"input_ids": [5, 60]}],
            BertForSequenceClassification,
            "Row 0 of calib.*'input_ids' holds 60",
        ),
        ([{"input_ids": [5] * 65}], BertForSequenceClassification, "has 65 tokens, more than the 64 positions"),
        ([{"input_ids": [[5], [6]]}, {"input_ids": [[5]]}], BertForMultipleChoice, r"\[1, 2\] choices"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows_of, dataset, model_class, says):
    with pytest.raises(ValueError, match=says):
        rows_of(dataset, model_class)
