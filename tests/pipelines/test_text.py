"""Plain text as sequences of tokens: packed, one by one, and from a stream."""

import datasets
import pytest
from conftest import word_tokenizer
from toy_runs import texts

from hf_tinybert.pipelines.text import tokenize_text


def test_packing_keeps_every_token_once(tmp_path):
    tokenizer, data = word_tokenizer(tmp_path), texts()
    rows = tokenize_text(data, tokenizer, max_length=10)
    tokens = [token for row in rows["input_ids"] for token in row[1:-1]]
    separated = [
        [*ids, tokenizer.sep_token_id] for ids in tokenizer(data["text"][:], add_special_tokens=False).input_ids
    ]
    assert tokens == [token for ids in separated for token in ids][:-1]
    assert all(len(row) == 10 for row in rows["input_ids"][:-1])
    assert {(row[0], row[-1]) for row in rows["input_ids"]} == {(tokenizer.cls_token_id, tokenizer.sep_token_id)}
    streamed = tokenize_text(data.to_iterable_dataset(), tokenizer, max_length=10)
    assert [row["input_ids"] for row in streamed] == rows["input_ids"][:]


def test_a_text_that_is_not_packed_is_one_truncated_sequence(tmp_path):
    data = texts()
    rows = tokenize_text(data, word_tokenizer(tmp_path), max_length=6, packed=False)
    assert len(rows) == len(data)
    assert max(map(len, rows["input_ids"])) == 6


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match="no column 'content'"):
        tokenize_text(texts(), word_tokenizer(tmp_path), "content")


@pytest.mark.parametrize("packed", [True, False])
def test_a_stream_that_does_not_know_its_columns(tmp_path, packed):
    tokenizer, data = word_tokenizer(tmp_path), texts()
    streams = [
        datasets.IterableDataset.from_generator(lambda: iter(data)),
        data.to_iterable_dataset().map(lambda row: {"text": row["text"], "length": len(row["text"])}),
    ]
    expected = tokenize_text(data, tokenizer, max_length=10, packed=packed)["input_ids"][:]
    for stream in streams:
        assert stream.column_names is None
        rows = tokenize_text(stream, tokenizer, max_length=10, packed=packed)
        assert [row["input_ids"] for row in rows] == expected
        assert not {"text", "length"} & {*next(iter(rows))}
    with pytest.raises(ValueError, match="no column 'content'"):
        tokenize_text(streams[0], tokenizer, "content")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_length", [2, 0, -5])
def test_a_length_without_room_for_text(tmp_path, packed, max_length):
    with pytest.raises(ValueError, match=rf"max_length={max_length} leaves no room .*: give at least 3\."):
        tokenize_text(texts(), word_tokenizer(tmp_path), max_length=max_length, packed=packed)
    rows = tokenize_text(texts(), word_tokenizer(tmp_path), max_length=3, packed=packed)
    assert max(map(len, rows["input_ids"])) == 3
