"""Files that are whole or absent, and the one sentence that a disk's errors become."""

import contextlib
import errno
import os
from functools import partial

import pytest
import torch
from disk_damage import become_nobody, damage, in_child, limit_files, open_to_all, small_disk
from safetensors.torch import save_file

from hf_tinybert.whole_files import DiskError, check_writable, disk_errors, read_json, written_whole


def test_a_file_is_old_or_new(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with contextlib.suppress(KeyboardInterrupt), written_whole(path) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with written_whole(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]  # the part that was left is used again


def test_corrupt_json_is_named(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"a": 1, "b": 2}')
    assert read_json(path, "remove it") == {"a": 1, "b": 2}
    for how in ("cut off", "empty", "garbage"):
        damage(path, how)
        with pytest.raises(ValueError, match=r"settings.json is corrupt \(.*\): remove it\.$"):
            read_json(path, "remove it")
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"settings.json is corrupt"):
        read_json(path, "remove it")
    with pytest.raises(DiskError, match=r"^Cannot read .*: "):
        read_json(tmp_path / "settings.json/inside", "remove it")


def write(kind: str, path) -> None:
    values = torch.zeros(200_000)
    with disk_errors(path.parent, remains=" Nothing is lost."):
        if kind == "torch":
            torch.save(values, path)
        elif kind == "safetensors":
            save_file({"weight": values}, path)
        else:
            path.write_bytes(b"x" * 500_000)


@pytest.mark.parametrize("kind", ["torch", "safetensors", "python"])
def test_a_full_disk(tmp_path, kind):
    """A disk of 300 KB for root, and a limit of the size of files for all."""
    message = in_child(partial(write, kind, tmp_path / "file"), partial(limit_files, 100_000))
    assert message.startswith(f"DiskError: Cannot write to {tmp_path}")
    assert message.endswith(". Nothing is lost.")
    with small_disk(tmp_path / "small", "300k") as mounted:
        if mounted:
            with pytest.raises(DiskError, match=r"small: the disk is full\. Free space there, .* Nothing is lost"):
                write(kind, tmp_path / "small/file")


@pytest.mark.parametrize("kind", ["torch", "safetensors", "python"])
def test_a_folder_that_may_not_be_written_to(tmp_path, kind):
    (tmp_path / "folder").mkdir()
    open_to_all(tmp_path)
    (tmp_path / "folder").chmod(0o555)
    message = in_child(partial(write, kind, tmp_path / "folder/file"), become_nobody)
    assert message.startswith(f"DiskError: Cannot write to {tmp_path}/folder")
    assert "permission is denied. Change its permissions" in message
    message = in_child(partial(check_writable, tmp_path / "folder/new/folder"), become_nobody)
    assert message.startswith(f"DiskError: Cannot write to {tmp_path}/folder: permission is denied.")


def test_writable_places(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a/b/c")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DiskError, match=rf"Cannot write to {tmp_path}/file: a file is in its place\. Choose"):
            check_writable(path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(DiskError, match="nowhere: a file is in its place"):
        check_writable(tmp_path / "nowhere")


def test_other_errors_pass(tmp_path):
    for error in (ValueError("x"), OSError("no number"), FileNotFoundError(errno.ENOENT, "x", "y"), KeyError("a")):
        with pytest.raises(type(error)) as raised, disk_errors(tmp_path):
            raise error
        assert raised.value is error
    with pytest.raises(DiskError) as raised, disk_errors(tmp_path), disk_errors(tmp_path / "inner"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "inner: the disk is full" in str(raised.value)
