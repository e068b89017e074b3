"""Word vectors from files, and their nearest neighbours."""

import numpy as np
import pytest
from datasets import Dataset

from hf_tinybert import WordVectors


def test_vectors_from_files(tmp_path):
    values = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], dtype=np.float32)
    lines = [f"{word} {x} {y}" for word, (x, y) in zip("abc", values.tolist(), strict=True)]
    (tmp_path / "glove.txt").write_text("\n".join(lines))
    np.save(tmp_path / "v.npy", values)
    (tmp_path / "words.txt").write_text("a\nb\nc")
    Dataset.from_dict({"index": ["a", "b", "c"]}).to_parquet(tmp_path / "words.parquet")
    for files in (["glove.txt"], ["v.npy", "words.txt"], ["v.npy", "words.parquet"]):
        vectors = WordVectors.load(*(tmp_path / name for name in files))
        assert vectors.nearest(["a", "c", "nothing"], 1) == {"a": ["b"], "c": ["b"]}
    assert WordVectors.load(tmp_path / "glove.txt", limit=2).words == ["a", "b"]
    with pytest.raises(ValueError, match="pass words"):
        WordVectors.load(tmp_path / "v.npy")
    with pytest.raises(ValueError, match="2 words and 3 vectors"):
        WordVectors(["a", "b"], values)
