"""Cache files of `datasets` that were damaged are made again, and named."""

from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset
from disk_damage import damage

from hf_tinybert.sharded_map import sharded_map
from hf_tinybert.sound_caches import END_OF_STREAM, with_sound_caches

DOUBLED = [2 * label for label in range(3000)]


@pytest.fixture
def data(tmp_path):
    Dataset.from_dict({"labels": list(range(3000))}).to_parquet(tmp_path / "rows.parquet")
    return Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))


def double(batch):
    return {"labels": [2 * label for label in batch["labels"]]}


def by_shards(data):
    return sharded_map(data, double, "double", shard_size=2000)


def by_map(data):
    return with_sound_caches(data, lambda: data.map(double, batched=True))


@pytest.mark.parametrize("mapped", [by_shards, by_map])
@pytest.mark.parametrize("how", ["cut off", "empty", "garbage"])
def test_a_corrupt_cache_file_is_made_again(data, mapped, how, caplog):
    files = [Path(file["filename"]) for file in mapped(data).cache_files]
    assert not caplog.records
    for file in files:
        damage(file, how)
    assert mapped(data)["labels"][:] == DOUBLED
    assert all(f"The cache file {file} is corrupt" in caplog.text for file in files)


def test_a_file_that_was_cut_between_two_batches(data, caplog):
    """It reads as a shorter one."""
    (file,) = {Path(file["filename"]) for file in sharded_map(data, double, "key").cache_files}
    content = file.read_bytes()
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_stream(source)
        reader.read_next_batch()
        size = source.tell()
    assert size + len(END_OF_STREAM) < len(content)
    file.write_bytes(content[:size])
    assert sharded_map(data, double, "key")["labels"][:] == DOUBLED
    assert "its end is missing" in caplog.text


def test_rows_in_memory_and_other_errors(data):
    rows = Dataset.from_dict({"labels": [1]})
    assert with_sound_caches(rows, lambda: rows.map(double, batched=True))["labels"][:] == [2]

    def fail():
        raise OSError("of the function itself")

    with pytest.raises(OSError, match="of the function itself"):
        with_sound_caches(data, fail)
