"""Random operations on words."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from conftest import WORDS
from datasets import Dataset

from hf_tinybert import CombinedAugmentation, RandomWords
from hf_tinybert.tasks.random_words import random_variant

TEXT = "one two three four five six seven eight nine ten"
NEW = ["new"]


def operation(variant: str) -> str:
    """Which of the four made a variant of TEXT."""
    before, after = TEXT.split(), variant.split()
    if len(after) != len(before):
        return "inserted" if len(after) > len(before) else "deleted"
    if after == before:
        return "nothing"
    return "replaced" if "new" in after else "swapped"


def test_one_operation_is_each_of_the_four_equally_often():
    rng = random.Random(0)
    counts = Counter(operation(random_variant(TEXT, NEW, 0.1, rng)) for _ in range(4000))
    assert set(counts) == {"inserted", "deleted", "replaced", "swapped", "nothing"}
    assert counts["nothing"] / 4000 == pytest.approx(0.25 * 0.1, abs=0.01)  # the last word has no next one
    for name in ("inserted", "deleted", "replaced"):
        assert counts[name] / 4000 == pytest.approx(0.25, abs=0.03)


def test_the_share_bounds_the_number_of_operations():
    rng = random.Random(0)
    variants = [random_variant(TEXT, NEW, 0.3, rng).split() for _ in range(2000)]
    assert max(variant.count("new") for variant in variants) == 3
    assert min(len({*variant} & {*TEXT.split()}) for variant in variants) == 7


def test_texts_without_words_or_new_words_stay():
    assert random_variant("", NEW, 0.3, random.Random(0)) == ""
    assert random_variant("film", [], 0.3, random.Random(0)) == "film"
    assert all(random_variant("film", NEW, 1.0, random.Random(seed)) for seed in range(50))


def test_rows_follow_their_original_and_new_words_are_those_of_the_data():
    texts = [" ".join(WORDS[(i * j) % 13] for j in range(1, 9)) for i in range(1, 6)]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1, 0, 1, 0]})
    augmented = RandomWords(copies=8)(rows, ["text"])
    assert augmented.features == rows.features
    starts = [augmented["text"][:].index(text) for text in texts]
    assert starts == sorted(starts)
    for (start, end), text, label in zip(pairwise([*starts, len(augmented)]), texts, rows["label"], strict=True):
        variants = augmented[start:end]
        assert len({*variants["text"]}) == end - start <= 9
        assert variants["text"].count(text) == 1
        assert {*variants["label"]} == {label}
    assert {word for text in augmented["text"] for word in text.split()} <= {w for text in texts for w in text.split()}


def test_of_a_pair_one_side_or_both():
    rows = Dataset.from_dict({"a": ["good film and more"], "b": ["bad book and less"]})
    augmented = RandomWords(copies=200)(rows, ["a", "b"])
    changed = Counter((row["a"] != "good film and more", row["b"] != "bad book and less") for row in augmented)
    assert changed.pop((False, False)) == 1
    assert set(changed) == {(True, False), (False, True), (True, True)}


def test_neither_batches_nor_order_matter_and_the_seed_does():
    texts = [" ".join(WORDS[(i * j) % 13] for j in range(1, 9)) for i in range(1, 6)]

    def variants(texts, seed=0):
        made = RandomWords(copies=5, seed=seed).row_variants([(text,) for text in texts], WORDS)
        return dict(zip(texts, made, strict=True))

    assert variants(texts) == variants(texts[::-1]) == {text: variants([text])[text] for text in texts}
    assert variants(texts) != variants(texts, seed=1)


@pytest.mark.parametrize("options", [{"copies": 0}, {"share": 0.0}, {"share": 1.5}])
def test_bad_settings(options):
    with pytest.raises(ValueError, match="copies is at least 1, share lies in"):
        RandomWords(**options)


def test_augmentations_combine():
    rows = Dataset.from_dict({"text": [TEXT, "a film"]})
    parts = RandomWords(copies=3, share=0.1), RandomWords(copies=4, share=0.5, seed=1)
    combined = CombinedAugmentation(*parts, parts[0])
    texts = [{*part(rows, ["text"])["text"]} for part in parts]
    variants = combined(rows, ["text"])["text"][:]
    assert {*variants} == texts[0] | texts[1]
    assert len({*variants}) == len(variants)
    assert combined.settings == {"combined": [parts[0].settings, parts[1].settings, parts[0].settings]}
