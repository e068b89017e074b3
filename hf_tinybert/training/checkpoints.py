"""Checkpoints that are whole: what can be resumed, and what to do about one that cannot."""

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import logging

from ..whole_files import disk_errors

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"
SET_ASIDE = "_corrupt-"  # before the name of a checkpoint; Trainer and the Hub overlook such folders
RESUMED = ("optimizer.pt", "scheduler.pt")  # without them Trainer starts both anew and says nothing
TORCH_FILES = (*RESUMED, "scaler.pt", "rng_state*.pth", "pytorch_model*.bin")
JSON_FILES = ("config.json", "*.index.json")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*")


def model_fault(folder: Path) -> str | None:
    """What is wrong with the files of a saved model.

    Args:
        folder: The folder of the model.

    Returns:
        Half a sentence that names the file; None if all can be read.

    Raises:
        DiskError: If one may not be read.
    """
    files = sorted(path for pattern in ("*.safetensors", *JSON_FILES, *TORCH_FILES) for path in folder.glob(pattern))
    for path in files:
        with disk_errors(path, "read"):
            path.open("rb").close()
            fault = _file_fault(path)
        if fault:
            return f"{path.name} is corrupt ({fault})"
    if not any(list(folder.glob(pattern)) for pattern in WEIGHTS) and not _has_folders(folder):
        return "its weights (model.safetensors) are missing"
    return None


def _file_fault(path: Path) -> str | None:
    """Why a file cannot be read; None if it can. The files of torch hold checksums, those of safetensors do not."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return None
        if path.suffix == ".json":
            return None if isinstance(json.loads(path.read_bytes()), dict) else "no JSON object"
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            return damaged and f"'{damaged}' does not match its checksum"
    except (SafetensorError, ValueError, zipfile.BadZipFile, EOFError) as error:
        return str(error) or type(error).__name__


def checkpoint_fault(folder: Path, with_optimizer: bool = False) -> str | None:
    """What keeps training from being resumed from a checkpoint.

    Args:
        folder: The folder of the checkpoint.
        with_optimizer: Whether the states of optimizer and scheduler must be there.

    Returns:
        Half a sentence that names the file; None if the checkpoint is whole.

    Raises:
        DiskError: If a file may not be read.
    """
    state = folder / STATE
    with disk_errors(state, "read"):
        if not state.exists():  # Trainer writes it last
            return f"{STATE} is missing"
        text = state.read_text(errors="replace")
    try:
        best = TrainerState(**json.loads(text)).best_model_checkpoint
    except (ValueError, TypeError) as error:
        return f"{STATE} is corrupt ({error})"
    if fault := model_fault(folder):
        return fault
    missing = [name for name in RESUMED if not (folder / name).exists()]
    if with_optimizer and missing and not _has_folders(folder):
        return f"{missing[0]} is missing"
    best_folder = best and folder.with_name(Path(best).name)
    if best_folder and best_folder != folder and best_folder.is_dir() and (fault := model_fault(best_folder)):
        return f"of its best model, {best_folder.name}, {fault}"
    return None


def _has_folders(folder: Path) -> bool:
    """Whether FSDP, DeepSpeed or adapters have put weights and optimizer into folders of their own."""
    return any(path.is_dir() for path in folder.iterdir())


def check_checkpoint(folder: str | Path) -> None:
    """Check that training can be resumed from a checkpoint.

    Raises:
        ValueError: If a file is missing or corrupt; the message names it and the checkpoint before.
        DiskError: If one may not be read.
    """
    folder = Path(folder)
    if not folder.is_dir() or not (fault := checkpoint_fault(folder)):
        return  # Trainer has a message for a folder that does not exist
    before = [path.name for path in _checkpoints(folder.parent) if _step(path) < _step(folder)]
    advice = f"resume from {before[-1]}" if before else "put the file back, or start a new run"
    raise ValueError(f"Cannot resume from {folder}: {fault}. {advice[0].upper()}{advice[1:]}.")


def newest_checkpoint(folder: Path, with_optimizer: bool = True) -> str | None:
    """The newest whole checkpoint of a training.

    A checkpoint that was being written when its process ended is removed. One that has become corrupt since is set
    aside, with a warning: it takes another name, and the one before is taken.

    Args:
        folder: The `output_dir` of the training.
        with_optimizer: Whether the states of optimizer and scheduler must be there.

    Returns:
        Its path; None if there is none.

    Raises:
        DiskError: If a file may not be read, or if a corrupt checkpoint cannot be set aside.
    """
    while folder.is_dir() and (checkpoint := get_last_checkpoint(folder)):
        path = Path(checkpoint)
        fault = checkpoint_fault(path, with_optimizer)
        if fault is None:
            return checkpoint
        with disk_errors(path):
            if not (path / STATE).exists():
                shutil.rmtree(path)
                continue
            aside = path.with_name(f"{SET_ASIDE}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        before = get_last_checkpoint(folder)
        goes_on = f"goes on from {Path(before).name}" if before else "starts again from its first step"
        logger.warning(f"{path}: {fault}. The checkpoint is now {aside.name}, and training {goes_on}.")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a training that is finished, those that were set aside too."""
    for path in [*_checkpoints(folder), *folder.glob(f"{SET_ASIDE}{PREFIX_CHECKPOINT_DIR}-*")]:
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    paths = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step(path) >= 0]
    return sorted(paths, key=_step)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() else -1
