import itertools

import pytest

from hf_tinybert import map_layers


@pytest.mark.parametrize(
    ("strategy", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT paper, section 4.2
        ("uniform", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        ("uniform", 4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),  # the authors' PKD-Skip: 1,3,5,7,9 from 0
        ("skip", 4, 12, [(1, 3), (2, 6), (3, 9)]),
        ("skip", 4, 6, [(1, 2), (2, 3), (3, 5)]),
        ("skip", 3, 3, [(1, 1), (2, 2)]),
        ("top", 4, 12, [(1, 9), (2, 10), (3, 11), (4, 12)]),
        ("bottom", 4, 12, [(1, 1), (2, 2), (3, 3), (4, 4)]),
        ([3, 6, 9, 12], 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("3,6,9,12", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ([(4, 12), (1, 1)], 4, 12, [(4, 12), (1, 1)]),
        ([[4, 12]], 4, 12, [(4, 12)]),  # as YAML gives it
    ],
)
def test_map_layers(strategy, student, teacher, expected):
    assert map_layers(strategy, student, teacher) == expected


@pytest.mark.parametrize("teacher", [8, 13])
def test_uniform_ends_at_the_top_and_never_goes_back(teacher):
    for student in range(1, 9):
        layers = [g for _, g in map_layers("uniform", student, teacher)]
        assert layers[-1] == teacher
        assert all(low < high for low, high in itertools.pairwise(layers))
        if teacher % student == 0:
            assert layers == [m * teacher // student for m in range(1, student + 1)]


@pytest.mark.parametrize(
    ("strategy", "student", "message"),
    [
        ("uniform", 13, "13 layers, the teacher 12"),
        ("top", 13, "not deeper"),
        ("skip", 13, "not deeper"),
        ("skip", 1, "only layer of the student: take 'top'"),
        ([3, 6, 9, 13], 4, r"\(4, 13\)"),
        ([(0, 3)], 4, r"\(0, 3\)"),
        ([3, 6], 4, "4 teacher layers"),
        ("random", 4, "'uniform', 'skip', 'top', 'bottom', 4 teacher layers"),
        ([], 4, "not understood"),
        ("3,6,9,x", 4, "not understood"),
    ],
)
def test_bad_mappings_say_what_to_give(strategy, student, message):
    with pytest.raises(ValueError, match=message):
        map_layers(strategy, student, 12)
