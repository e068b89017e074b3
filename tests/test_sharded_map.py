import pytest
from conftest import rows
from datasets import Dataset

from hf_tinybert.sharded_map import sharded_map


@pytest.fixture
def data(tmp_path):
    """Ten rows with a file behind them, beside which results are cached."""
    rows(10).to_parquet(tmp_path / "rows.parquet")
    return Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))


class Doubling:
    """Doubles labels and notes the size of every batch; stops at the batch numbered `stop_at`."""

    def __init__(self):
        self.batches, self.stop_at = [], None

    def __call__(self, batch):
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        self.batches.append(len(batch["labels"]))
        return {"labels": [2 * label for label in batch["labels"]]}


def test_an_interrupted_map_continues_at_the_shard_that_it_was_in(data):
    double = Doubling()
    double.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        sharded_map(data, double, "double", shard_size=3, desc="Doubling")
    double.stop_at = None
    result = sharded_map(data, double, "double", shard_size=3, desc="Doubling")
    assert sum(double.batches) == 10
    assert result["labels"] == [2 * label for label in data["labels"]]


def test_the_same_key_and_rows_are_computed_once(data):
    double = Doubling()
    first = sharded_map(data, double, "double", shard_size=4)
    again = sharded_map(data, double, "double", shard_size=4)
    assert sum(double.batches) == 10
    assert again.to_dict() == first.to_dict()


def test_another_key_or_other_rows_are_computed_anew(data):
    double = Doubling()
    sharded_map(data, double, "double")
    sharded_map(data, double, "another key")
    sharded_map(data.select(range(5)), double, "double")
    assert double.batches == [10, 10, 5]


def test_arguments_of_map_are_passed_on(data):
    double = Doubling()
    sharded_map(data, double, "double", shard_size=5, batch_size=2)
    assert double.batches == [2, 2, 1, 2, 2, 1]
