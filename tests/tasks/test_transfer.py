"""Transfer data: what is removed, and soft labels of another model."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_tinybert import GLUE, TextClassification
from hf_tinybert.tasks.transfer import TransferData

TASK = TextClassification("tone", ("text",), ("bad", "good"))
PAIRS = TextClassification("pairs", ("a", "b"), ("no", "yes"))


def texts(*values, **columns) -> Dataset:
    return Dataset.from_dict({"text": [*values], **columns})


def labelled(*values) -> Dataset:
    return texts(*values, label=[0] * len(values))


def test_blank_repeated_and_known_texts_are_removed_and_counted():
    rows = texts("one", " ", "", "two", "One ", "two", "seen", "HELD  out", "three", other=list(range(9)))
    data = DatasetDict(train=labelled("Seen"), validation=labelled("held out", "never"))
    transfer = TransferData.build(rows, TASK, data)
    assert transfer.rows.to_dict() == {"text": ["one", "two", "three"]}
    assert transfer.counts == {"rows": 3, "empty": 2, "duplicates": 3, "validation": 1}
    assert str(transfer) == "3 transfer rows (removed: 2 blank, 3 duplicates, 1 of a validation split)"
    assert not transfer.has_logits


def test_a_pair_is_the_same_if_both_texts_are():
    rows = Dataset.from_dict({"a": ["x", "x", "x", "xy"], "b": ["y", "z", "y", ""], "c": [1, 2, 3, 4]})
    transfer = TransferData.build(rows, PAIRS)
    assert transfer.rows.to_dict() == {"a": ["x", "x"], "b": ["y", "z"]}
    assert (transfer.duplicates, transfer.empty) == (1, 1)


@pytest.mark.parametrize(
    "value",
    [[0.25, 0.75], {"good": 0.75, "bad": 0.25}, {"bad": 0.5, "good": 1.0}],
    ids=["list", "names", "not scaled"],
)
def test_probabilities_become_logits(value):
    transfer = TransferData.build(texts("one", teacher_probabilities=[value]), TASK)
    assert transfer.has_logits
    (logits,) = np.exp(transfer.rows["teacher_logits"][:])
    expected = [0.25, 0.75] if sum(value.values() if isinstance(value, dict) else value) == 1 else [1 / 3, 2 / 3]
    assert logits / logits.sum() == pytest.approx(expected, rel=1e-6)


def test_soft_labels_of_several_labels_and_of_scores():
    several = TASK.as_multi_label()
    transfer = TransferData.build(texts("one", teacher_probabilities=[[0.2, 1.0]]), several)
    (logits,) = np.array(transfer.rows["teacher_logits"][:])
    assert 1 / (1 + np.exp(-logits)) == pytest.approx([0.2, 1.0], abs=1e-5)
    rows = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "teacher_logits": [3.5]})
    assert TransferData.build(rows, GLUE["stsb"]).rows["teacher_logits"][:] == [[3.5]]
    with pytest.raises(ValueError, match="give the scores as teacher_logits"):
        TransferData.build(rows.rename_column("teacher_logits", "teacher_probabilities"), GLUE["stsb"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("teacher_logits", [1.0], "Row 1 .* give 2 numbers, in the order of .'bad', 'good'"),
        ("teacher_logits", [1.0, float("nan")], "Row 1"),
        ("teacher_probabilities", [0.5, 1.5], "Row 1 .* between 0 and 1"),
        ("teacher_probabilities", None, "Row 1"),
    ],
)
def test_soft_labels_that_do_not_fit_are_refused_by_row(column, value, message):
    rows = texts("", "two", **{column: [[0.5, 0.5], value]})
    with pytest.raises(ValueError, match=message):
        TransferData.build(rows, TASK)


def test_a_missing_column_and_no_row_left_are_errors():
    with pytest.raises(ValueError, match=r"no column \['text'\], only \['sentence'\]"):
        TransferData.build(Dataset.from_dict({"sentence": ["a"]}), TASK)
    with pytest.raises(ValueError, match="None of the 2 transfer rows is left"):
        TransferData.build(texts("a", ""), TASK, DatasetDict(train=labelled("A")))
