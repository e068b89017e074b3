"""Random data sets and arguments end in a finite student or in an error that names what is wrong."""

import os

import pytest
from fuzzing import fuzz, is_explained

from hf_tinybert import DistillationArguments

FIRST, CASES = int(os.environ.get("FUZZ_FIRST", "0")), int(os.environ.get("FUZZ_CASES", "60"))


@pytest.mark.slow
def test_random_data_sets_and_arguments():
    """FUZZ_FIRST=0 FUZZ_CASES=300 tries all that the project tries."""
    faults = []

    def report(case, kind, text):
        if kind not in ("trained", "refused"):
            faults.append(f"{kind}, {case}: {text}")

    outcomes = fuzz(FIRST, CASES, report)
    assert not faults, "\n".join(faults)
    assert outcomes["trained"] >= CASES // 20


def test_what_counts_as_an_error_of_ours():
    def error_of(function) -> Exception:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            function()
        return raised.value

    assert is_explained(error_of(lambda: DistillationArguments("x", teacher_dtype="int8")))
    assert is_explained(error_of(lambda: DistillationArguments("x", unknown=1)))
    assert is_explained(error_of(lambda: DistillationArguments("x", save_strategy="x")))
    assert not is_explained(error_of(lambda: DistillationArguments("x", loss_weights=1)))  # len() of an integer
    assert not is_explained(error_of(lambda: [][1]))
