"""The fenced blocks of README.md and the guides: what becomes of each, and how it runs.

    PYTHONPATH=tests python tests/recipes/code_blocks.py  # lists the blocks that do not run, with their reasons

A comment in the line before a block says what a test does with it:

| comment | what happens |
|---|---|
| none | Python runs; so do `hf-tinybert …` and `python FILE …` in bash, and behind `$ ` in other text |
| `<!-- file: NAME -->` | the block is written to this file, for the blocks after it |
| `<!-- run -->`, `<!-- test -->` | nothing: these commands of README are run elsewhere |
| `<!-- not run: REASON -->` | nothing |

The blocks of a page run in their order, share their variables and are in one temporary folder (`stand_ins.py`).
"""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from markdown_it import MarkdownIt
from stand_ins import smaller

from hf_tinybert.cli import main

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "recipes/guides/api.md"  # shows signatures; test_api_reference.py is about it
COMMENT = re.compile(r"<!-- (?:(?P<elsewhere>run|test)|not run: (?P<reason>.+)|file: (?P<file>.+)) -->")
PARSER = MarkdownIt("commonmark").enable("table")


@dataclass
class Block:
    """A fenced block.

    Args:
        page: The file that it is in.
        line: The line of its first fence, from 1.
        language: What follows the fence.
        code: What it holds.
        comment: The match of the comment before it; None if there is none.
    """

    page: Path
    line: int
    language: str
    code: str
    comment: re.Match | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT) if ROOT in self.page.parents else self.page.name}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why the block does not run here; None if it does or is a file."""
        if self.comment is None or self.comment["file"]:
            return None
        return self.comment["reason"] or "run elsewhere"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line; in text that is not bash, of the lines behind `$ `."""
        lines = smaller(self.code).replace("\\\n", " ").splitlines()
        if self.language != "bash":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def problem(self) -> str | None:
        """What nobody can run; None if there is no such thing."""
        if self.comment is not None or self.language == "python":
            return None
        if self.language not in ("bash", "text", "console", ""):
            return f"nothing runs {self.language}"
        unknown = {words[0] for words in self.commands} - set(PROGRAMS)
        return f"nothing runs the commands {sorted(unknown)}" if unknown else None

    def run(self, variables: dict) -> None:
        """Do what the comment says, in the current folder and with the page's variables."""
        if self.reason:
            return
        if self.comment:
            Path(self.comment["file"]).write_text(self.code, encoding="utf8")
        elif self.language == "python":  # the line numbers of errors are those of the page
            exec(compile("\n" * self.line + smaller(self.code), str(self.page), "exec"), variables)
        else:
            for program, *arguments in self.commands:
                assert PROGRAMS[program](arguments) in (0, None), f"{self.place}: {shlex.join([program, *arguments])}"


def run_hf_tinybert(arguments: list[str]) -> int | None:
    try:
        return main(arguments)
    except SystemExit as done:  # as --help ends
        return done.code


def run_python(arguments: list[str]) -> None:
    file = Path(arguments[0])
    with patch.object(sys, "argv", arguments):
        runpy.run_path(str(file if file.exists() else ROOT / file), run_name="__main__")


PROGRAMS = {"hf-tinybert": run_hf_tinybert, "python": run_python}


def pages() -> list[Path]:
    """README.md and the guides."""
    return [ROOT / "README.md", *sorted(set((ROOT / "recipes/guides").glob("*.md")) - {REFERENCE})]


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in their order."""
    comment = None
    for token in PARSER.parse(page.read_text(encoding="utf8")):
        if token.type == "fence":
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, comment)
        comment = COMMENT.fullmatch(token.content.strip()) if token.type == "html_block" else None


if __name__ == "__main__":
    for block in (block for page in pages() for block in blocks_of(page)):
        if why := block.problem or block.reason:
            print(f"{block.place:40} {block.language:8} {why}")
