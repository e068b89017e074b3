"""Rows that do not fit are named by row and column, by whole columns and quickly."""

import time

import datasets
import numpy as np
import pytest
import torch
from conftest import bert_config, build, rows
from datasets import Dataset
from transformers import (
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Model,
    DistilBertModel,
    ModernBertModel,
    RobertaModel,
)

from hf_tinybert.models.row_checks import BLOCK, InputLimits, check_batch, check_rows, take_rows

SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
SPECIAL = {f"{name}_token_id": index for index, name in enumerate(["pad", "bos", "eos", "cls", "sep"])}
LIMITS = InputLimits({"input_ids": 50, "token_type_ids": 2, "position_ids": 64}, 64, 0)
FIXED = datasets.List(datasets.Value("uint8"), 2)
CHOICES = InputLimits({"input_ids": 50}, 64, 0, choices=True)


@pytest.mark.parametrize(
    ("model_class", "changes", "types", "longest"),
    [
        (BertModel, {"max_position_embeddings": 64}, 2, 64),
        (RobertaModel, {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}, 1, 64),
        (DistilBertModel, {"max_position_embeddings": 64}, None, 64),
        (DebertaV2Model, {"max_position_embeddings": 64, "position_biased_input": False}, None, None),
        (ModernBertModel, {"max_position_embeddings": 64, **SPECIAL}, None, None),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_limits_are_those_at_which_the_model_fails(model_class, changes, types, longest):
    model = build(model_class, model_class.config_class(**SIZES | changes)).eval()
    limits = InputLimits.of_models([model])
    assert (limits.positions, limits.sizes["input_ids"], limits.sizes.get("token_type_ids")) == (longest, 50, types)
    assert limits.pad_token_id == model.config.pad_token_id

    def run(length, token=5, token_type=None):
        ids = torch.full((1, length), token)
        extra = {} if token_type is None else {"token_type_ids": torch.full_like(ids, token_type)}
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)

    run(longest or 80, 49, None if types is None else types - 1)
    wrong = [(3, 50, None), *([(longest + 1, 5, None)] if longest else []), *([(3, 5, types)] if types else [])]
    for arguments in wrong:
        with pytest.raises((IndexError, RuntimeError)):
            run(*arguments)


def test_the_smallest_of_several_models_counts():
    models = [build(BertModel, bert_config(1, 16, **changes)) for changes in ({}, {"max_position_embeddings": 32})]
    assert InputLimits.of_models(models).positions == 32


def edited(column: str, value, row: int = 3) -> list[dict]:
    data = [dict(each) | {"token_type_ids": [0] * len(each["input_ids"])} for each in rows(8)]
    data[row][column] = value
    return data


IDS = rows(8)["input_ids"][3]
FAULTS = {
    "missing": (edited("input_ids", None), r"Row 3 of train: 'input_ids' is missing \(None\)"),
    "None inside": (edited("input_ids", [5, None, 5]), "Row 3 of train: 'input_ids' holds None"),
    "empty": (edited("input_ids", []), "Row 3 of train: 'input_ids' is empty"),
    "too large": (edited("input_ids", [5, 50, 5]), r"Row 3 of train: 'input_ids' holds 50.*0 to 49.*tokenizer"),
    "negative": (edited("input_ids", [5, -1, 5]), "Row 3 of train: 'input_ids' holds -1"),
    "too long": (edited("input_ids", [5] * 65), r"Row 3 .*has 65 tokens.* 64 positions.*max_length=64"),
    "types": (edited("token_type_ids", [2] * len(IDS)), "Row 3 of train: 'token_type_ids' holds 2.*0 to 1"),
    "short types": (edited("token_type_ids", [0]), f"Row 3 .*'token_type_ids' has 1 numbers for {len(IDS)} tokens"),
    "short mask": (edited("attention_mask", [1]), f"Row 3 .*'attention_mask' has 1 numbers for {len(IDS)} tokens"),
    "no mask": (edited("attention_mask", None), "Row 3 of train: 'attention_mask' is missing"),
    "zero mask": (edited("attention_mask", [0] * len(IDS)), "Row 3 .*'attention_mask' is 0 at every token"),
    "text": ([{"input_ids": "a film"}], "'input_ids' of train is of type string, not one list of integers"),
    "strings": ([{"input_ids": ["a", "film"]}], "'input_ids' of train is of type list<item: string>"),
    "floats": ([{"input_ids": [5.0]}], "'input_ids' of train is of type list<item: double>"),
    "nested": ([{"input_ids": [[5]]}], "'input_ids' of train is of type list<item: list<item: int.*>>"),
    "3-D mask": ([{"input_ids": [5], "attention_mask": [[1]]}], r"masks of \(S, S\)"),
    "4-D mask": ([{"input_ids": [5], "attention_mask": [[[1]]]}], r"masks of \(S, S\)"),
    "padded": ([{"input_ids": [5, 6]}, {"input_ids": [5, 0]}], "Row 1 .*padded with 0 .*no column attention_mask"),
    "padded on the left": ([{"input_ids": [5, 6]}, {"input_ids": [0, 5]}], "Row 1 .*padded with 0"),
    "positions": ([{"input_ids": [5], "position_ids": [64]}], "Row 0 of train: 'position_ids' holds 64"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", [list, Dataset.from_list], ids=["list", "Dataset"])
def test_a_fault_names_row_and_column(name, kind):
    data, says = FAULTS[name]
    with pytest.raises(ValueError, match=says):
        check_rows(kind(data), LIMITS, "train")


def test_rows_that_fit_pass_whatever_holds_them():
    data = rows(40)
    for each in (
        data,
        [*data],
        data.shuffle(seed=0),
        data.with_format("torch"),
        data.remove_columns("attention_mask"),
        [{"input_ids": torch.tensor([5, 6])}, {"input_ids": np.array([7])}],
        data.cast_column("input_ids", datasets.LargeList(datasets.Value("int32"))),
        Dataset.from_dict({"input_ids": [[5, 6]] * 3}).cast_column(
            "input_ids", datasets.List(datasets.Value("uint8"), 2)
        ),
        Dataset.from_dict({"text": ["a"]}),
        data.select([]),
        [],
    ):
        check_rows(each, LIMITS, "train")
    check_rows([{"input_ids": [[5], [6, 7]], "attention_mask": [[1], [1, 1]]}], CHOICES, "train")


def test_choices_are_checked_too():
    with pytest.raises(ValueError, match=r"'input_ids' of train.*list of integers for each choice"):
        check_rows(rows(3), CHOICES, "train")
    for ids, says in (
        ([[5], [60]], "Row 1 .*holds 60"),
        ([[5], []], "Row 1 .*is empty"),
        ([[5], None], "Row 1 .*None"),
    ):
        with pytest.raises(ValueError, match=says):
            check_rows([{"input_ids": [[5], [6]]}, {"input_ids": ids}], CHOICES, "train")
    assert InputLimits.of_models([build(BertForMultipleChoice, bert_config(1, 16))], choices=True).choices


def test_rows_are_counted_in_the_order_of_the_data_set():
    data = Dataset.from_dict({"input_ids": [[5]] * 5000 + [[60]]})
    with pytest.raises(ValueError, match="Row 5000 of train"):
        check_rows(data, LIMITS, "train")
    with pytest.raises(ValueError, match="Row 0 of train"):
        check_rows(data.select(range(5000, -1, -1)), LIMITS, "train")


def test_streams_and_transforms_are_not_read():
    def fail(batch):
        pytest.fail("a row was read")

    data = Dataset.from_dict({"input_ids": [[60]]})
    check_rows(data.with_transform(fail), LIMITS, "train")
    check_rows(data.to_iterable_dataset().map(fail), LIMITS, "train")
    check_rows((pytest.fail("read") for _ in range(3)), LIMITS, "train")


def test_large_data_sets_are_checked_in_blocks_and_quickly():
    data = Dataset.from_dict({"input_ids": np.full((1_000, 16), 5)})
    data = datasets.concatenate_datasets([data] * 400)
    check_rows(data.select(range(BLOCK)), LIMITS, "train")
    start = time.perf_counter()
    check_rows(data, LIMITS, "train")
    assert time.perf_counter() - start < 20  # row by row it takes minutes
    last = datasets.concatenate_datasets([data, Dataset.from_dict({"input_ids": [[60] * 16]})])
    with pytest.raises(ValueError, match="Row 400000 of train"):
        check_rows(last, LIMITS, "train")


def test_batches():
    ids = torch.full((2, 5), 5)
    check_batch({"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": torch.arange(5)[None]}, LIMITS)
    check_batch({"pixel_values": ids}, LIMITS)
    for changes, says in (
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, r"'attention_mask' of a batch has the shape \(2, 1, 5, 5\)"),
        ({"token_type_ids": ids}, "'token_type_ids' of a batch holds 5"),
        ({"input_ids": ids - 6}, "'input_ids' of a batch holds -1"),
        ({"input_ids": torch.full((2, 65), 5)}, "rows of 65 tokens, more than the 64 positions"),
    ):
        with pytest.raises(ValueError, match=says):
            check_batch({"input_ids": ids, **changes}, LIMITS, first=False)


def test_rows_are_taken_from_the_front_of_a_stream_and_evenly_from_the_rest():
    data = Dataset.from_dict({"input_ids": [[n] for n in range(101)], "labels": [0] * 101})
    assert take_rows(data, ["input_ids", "absent"], 3) == [
        {"input_ids": [0]},
        {"input_ids": [50]},
        {"input_ids": [100]},
    ]
    assert take_rows(iter(data), ["input_ids"], 2) == [{"input_ids": [0]}, {"input_ids": [1]}]
    assert len(take_rows(data, ["input_ids"])) == 101


def test_what_the_checks_refuse_is_what_a_model_cannot_read():
    model = build(BertForSequenceClassification, bert_config(1, 16))
    assert InputLimits.of_models([model]) == LIMITS
