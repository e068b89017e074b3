"""Files that are whole or absent, and errors of a disk in one sentence."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# the number of an error → what is wrong, and what to do
DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", "Free space there, or choose a folder on another disk"),
    errno.EDQUOT: ("the quota of the disk is used up", "Free space there, or choose a folder on another disk"),
    errno.EFBIG: ("the file would be larger than is allowed", "Raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "Choose a folder that can be written to"),
    errno.EACCES: ("permission is denied", "Change its permissions, or choose another folder"),
    errno.EPERM: ("permission is denied", "Change its permissions, or choose another folder"),
    errno.EEXIST: ("a file is in its place", "Choose another folder, or move the file"),
    errno.ENOTDIR: ("a file is in its place", "Choose another folder, or move the file"),
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch says nothing of the disk when it is full
TORCH_WRITER = ("PytorchStreamWriter failed writing", "unexpected pos")


class DiskError(OSError):
    """A file cannot be written or read, in one sentence that names it and says what to do."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name at the end.

    Whoever reads `path`, also after the process was killed, finds the old file or the new one.

    Args:
        path: The path of the file.
    """
    part = path.with_name(f".part-{path.name}")
    yield part
    os.replace(part, path)


def read_json(path: Path, advice: str) -> Any:
    """What a JSON file holds.

    Args:
        path: The file.
        advice: What to do if it is corrupt; the message ends with it.

    Raises:
        ValueError: If it is corrupt.
        DiskError: If it cannot be read.
    """
    with disk_errors(path, "read"):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is corrupt ({error}): {advice}.") from error


@contextmanager
def disk_errors(path: str | Path, action: str = "write to", remains: str = "") -> Iterator[None]:
    """Turn what a disk raises inside, through Python, torch or safetensors, into one sentence.

    Args:
        path: What the message names if the error does not name a file.
        action: What was tried, "read" or "write to".
        remains: What is not lost; the message ends with it.

    Raises:
        DiskError: With the file, the reason and what to do.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        cause = _disk_cause(error)
        if cause is None:
            raise
        number, name = cause
        reason, advice = DISK_ERRORS[number]
        raise DiskError(f"Cannot {action} {name or path}: {reason}. {advice}.{remains}") from error


def _disk_cause(error: BaseException | None) -> tuple[int, str | None] | None:
    """The number of the disk's error that an exception, or what it came from, is about, and the file."""
    while error is not None:
        number, text = getattr(error, "errno", None), str(error)
        if isinstance(error, OSError) and number in DISK_ERRORS and (error.filename or number in FULL):
            return number, error.filename
        for number in DISK_ERRORS:
            # the wording of safetensors and tokenizers, and that of torch
            if f"(os error {number})" in text or f"strerror: {os.strerror(number)}" in text:
                return number, None
        if any(name in text for name in TORCH_WRITER):
            return errno.ENOSPC, None
        error = error.__cause__ or error.__context__
    return None


def check_writable(folder: str | Path) -> None:
    """Check that files can be written into a folder, which need not exist yet.

    Raises:
        DiskError: If they cannot.
    """
    place = Path(folder).absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    with disk_errors(place):
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(place)) from error
