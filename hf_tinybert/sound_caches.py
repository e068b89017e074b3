"""Cache files of `datasets` that can be read to their end; others are made again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import datasets
import pyarrow as pa
from transformers.utils import logging

from .whole_files import disk_errors

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow

T = TypeVar("T")
logger = logging.get_logger(__name__)


def cache_file(rows: datasets.Dataset, fingerprint: str) -> Path | None:
    """Where `datasets` caches the result of a map over these rows; None if they are not on disk."""
    if not rows.cache_files:
        return None
    return Path(rows.cache_files[0]["filename"]).with_name(f"cache-{fingerprint}.arrow")


def remove_corrupt(cached: Path | None) -> bool:
    """Remove a cache file that cannot be read, so that it is made again, and warn of it; returns whether it did."""
    if cached is None or not cached.exists():
        return False
    with disk_errors(cached, "read"):
        reason = _arrow_fault(cached)
        if reason is not None:
            logger.warning(f"The cache file {cached} is corrupt ({reason}): it is made again.")
            cached.unlink()
        return reason is not None


def with_sound_caches(rows: datasets.Dataset | datasets.IterableDataset, mapped: Callable[[], T]) -> T:
    """Call a function that maps rows, and once more without the cache files beside them that turn out to be corrupt.

    Args:
        rows: The rows.
        mapped: A function that calls `datasets.Dataset.map`.

    Returns:
        What it returns.

    Raises:
        DiskError: If the disk of the cache is full or cannot be written to.
    """
    folders = {Path(file["filename"]).parent for file in getattr(rows, "cache_files", None) or ()}
    try:
        with disk_errors(next(iter(folders), "memory")):
            return mapped()
    except (pa.ArrowException, OSError):
        removed = [remove_corrupt(path) for folder in folders for path in folder.glob("cache-*.arrow")]
        if not any(removed):
            raise
        return mapped()


def _arrow_fault(path: Path) -> str | None:
    """Why an Arrow file of `datasets` cannot be read to its end; None if it can."""
    try:
        datasets.Dataset.from_file(str(path))
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's, not the file's
            raise
        return str(error).splitlines()[0]
    # a file that was cut off between two batches reads as a shorter one
    with path.open("rb") as file:
        file.seek(-len(END_OF_STREAM), os.SEEK_END)
        return None if file.read() == END_OF_STREAM else "its end is missing"
