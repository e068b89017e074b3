"""Transfer data from files, and streams."""

import pytest
from datasets import Dataset

from hf_tinybert.pipelines.transfer_files import load_transfer, on_disk

TEXTS = ["a fine film", "None", "dull, and long"]


def test_a_text_file_is_one_text_a_line(tmp_path):
    (tmp_path / "more.txt").write_text("\n".join(TEXTS))
    assert load_transfer(tmp_path / "more.txt").to_dict() == {"text": TEXTS}
    assert load_transfer(tmp_path / "more.txt", ["sentence"]).to_dict() == {"sentence": TEXTS}
    with pytest.raises(ValueError, match=r"no column \['a', 'b'\], only \['text'\]"):
        load_transfer(tmp_path / "more.txt", ["a", "b"])


def test_every_split_of_a_folder_counts(tmp_path):
    for split in ("train", "test"):
        rows = Dataset.from_dict({"text": [f"{split} {text}" for text in TEXTS], "number": [1, 2, 3]})
        rows.to_csv(tmp_path / f"{split}.csv")
    rows = load_transfer(tmp_path)
    assert rows["text"][:] == [f"{split} {text}" for split in ("train", "test") for text in TEXTS]
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_transfer(tmp_path / "none.csv")


def test_a_stream_is_read_once(tmp_path):
    rows, reads = Dataset.from_dict({"text": TEXTS}), []

    def read(row):
        reads.append(row["text"])
        return row

    stream = rows.to_iterable_dataset().map(read)
    for _ in range(2):
        assert on_disk(stream, tmp_path / "run/transfer").to_dict() == {"text": TEXTS}
    assert reads == TEXTS
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["transfer"]
    assert on_disk(rows, tmp_path / "other") is rows
    with pytest.raises(TypeError, match=r"transfer is list: .*Dataset.from_list"):
        on_disk(TEXTS, tmp_path / "other")
