"""Faults of files and disks, made for real: damaged files, processes without permissions, limits and small disks."""

import multiprocessing
import os
import resource
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = os.geteuid() == 0
NOBODY = 65534


def damage(path: Path, how: str) -> None:
    """Damage a file: "cut off" in the middle, "empty", or "garbage" of the same size."""
    content = path.read_bytes()
    path.write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "garbage": b"\x07" * len(content)}[how])


def in_child(function: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> str:
    """The exception that a function ends with in a forked process, as text; "" if it ends well."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def target():
        try:
            prepare()
            function()
            sender.send("")
        except BaseException as error:
            traceback.print_exc()
            sender.send(f"{type(error).__name__}: {error}")

    process = fork.Process(target=target)
    process.start()
    sender.close()
    assert receiver.poll(120), "hangs"
    message = receiver.recv()
    process.join(10)
    return message


def become_nobody() -> None:
    """Go on as a user whom permissions bind."""
    if ROOT:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def limit_files(size: int) -> None:
    """Let no file become larger: what a full disk is to who may not mount a small one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def open_to_all(folder: Path) -> None:
    """Let every user read and write a folder, and reach it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    for parent in folder.parents:
        if parent.owner() == folder.owner() and len(parent.parts) > 2:
            parent.chmod(parent.stat().st_mode | 0o755)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a disk of a size such as "300k" on a folder; yields whether that was possible, which takes root."""
    folder.mkdir(exist_ok=True)
    mounted = ROOT and not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
