"""The API reference is the one that the docstrings make now, and it has every public name."""

import runpy
from pathlib import Path

import pytest

import hf_tinybert

SCRIPT = Path(__file__).parents[2] / "recipes/api_reference.py"


@pytest.fixture(scope="module")
def page() -> str:
    return runpy.run_path(str(SCRIPT))["page"]()


def test_the_committed_page_is_what_the_script_writes_now(page):
    stale = (SCRIPT.parent / "guides/api.md").read_text(encoding="utf8") != page
    assert not stale, "recipes/guides/api.md is older than the docstrings: run `python recipes/api_reference.py`."


def test_every_public_name_has_an_entry(page):
    headings = [line.removeprefix("### ").strip("`") for line in page.splitlines() if line.startswith("### ")]
    assert set(hf_tinybert.__all__) <= set(headings)
    assert len(set(headings)) == len(headings)


def test_every_argument_that_a_docstring_explains_has_a_line(page):
    entry = page.partition("### `create_student`\n")[2].partition("\n### ")[0]
    for name in ("teacher", "hidden_size", "calibration_dataset", "dropout"):
        assert f"\n- `{name}`: " in entry
    assert "\n    hidden_size: int | None = None,\n" in entry
    assert "\n**Returns:** The student, in float32" in entry
    assert "\n- `OSError`: If there is no teacher of that name" in entry
