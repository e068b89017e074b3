"""Which checkpoints can be resumed, and what is said and done about one that cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from disk_damage import damage
from safetensors.torch import save_file
from transformers import TrainerState

from hf_tinybert.training.checkpoints import check_checkpoint, newest_checkpoint, remove_checkpoints

FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]


def checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"weight": torch.arange(100.0)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step, "values": torch.arange(100)}, path / name)
    (path / "config.json").write_text(json.dumps({"hidden_size": 16}))
    state = TrainerState(global_step=step, best_model_checkpoint=best and f"{folder}/checkpoint-{best}")
    state.save_to_json(str(path / "trainer_state.json"))
    return path


@pytest.fixture
def folder(tmp_path):
    for step in (8, 9, 10):
        checkpoint(tmp_path, step)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut off", "empty", "garbage"])
def test_a_corrupt_checkpoint_gives_way_to_the_one_before(folder, name, how, caplog):
    damage(folder / "checkpoint-10" / name, how)
    with pytest.raises(ValueError, match=rf"Cannot resume .*checkpoint-10: {name} is corrupt .*from checkpoint-9\.$"):
        check_checkpoint(folder / "checkpoint-10")
    assert newest_checkpoint(folder) == str(folder / "checkpoint-9")
    assert (folder / "_corrupt-checkpoint-10" / name).exists()  # nothing is thrown away
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"checkpoint-10: {name} is corrupt" in warning
    assert warning.endswith("now _corrupt-checkpoint-10, and training goes on from checkpoint-9.")
    assert newest_checkpoint(folder) == str(folder / "checkpoint-9")
    assert len(caplog.records) == 1


def test_a_flipped_bit_in_the_optimizer_is_seen(folder, caplog):
    path = folder / "checkpoint-10/optimizer.pt"
    content = bytearray(path.read_bytes())
    content[content.index(bytes(torch.arange(100).numpy())) + 8] ^= 1
    path.write_bytes(content)
    assert newest_checkpoint(folder) == str(folder / "checkpoint-9")
    assert "does not match its checksum" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt"])
def test_a_checkpoint_that_lacks_a_file(folder, name):
    """Trainer would start optimizer and scheduler anew, in silence."""
    (folder / "checkpoint-10" / name).unlink()
    whole = newest_checkpoint(folder, with_optimizer=False) if name != "model.safetensors" else None
    assert whole in (None, str(folder / "checkpoint-10"))
    assert newest_checkpoint(folder) == str(folder / "checkpoint-9")


def test_a_checkpoint_of_fsdp_keeps_its_states_in_folders(folder):
    path = folder / "checkpoint-10"
    for name in ("model.safetensors", "optimizer.pt"):
        (path / name).unlink()
    (path / "optimizer_0").mkdir()
    assert newest_checkpoint(folder) == str(path)


def test_without_an_older_one_training_starts_again(folder, caplog):
    for step in (8, 9, 10):
        damage(folder / f"checkpoint-{step}/optimizer.pt", "cut off")
    with pytest.raises(ValueError, match=r"Put the file back, or start a new run\.$"):
        check_checkpoint(folder / "checkpoint-8")
    assert newest_checkpoint(folder) is None
    assert caplog.records[-1].getMessage().endswith("training starts again from its first step.")


def test_a_checkpoint_that_was_being_written_is_removed_in_silence(folder, caplog):
    (folder / "checkpoint-10/trainer_state.json").unlink()
    assert newest_checkpoint(folder) == str(folder / "checkpoint-9")
    assert not (folder / "checkpoint-10").exists()
    assert not caplog.records


def test_a_corrupt_best_model_counts_as_well(tmp_path, caplog):
    """It would be loaded at the end of training."""
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, best=4)
    checkpoint(tmp_path, 6, best=4)
    damage(tmp_path / "checkpoint-4/model.safetensors", "cut off")
    with pytest.raises(ValueError, match=r"of its best model, checkpoint-4, model.safetensors is corrupt"):
        check_checkpoint(tmp_path / "checkpoint-6")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_folder_that_was_moved_finds_its_best_model(tmp_path):
    checkpoint(tmp_path, 4, best=4)
    checkpoint(tmp_path, 6, best=4)
    damage(tmp_path / "checkpoint-4/model.safetensors", "empty")
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert newest_checkpoint(tmp_path / "moved") is None


def test_all_are_removed_at_the_end(folder):
    damage(folder / "checkpoint-10/optimizer.pt", "empty")
    newest_checkpoint(folder)
    (folder / "checkpoint-notes.txt").write_text("of the user")
    remove_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-notes.txt"]


def test_no_folder_and_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    check_checkpoint(tmp_path / "absent")  # Trainer says so itself
