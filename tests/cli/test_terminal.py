"""What people and programs see: the result on stdout, notes and bars on stderr, lines in a log file."""

import io
import json
import logging
import os
import pty
import sys
import termios
from functools import partial

import datasets
import pytest
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from hf_tinybert.cli.terminal import LogFile, Outcome, running, to_duration, to_table

OUTCOME = Outcome("a table", {"accuracy": 0.5}, 0)


def test_bars_become_a_line_now_and_then():
    file, seconds = io.StringIO(), iter(range(0, 1000, 10))
    log = LogFile(file, between_lines=30, clock=lambda: next(seconds))
    bar = tqdm(total=20, file=log, desc="Training", mininterval=0, miniters=1)
    for _ in range(20):
        bar.update()
    bar.close()
    log.finish()
    lines = file.getvalue().splitlines()
    assert 3 <= len(lines) <= 9
    assert all(line.startswith("Training: ") and "\r" not in line for line in lines)
    assert "100%" in lines[-1]
    assert sum("100%" in line for line in lines) == 1


def test_a_bar_that_is_removed_leaves_nothing_and_lines_stay_as_they_are():
    file = io.StringIO()
    log = LogFile(file)
    for _ in tqdm(range(5), file=log, leave=False):
        pass
    print("a note", file=log)
    print("half a line", end="", file=log)
    log.finish()
    assert file.getvalue().splitlines() == ["a note", "half a line"]
    assert not log.isatty()


def noisy() -> None:
    """What libraries say in passing, and what this package says."""
    transformers_logging.get_logger("transformers.modeling_utils").warning("LOAD REPORT")
    logging.getLogger("torch.onnx._internal.exporter").warning("torchvision is not installed")
    logging.getLogger().warning("consider to run pre-processing")
    datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
    logging.getLogger("hf_tinybert.pipelines.task").info("a note")
    logging.getLogger("hf_tinybert.pipelines.task").warning("a warning")
    print("Trainer's log")
    for _ in tqdm(range(3), desc="a bar"):
        pass


def test_notes_and_bars_go_to_stderr_and_libraries_are_quiet(capsys):
    before = transformers_logging.get_verbosity(), datasets.are_progress_bars_disabled(), logging.getLogger().level
    with running(quiet=False):
        noisy()
    printed = capsys.readouterr()
    assert not printed.out
    lines = printed.err.splitlines()
    assert lines[:3] == ["a note", "a warning", "Trainer's log"]
    assert lines[3].startswith("a bar: 100%")
    assert len(lines) == 4
    after = transformers_logging.get_verbosity(), datasets.are_progress_bars_disabled(), logging.getLogger().level
    assert after == before


def test_libraries_do_not_report_what_is_known():
    with running(quiet=False):
        assert transformers_logging.get_verbosity() == logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
        for name in (None, "torch.onnx._internal.exporter._registration", "datasets.builder"):
            assert not logging.getLogger(name).isEnabledFor(logging.WARNING)
    assert transformers_logging.is_progress_bar_enabled()


def test_quiet_shows_nothing(capsys):
    with running(quiet=True):
        noisy()
    assert capsys.readouterr() == ("", "")


def test_other_processes_say_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with running(quiet=False):
        logging.getLogger("hf_tinybert").info("a note")
    OUTCOME.show(as_json=False)
    assert capsys.readouterr() == ("", "")


def test_a_result_for_people_and_for_programs(capsys):
    OUTCOME.show(as_json=False)
    assert capsys.readouterr().out == "a table\n"
    OUTCOME.show(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"accuracy": 0.5}


def read_if_any(reader: int) -> bytes:
    try:
        return os.read(reader, 10_000)
    except BlockingIOError:
        return b""


def test_bars_are_redrawn_in_a_terminal(monkeypatch):
    reader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 80))
    with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("COLUMNS", "80")
        with running(quiet=False):
            noisy()
            with tqdm(range(2), desc="an open bar", file=sys.stderr):
                logging.getLogger("hf_tinybert").info("a long note " * 12)
        os.set_blocking(reader, False)
        shown = b"".join(iter(partial(read_if_any, reader), b"")).decode()
    os.close(reader)
    assert shown.count("\r") > shown.count("\n")
    assert "a bar: 100%" in shown
    assert max(map(len, shown.replace("\r", "\n").splitlines())) <= 80
    lines = [line.rpartition("\r")[2] for line in shown.replace("\r\n", "\n").split("\n")]
    notes = [line for line in lines if "a long note" in line]
    assert len(notes) == 2
    assert not any("bar" in line for line in notes)


def test_tables_are_aligned():
    table = to_table([["", "MB", "score"], ["teacher", "90.9", "1"], ["student", "7.3", "0.25"]])
    assert table.splitlines() == ["           MB  score", "teacher  90.9      1", "student   7.3   0.25"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert to_duration(seconds) == text
