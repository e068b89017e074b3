"""Word replacement against a naive one-word-at-a-time reference, on a tiny masked language model."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset
from tokenizers.normalizers import Lowercase
from transformers import BertForMaskedLM, BertModel

from hf_tinybert.tasks import MaskedWords, WordVectors
from hf_tinybert.tasks.masked_words import masked_candidates, replace_words, whole_words

TEXTS = ["The good film was not dull.", "a bright player", "very very bad book", "play", "", "zebra !"]


@pytest.fixture
def tokenizer(tmp_path):
    return word_tokenizer(tmp_path)


@pytest.fixture
def masked_lm(tokenizer):
    return build(BertForMaskedLM, bert_config(2, 16, vocab_size=len(tokenizer))).eval()


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    return WordVectors([*(w for w in WORDS if w.isalpha()), "player", "actor"], generator.normal(size=(15, 6)))


def test_candidates_equal_one_full_forward_pass_a_word(masked_lm, tokenizer):
    allowed = whole_words(tokenizer)
    weights = {name: value.clone() for name, value in masked_lm.state_dict().items()}
    ids = tokenizer(TEXTS[:3])["input_ids"]
    rows = [(row, position) for row in range(3) for position in range(1, len(ids[row]) - 1)]
    arguments = [ids[row] for row, _ in rows], [position for _, position in rows]
    for batch_tokens in (1, 20, 4096):
        candidates = masked_candidates(masked_lm, *arguments, tokenizer.mask_token_id, 0, allowed, 4, batch_tokens)
        for (row, position), best in zip(rows, candidates, strict=True):
            masked = torch.tensor([ids[row]])
            masked[0, position] = tokenizer.mask_token_id
            logits = masked_lm(masked).logits[0, position]
            expected = [
                i
                for i in logits.argsort(descending=True).tolist()
                if i in allowed.tolist() and i != ids[row][position]
            ]
            assert best == expected[:4]
    assert all(torch.equal(value, weights[name]) for name, value in masked_lm.state_dict().items())


def test_whole_words_only(tokenizer):
    names = tokenizer.convert_ids_to_tokens(whole_words(tokenizer).tolist())
    assert names == [word for word in WORDS if word.isalpha()]


def test_which_words_are_replaced_and_by_what(masked_lm, tokenizer, vectors):
    augmentation = MaskedWords(masked_lm, tokenizer, vectors, k=3)
    first, second, _, _, empty, unknown = augmentation.candidates(TEXTS)
    assert [TEXTS[0][slice(*span)] for span in first] == ["good", "film", "dull"]  # no stop words, no full stop
    assert all(set(names) <= set(WORDS) and len(names) == 3 for names in first.values())
    near = vectors.vectors @ vectors.vectors[13] / np.linalg.norm(vectors.vectors, axis=1)  # player is two tokens
    assert second[(9, 15)] == [vectors.words[i] for i in (-near).argsort() if i != 13][:3]
    assert empty == {}
    assert unknown == {(0, 5): []}  # neither a token nor a vector
    assert MaskedWords(masked_lm, tokenizer).candidates(["player"]) == [{}]


def test_replacement_follows_the_probability_and_keeps_the_rest():
    text, candidates = "Good film, no?", {(0, 4): ["bad", "new"], (5, 9): ["book"], (11, 13): []}
    variants = replace_words(text, candidates, 500, 0.4, random.Random(0))
    expected = {"Bad film, no?", "New film, no?", "Good book, no?", "Bad book, no?", "New book, no?"}
    assert sorted(variants) == sorted(expected)
    assert len(replace_words(text, candidates, 3, 1.0, random.Random(0))) <= 2  # every word replaced
    draws = [bool(replace_words("film", {(0, 4): ["book"]}, 1, 0.4, random.Random(seed))) for seed in range(2000)]
    assert abs(np.mean(draws) - 0.4) < 0.04


def test_rows_follow_their_original_with_its_label(masked_lm, tokenizer, vectors):
    rows = Dataset.from_dict({"sentence": TEXTS, "label": [0, 1, 0, 1, 0, 1], "idx": list(range(6))})
    augmented = MaskedWords(masked_lm, tokenizer, vectors, copies=4)(rows, ["sentence"])
    assert augmented.features == rows.features
    assert augmented["idx"] == sorted(augmented["idx"])
    for index, text in enumerate(TEXTS):
        variants = augmented.filter(lambda row, index=index: row["idx"] == index)
        assert variants["sentence"][0] == text
        assert len(set(variants["sentence"])) == len(variants) <= 5
        assert set(variants["label"]) == {rows[index]["label"]}
    assert len(augmented) > 15


def test_of_a_pair_one_side_at_a_time(masked_lm, tokenizer):
    rows = Dataset.from_dict({"a": ["good film"], "b": ["bad book"]})
    augmented = MaskedWords(masked_lm, tokenizer, copies=6)(rows, ["a", "b"])
    changed = [(row["a"] != "good film", row["b"] != "bad book") for row in augmented]
    assert changed[0] == (False, False)
    assert set(changed[1:]) == {(True, False), (False, True)}


def test_neither_batches_nor_order_nor_neighbours_matter(masked_lm, tokenizer, vectors):
    def variants(texts, **options):
        augmentation = MaskedWords(masked_lm, tokenizer, vectors, copies=5, **options)
        return dict(zip(texts, augmentation.variants(texts), strict=True))

    together = variants(TEXTS)
    assert variants(TEXTS[::-1], batch_tokens=8) == together
    assert {text: names for one in TEXTS for text, names in variants([one]).items()} == together
    assert variants(TEXTS, seed=1) != together


def test_the_result_is_cached_on_disk(masked_lm, tokenizer, tmp_path, monkeypatch):
    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "rows.parquet")
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    first = MaskedWords(masked_lm, tokenizer, copies=3)(rows, ["text"])
    with monkeypatch.context() as patch:
        patch.setattr(MaskedWords, "variants", lambda *_: pytest.fail("computed again"))
        assert MaskedWords(masked_lm, tokenizer, copies=3)(rows, ["text"])["text"][:] == first["text"][:]
    other = MaskedWords(masked_lm, tokenizer, copies=3, seed=1)(rows, ["text"])
    assert other["text"][:] != first["text"][:]


def test_cached_results_are_named_by_all_that_they_depend_on(masked_lm, tokenizer):
    def key(stop_words=("the",), words=("a", "b", "c"), first=1.0, case=True):
        backend = copy.deepcopy(tokenizer)
        if not case:
            backend.backend_tokenizer.normalizer = Lowercase()
        vectors = WordVectors(list(words), np.array([[first, 0], [1, 1], [0, 1]]))
        return json.dumps(MaskedWords(masked_lm, backend, vectors, stop_words=stop_words).settings)

    before = key()
    tokenizer(TEXTS, padding=True, truncation=True, max_length=4)
    assert key() == before
    keys = {key(), key(stop_words=("and",)), key(words=("b", "a", "c")), key(first=2.0), key(case=False)}
    assert len(keys) == 5


def test_what_cannot_work_is_refused(masked_lm, tokenizer):
    with pytest.raises(ValueError, match="no masked-LM head"):
        MaskedWords(BertModel(masked_lm.config), tokenizer)
    with pytest.raises(ValueError, match="p=0"):
        MaskedWords(masked_lm, tokenizer, p=0)
    with pytest.raises(ValueError, match=r"no column \['sentence'\]"):
        MaskedWords(masked_lm, tokenizer)(Dataset.from_dict({"text": ["a"]}), ["sentence"])
