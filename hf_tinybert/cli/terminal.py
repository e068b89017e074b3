"""What a verb shows: notes and bars on stderr while it runs, then its result on stdout."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import TextWrapper
from time import monotonic
from typing import Any, TextIO

import datasets
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

BETWEEN_LINES = 30  # seconds between the lines of one bar in a log file


@dataclass(frozen=True)
class Outcome:
    """The result of a verb.

    Args:
        text: For people: a table, and where the results are.
        values: The same for programs, printed as JSON by `--json`.
        code: The exit code.
    """

    text: str
    values: Any
    code: int = 0

    def show(self, as_json: bool) -> None:
        """Print the result on stdout; of several processes, the first one does."""
        if is_first_process():
            print(json.dumps(self.values, indent=1, default=str) if as_json else self.text)


def is_first_process() -> bool:
    """Whether this is the process that talks, by what torchrun and accelerate set."""
    return os.environ.get("RANK", "0") == "0"


class LogFile:
    """A stream that is no terminal: of a bar, which redraws its line, it has a line now and then and the last one.

    Args:
        stream: The stream to write to.
        between_lines: The fewest seconds between two lines of a bar.
        clock: Returns the seconds.
    """

    def __init__(self, stream: TextIO, between_lines: float = BETWEEN_LINES, clock: Callable[[], float] = monotonic):
        self.stream, self.between_lines, self.clock = stream, between_lines, clock
        self.line = ""
        self.written = clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the lines that are complete."""
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self._write_line(line)
        before, _, drawn = self.line.rpartition("\r")
        if before and self.clock() - self.written >= self.between_lines:
            self._write_line(f"\r{before}")  # not the newest, which may be the last one and have a line anyway
            self.line = f"\r{drawn}"
        return len(text)

    def _write_line(self, line: str) -> None:
        drawn = line.rstrip("\r").rpartition("\r")[2].rstrip()
        if drawn or "\r" not in line:  # a bar that is removed is overwritten by spaces
            self.stream.write(f"{drawn}\n")
            self.stream.flush()
            self.written = self.clock()

    def finish(self) -> None:
        """Write what is left."""
        if self.line:
            self._write_line(self.line)
            self.line = ""


class _Notes(logging.StreamHandler):
    """Notes as plain lines, on what is stderr at the time: above a bar, and between words in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not sys.stderr.isatty():
            return text
        wrapper = TextWrapper(terminal_columns(), break_long_words=False, break_on_hyphens=False)
        return "\n".join(map(wrapper.fill, text.split("\n")))

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


@contextmanager
def running(quiet: bool) -> Iterator[None]:
    """The time in which a verb runs: its notes and bars, and nothing of what libraries say in passing.

    Whatever is printed goes to stderr, so that stdout has the result alone.

    Args:
        quiet: Whether nothing is shown at all.
    """
    with ExitStack() as stack:
        _quiet_libraries(stack)
        package = logging.getLogger("hf_tinybert")
        handler = _Notes()
        package.addHandler(handler)
        stack.callback(package.removeHandler, handler)
        _set_level(stack, package, logging.INFO if is_first_process() else logging.ERROR)
        stack.callback(setattr, package, "propagate", package.propagate)
        package.propagate = False
        if quiet:
            stream = stack.enter_context(open(os.devnull, "w", encoding="utf8"))
        elif sys.stderr.isatty():
            stream = sys.stderr
        else:
            stream = LogFile(sys.stderr)
            stack.callback(stream.finish)
        stack.enter_context(redirect_stderr(stream))
        stack.enter_context(redirect_stdout(stream))
        yield


def _quiet_libraries(stack: ExitStack) -> None:
    """What is known is not reported: new prediction heads, bars of half a second, packages that an exporter lacks."""
    stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
    transformers_logging.set_verbosity_error()
    if transformers_logging.is_progress_bar_enabled():
        transformers_logging.disable_progress_bar()
        stack.callback(transformers_logging.enable_progress_bar)
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        stack.callback(datasets.enable_progress_bars)
    for name in (None, "torch.onnx", "datasets"):  # the root has the quantiser's advice
        _set_level(stack, logging.getLogger(name), logging.ERROR)


def _set_level(stack: ExitStack, logger: logging.Logger, level: int) -> None:
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(level)


def to_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text; the first one is the header. Columns after the first are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def terminal_columns() -> int:
    """How wide the terminal is; 80 if the output goes elsewhere."""
    return get_terminal_size().columns


def to_duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
