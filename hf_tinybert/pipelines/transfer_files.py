"""Transfer data from files, folders and the Hub, and streams written to the disk."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from accelerate import PartialState

from ..whole_files import disk_errors, written_whole
from .data import read_splits


def load_transfer(source: str | Path, text: Sequence[str] = ("text",), subset: str | None = None) -> datasets.Dataset:
    """The rows of transfer data: those of all its splits.

    Args:
        source: A text file of one text a line, a file or folder as `load_task` takes them, or a Hub id.
        text: The columns of text of the task. The only column of a text file has the name of the first one.
        subset: The configuration of a data set of the Hub.

    Raises:
        OSError: If there is no such file, folder or data set.
        ValueError: If it cannot be read, or lacks a column.
    """
    splits = list(read_splits(source, subset).values())
    shared = [name for name in splits[0].column_names if all(name in part.column_names for part in splits)]
    rows = datasets.concatenate_datasets([part.select_columns(shared) for part in splits])
    if shared == ["text"] and len(text) == 1 and text[0] != "text":
        return rows.rename_column("text", text[0])
    if missing := [name for name in text if name not in shared]:
        raise ValueError(f"'{source}' has no column {missing}, only {shared}: name its columns of text {[*text]}.")
    return rows


def on_disk(rows: datasets.Dataset | datasets.IterableDataset, folder: Path) -> datasets.Dataset:
    """A data set as it is; a stream is written to `folder` once and read from there.

    Raises:
        TypeError: If `rows` is neither.
        DiskError: If the folder cannot be written.
    """
    if isinstance(rows, datasets.Dataset):
        return rows
    if not isinstance(rows, datasets.IterableDataset):
        raise TypeError(f"transfer is {type(rows).__name__}: make a data set of it, such as Dataset.from_list(rows).")
    with PartialState().main_process_first(), disk_errors(folder):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder.parent) as cache, written_whole(folder) as part:
                datasets.Dataset.from_generator(rows.__iter__, cache_dir=cache).save_to_disk(part)
        return datasets.load_from_disk(folder)
