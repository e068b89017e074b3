"""The blocks of README.md and the guides run, and the links of all pages lead somewhere."""

import re
import traceback
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import filterfalse, pairwise
from pathlib import Path

import pytest
from code_blocks import PARSER, ROOT, Block, blocks_of, pages
from stand_ins import models, page_folder, variables  # noqa: F401

ALL_PAGES = [*ROOT.glob("*.md"), *(ROOT / "recipes").rglob("*.md")]
README, *GUIDES = pages()
README_AND_GUIDES = [README, *(pytest.param(guide, marks=pytest.mark.slow) for guide in GUIDES)]
# Exports of models take half a minute.
SLOW = re.compile(r"onnx|openvino|ship_student|StudentReport|hf-tinybert +(report|export|ship)")


def is_slow(block: Block) -> bool:
    return not block.reason and SLOW.search(block.code) is not None


def run(blocks: Iterable[Block], shared: dict) -> None:
    for block in blocks:
        block.run(shared)


@pytest.mark.parametrize("page", README_AND_GUIDES, ids=lambda page: page.stem)
def test_the_quick_blocks_of_a_page_run(page, variables):  # noqa: F811
    run(filterfalse(is_slow, blocks_of(page)), variables)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in pages() if any(map(is_slow, blocks_of(p)))], ids=lambda page: page.stem)
def test_all_blocks_of_a_page_run(page, variables):  # noqa: F811
    run(blocks_of(page), variables)


def test_every_block_runs_or_says_why_not():
    offenders = [f"{block.place}: {block.problem}" for page in pages() for block in blocks_of(page) if block.problem]
    advice = "write `<!-- not run: reason -->` before such a block"
    assert not offenders, "\n" + "\n".join([*offenders, advice])


PAGE = """
```python
first = 1
```

<!-- file: words.csv -->
```text
text
```

- <!-- not run: it raises -->
  ```python
  raise ValueError
  ```

```console
$ hf-tinybert \\
  --version
hf_tinybert 0
```

```python
assert first == 1 and open("words.csv").read() == "text\\n"
second = first / 0
```
"""


def test_blocks_share_variables_and_files_and_errors_name_their_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    with pytest.raises(ZeroDivisionError) as error:
        run(blocks_of(tmp_path / "page.md"), {})
    assert traceback.extract_tb(error.tb)[-1].line == "second = first / 0"
    assert capsys.readouterr().out.startswith("hf_tinybert ")


@pytest.mark.parametrize(
    ("fence", "problem"),
    [
        ("```python\nx\n```", None),
        ("```text\nshown\n```", None),
        ("```bash\nhf-tinybert --help\n```", None),
        ("```bash\npip install x\n```", "nothing runs the commands ['pip']"),
        ("```text\n$ node app.js\n```", "nothing runs the commands ['node']"),
        ("```yaml\nx: 1\n```", "nothing runs yaml"),
        ("<!-- not run: a file of a reader's -->\n```yaml\nx: 1\n```", None),
        ("<!-- not run -->\n```yaml\nx: 1\n```", "nothing runs yaml"),
        ("<!-- not run: reason -->\n\ntext\n\n```yaml\nx: 1\n```", "nothing runs yaml"),
    ],
)
def test_a_block_that_nothing_runs_needs_a_reason(tmp_path, fence, problem):
    (tmp_path / "page.md").write_text(fence)
    (block,) = blocks_of(tmp_path / "page.md")
    assert block.problem == problem


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    tokens, seen, anchors = PARSER.parse(page.read_text(encoding="utf8")), Counter(), set()
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(child.content for child in text.children)
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            anchors.add(anchor if not seen[anchor] else f"{anchor}-{seen[anchor]}")
            seen[anchor] += 1
    return anchors


def links(page: Path) -> list[str]:
    """The targets of links and images of a page."""
    children = [child for token in PARSER.parse(page.read_text(encoding="utf8")) for child in token.children or ()]
    return [str(child.attrs[name]) for child in children for name in ("href", "src") if name in child.attrs]


def broken(page: Path) -> list[str]:
    """The links of a page into the repository that lead nowhere."""
    targets = [link for link in links(page) if not re.match(r"[a-z]+:", link)]
    offenders = []
    for target in targets:
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            offenders.append(f"{page.name}: {target}")
    return offenders


def test_links_lead_somewhere():
    offenders = [link for page in ALL_PAGES for link in broken(page)]
    assert not offenders, "\n" + "\n".join(offenders)


def test_broken_links_are_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# A `code` heading, twice\n\n# A code heading twice\n")
    (tmp_path / "page.md").write_text(
        "# Here\n[a](other.md) [b](other.md#a-code-heading-twice-1) [c](#here) [d](https://x.y/z) "
        "[e](nowhere.md) [f](other.md#there) ![g](nothing.png) [h](#nowhere)\n"
    )
    assert broken(tmp_path / "page.md") == [
        "page.md: nowhere.md",
        "page.md: other.md#there",
        "page.md: nothing.png",
        "page.md: #nowhere",
    ]
