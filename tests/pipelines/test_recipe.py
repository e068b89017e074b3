"""The default recipe: variants and epochs by the number of rows."""

from dataclasses import replace

import pytest
from transformers import BertConfig, DistilBertConfig

from hf_tinybert import RandomWords
from hf_tinybert.pipelines.recipe import Recipe, fine_tuning_rate, is_narrow


@pytest.mark.parametrize(
    ("labelled", "transfer", "copies", "intermediate", "prediction", "labels", "teacher"),
    [
        (100, 0, 10, 50, 10, 10, 10),
        (2_490, 0, 10, 50, 7, 7, 3),
        (8_551, 0, 10, 40, 2, 3, 3),
        (1_000, 15_000, 5, 21, 2, 10, 6),
        (67_349, 0, 0, 5, 3, 3, 3),
        (0, 8_000, 10, 42, 2, 0, 0),
        (400_000, 1_000_000, 0, 1, 1, 3, 3),
    ],
)
def test_many_rows_have_few_variants_and_epochs(labelled, transfer, copies, intermediate, prediction, labels, teacher):
    recipe = Recipe.for_rows(labelled, transfer)
    assert recipe == Recipe(copies, intermediate, prediction, labels, teacher)
    assert recipe.augmentation(3) == (RandomWords(copies, seed=3) if copies else None)


def test_epochs_follow_from_the_variants_that_there_are():
    recipe = Recipe.for_rows(24_000, 0, copies=0)
    assert recipe == Recipe(0, intermediate_epochs=14, prediction_epochs=8, labels_epochs=3, teacher_epochs=3)
    assert recipe.augmentation(0) is None
    assert Recipe.for_rows(24_000, 0, copies=3) == replace(recipe, copies=3, prediction_epochs=2)


@pytest.mark.parametrize(
    ("tokens", "copies", "intermediate", "prediction", "labels", "teacher"),
    [(40, 10, 50, 9, 8, 3), (256, 6, 27, 2, 3, 3)],
)
def test_long_rows_count_for_several(tokens, copies, intermediate, prediction, labels, teacher):
    assert Recipe.for_rows(2_000, 0, tokens=10) == Recipe.for_rows(2_000, 0)
    assert Recipe.for_rows(2_000, 0, tokens=tokens) == Recipe(copies, intermediate, prediction, labels, teacher)


def test_many_classes_are_read_more_often():
    few, many = Recipe.for_rows(5_000, 0, classes=6), Recipe.for_rows(5_000, 0, classes=48)
    assert few == Recipe.for_rows(5_000, 0)
    assert many == replace(few, labels_epochs=10, teacher_epochs=10)


def test_narrow_teachers_are_fine_tuned_at_a_higher_rate():
    base, narrow = BertConfig(), BertConfig(hidden_size=384)
    assert [fine_tuning_rate(teachers) for teachers in ([base], [narrow], [narrow, base])] == [5e-5, 1e-4, 5e-5]


def test_students_of_less_than_half_the_width_are_narrow():
    for teacher in (BertConfig(), DistilBertConfig()):  # 768
        assert [is_narrow(teacher, size) for size in (312, 384, 768)] == [True, False, False]
