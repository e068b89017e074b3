"""Rows that are read before training are trained on nevertheless."""

import copy

import datasets
import pytest
from conftest import pad, rows
from short_runs import assert_same_run, distil
from torch.utils.data import DataLoader, IterableDataset

from hf_tinybert.training.first_rows import read_first_rows


class Sized(IterableDataset):
    """A stream that knows its length."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)

    def __len__(self):
        return len(self.data)


class ReadOnce(IterableDataset):
    """A stream whose passes share one iterator."""

    def __init__(self, data):
        self.iterator = iter(data)

    def __iter__(self):
        yield from self.iterator


def generator_of_datasets(data):
    iterator = iter(data)

    def read():
        yield from iterator

    return datasets.IterableDataset(datasets.iterable_dataset.ExamplesIterable(lambda: enumerate(read()), {}))


STREAMS = {
    "torch": ReadOnce,
    "sized": Sized,
    "generator": iter,
    "datasets": lambda data: data.to_iterable_dataset(),
    "datasets, once": generator_of_datasets,
}


class Collect:
    """A data collator that remembers the rows of training."""

    def __init__(self):
        self.rows = []

    def __call__(self, features):
        self.rows += [tuple(feature["input_ids"]) for feature in features]
        return pad(features)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("count", [12, 300])
def test_every_row_comes_once_and_in_order(name, count):
    data = rows(count)
    first, stream = read_first_rows(STREAMS[name](data), 256)
    assert [row["input_ids"] for row in first] == data["input_ids"][:256]
    assert [row["input_ids"] for row in stream] == data["input_ids"]


def test_rows_by_number_and_streams_that_begin_again_stay_as_they_are():
    for data in (rows(12), rows(12).to_iterable_dataset()):
        assert read_first_rows(data, 5)[1] is data


def test_later_passes_and_workers_open_a_stream_anew():
    data = rows(12)
    _, stream = read_first_rows(Sized(data), 5)
    assert len(stream) == 12
    for _ in range(2):
        assert [row["input_ids"] for row in stream] == data["input_ids"]
    _, stream = read_first_rows(Sized(data), 5)
    loader = DataLoader(stream, batch_size=4, collate_fn=list, num_workers=1)
    assert [row["input_ids"] for batch in loader for row in batch] == data["input_ids"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("sized", "datasets") else ()) for name in STREAMS]
)
def test_training_on_a_stream_is_training_on_its_rows(tmp_path, student, teacher, name):
    data, collect = rows(24), Collect()
    plain = distil(tmp_path, copy.deepcopy(student), teacher, train_dataset=data, max_steps=3)
    options = {"data_collator": collect, "max_steps": 3, "teacher_cache_gb": 1.0 if name == "datasets, once" else 0}
    streamed = distil(tmp_path, student, teacher, train_dataset=STREAMS[name](data), **options)
    assert_same_run(streamed, plain, rtol=1e-6)
    assert collect.rows[-24:] == [*map(tuple, data["input_ids"])]


@pytest.mark.slow
def test_an_epoch_of_a_sized_stream(tmp_path, student, teacher):
    data = rows(20)
    plain = distil(tmp_path, copy.deepcopy(student), teacher, train_dataset=data, max_steps=-1, num_train_epochs=2)
    options = {"train_dataset": Sized(data), "max_steps": -1, "num_train_epochs": 2}
    streamed = distil(tmp_path, student, teacher, **options)
    assert streamed[0].state.global_step == 6
    assert_same_run(streamed, plain, rtol=1e-6)


@pytest.mark.parametrize("name", ["torch", "generator", "datasets"])
def test_a_stream_without_rows_is_refused(tmp_path, student, teacher, name):
    empty = STREAMS[name](rows(4))
    empty = empty.filter(lambda row: False) if name == "datasets" else STREAMS[name]([])
    with pytest.raises(ValueError, match="train_dataset is missing or empty"):
        distil(tmp_path, student, teacher, train_dataset=empty)
