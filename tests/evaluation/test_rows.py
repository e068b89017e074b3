"""Rows in batches of similar length, with the labels of each kind of prediction head, and back in their order."""

import numpy as np
import pytest
from conftest import bert_config, build, word_tokenizer
from head_kinds import KINDS

from hf_tinybert.evaluation.rows import EvaluationRows


@pytest.fixture
def rows_of(tmp_path):
    tokenizer = word_tokenizer(tmp_path)

    def rows(name):
        kind = KINDS[name]
        model = build(kind.model_class, bert_config(1, 16, **kind.config))
        return EvaluationRows(kind.rows(tokenizer), [model], tokenizer), kind.rows(tokenizer)

    return rows


@pytest.mark.parametrize("name", KINDS)
def test_batches_hold_every_row_once_with_its_labels(rows_of, name):
    rows, dataset = rows_of(name)
    chunks = rows.chunks(5)
    assert sorted(np.concatenate(chunks)) == list(range(len(dataset)))
    lengths = rows.lengths[np.concatenate(chunks)]
    assert (np.diff(lengths) >= 0).all()
    batches = [rows.batch(chunk) for chunk in chunks]
    ids = rows.join([batch["input_ids"] for batch in batches], chunks)
    labels = rows.join([rows.labels(batch) for batch in batches], chunks)
    for row, tokens, label in zip(dataset, ids, labels, strict=True):
        flat = row["input_ids"] if name != "choices" else [token for choice in row["input_ids"] for token in choice]
        assert [token for token in tokens.ravel() if token > 0] == flat
        expected = [row["start_positions"], row["end_positions"]] if name == "spans" else row["labels"]
        np.testing.assert_array_equal(label.ravel()[: np.size(expected)], np.ravel(expected))
        assert (label.ravel()[np.size(expected) :] == -100).all()


def test_single_rows_are_spread_over_the_lengths(rows_of):
    rows, _ = rows_of("classes")
    lengths = rows.lengths[rows.spread(3)]
    assert lengths.tolist() == [rows.lengths.min(), np.sort(rows.lengths)[12], rows.lengths.max()]
    assert rows.token_counts["flops"] == rows.lengths[rows.typical]


@pytest.mark.parametrize(("name", "count"), [("classes", 4), ("choices", 12), ("spans", 4)])
def test_sequences_for_figures_are_inputs_alone(rows_of, name, count):
    rows, dataset = rows_of(name)
    sequences = rows.sequences(4)
    assert {values.shape[0] for values in sequences.values()} == {count}
    assert set(sequences) - {"token_type_ids"} == {"input_ids", "attention_mask"}
    first = dataset[0]["input_ids"][0] if name == "choices" else dataset[0]["input_ids"]
    assert sequences["input_ids"][0][sequences["attention_mask"][0].bool()].tolist() == first
