"""The tokens of teachers that are passed as objects are compared as those of teachers by path."""

import pytest
from conftest import pad, rows, word_tokenizer
from short_runs import arguments
from transformers import AutoModelForSequenceClassification, BertTokenizer, pipeline

from hf_tinybert import DistillationTrainer, transfer_vocabulary, trim_vocabulary


@pytest.fixture
def tokenizer(tmp_path):
    return word_tokenizer(tmp_path)


@pytest.fixture
def stored(tmp_path, teacher, tokenizer):
    """A folder with a teacher and a tokenizer of the same tokens in another order."""
    ids = tokenizer.get_vocab()
    other = BertTokenizer(vocab={token: -index % len(tokenizer) for token, index in ids.items()})
    for part in (teacher, other):
        part.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def distils(folder, student, teacher, tokenizer):
    return DistillationTrainer(
        student, arguments(folder / "run"), pad, rows(8), processing_class=tokenizer, teacher_model=teacher
    )


def test_an_object_is_refused_as_its_path_is(tmp_path, student, teacher, stored, tokenizer):
    loaded = AutoModelForSequenceClassification.from_pretrained(stored)
    messages = []
    for passed in (str(stored), stored, loaded, pipeline("text-classification", model=str(stored))):
        with pytest.raises(ValueError, match="have another id") as error:
            distils(tmp_path, student, passed, tokenizer)
        messages.append(str(error.value))
    assert len(set(messages)) == 1
    with pytest.raises(ValueError, match=r"^Teacher 2 of 2: .*have another id"):
        distils(tmp_path, student, [str_without_tokenizer(tmp_path, loaded), loaded], tokenizer)
    made = pipeline("text-classification", model=teacher, tokenizer=BertTokenizer.from_pretrained(stored))
    with pytest.raises(ValueError, match="have another id"):  # a pipeline knows its tokenizer
        distils(tmp_path, student, made, tokenizer)
    tokenizer.save_pretrained(stored)
    distils(tmp_path, student, loaded, tokenizer)


def str_without_tokenizer(tmp_path, model):
    model.save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


def test_a_name_that_says_nothing_now_is_not_followed(tmp_path, student, teacher, stored, tokenizer, hub):
    loaded = AutoModelForSequenceClassification.from_pretrained(stored)
    for path in stored.iterdir():
        if "token" in path.name or "vocab" in path.name:
            path.unlink()
    distils(tmp_path, student, loaded, tokenizer)
    for path in stored.iterdir():
        path.unlink()
    distils(tmp_path, student, loaded, tokenizer)
    stored.rmdir()
    for name in (str(stored), "runs/gone", "user/model", "a/b/c/d", ""):
        loaded.name_or_path = name
        distils(tmp_path, student, loaded, tokenizer)
    assert not [path for _, path in hub.requests if "user/model" in path or "gone" in path]


def test_a_model_whose_vocabulary_has_changed_is_not_the_one_in_its_folder(tmp_path, student, teacher, tokenizer):
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    trimmed, fewer = trim_vocabulary(loaded, tokenizer, ["a good film"])
    student.resize_token_embeddings(len(fewer))
    distils(tmp_path, student, trimmed, fewer)
    words = [*tokenizer.get_vocab(), *"bcdefghijklmnopqrstuvwxyzäöü01"]
    swapped = BertTokenizer(vocab={word: -index % 50 for index, word in enumerate(words)})
    assert len(swapped) == 50
    student.resize_token_embeddings(50)
    distils(tmp_path, student, transfer_vocabulary(loaded, tokenizer, swapped), swapped)
    tokenizer.add_tokens(["wonderful"])
    loaded.resize_token_embeddings(60)
    student.resize_token_embeddings(60)
    distils(tmp_path, student, loaded, tokenizer)
