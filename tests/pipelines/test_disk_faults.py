"""Runs on disks that are full or read-only, and with files that are corrupt: one sentence, and nothing is lost."""

import json
import shutil
from functools import partial
from pathlib import Path

import datasets
import pytest
from conftest import bert_config, build, pad, rows, word_tokenizer
from disk_damage import become_nobody, damage, in_child, limit_files, open_to_all, small_disk
from short_runs import QUICK, SIZE
from toy_runs import assert_same_weights, base, killed_at_step, save_classifier, save_encoder, sentences, texts  # noqa: F401
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from hf_tinybert import GLUE, MaskedWords, general_distillation, task_distillation
from hf_tinybert.activations import Activations
from hf_tinybert.pipelines.runs import claim
from hf_tinybert.teachers.activation_cache import cache_activations
from hf_tinybert.whole_files import DiskError

STEPS = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps", "save_total_limit": 3}
ONE_PHASE = {"student": SIZE, "init": "random", "augmentation": None, "labels": {"num_train_epochs": 0}}


def run(folder: Path, out: str | Path = "out", **arguments):
    """A run of one phase with checkpoints in between."""
    arguments = ONE_PHASE | STEPS | QUICK | {"num_train_epochs": 3} | arguments
    return task_distillation(GLUE["sst2"], sentences(folder), str(folder / "base"), folder / out, **arguments)


def student(folder: Path, out: str | Path = "out"):
    return AutoModelForSequenceClassification.from_pretrained(folder / out / "student")


def as_nobody(folder: Path) -> None:
    """Go on as a user whom permissions bind, with a cache of its own in `folder`."""
    become_nobody()
    datasets.config.HF_DATASETS_CACHE = folder / "cache of nobody"


def variants(folder: Path) -> MaskedWords:
    tokenizer = word_tokenizer(folder)
    masked_lm = build(BertForMaskedLM, bert_config(1, 16, vocab_size=len(tokenizer)))
    return MaskedWords(masked_lm, tokenizer, copies=1, batch_tokens=64)


@pytest.fixture
def classifier(base, tmp_path):  # noqa: F811
    save_classifier(base)
    return tmp_path


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed with the checkpoints 2, 4 and 6 in "out", and the same run left alone in "whole"."""
    folder = tmp_path_factory.mktemp("killed")
    save_encoder(folder)
    save_classifier(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        killed_at_step(partial(run, folder), "student", 7)
        run(folder, "whole")
        yield folder


# ---- Corrupt files ----


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(6,), (2, 4, 6)])
def test_corrupt_checkpoints_change_nothing_in_the_end(killed, steps, caplog):
    """From the checkpoint before, or from the first step; what was set aside is gone at the end."""
    out = f"corrupt {len(steps)}"
    shutil.copytree(killed / "out", killed / out)
    for step in steps:
        damage(killed / out / f"student/checkpoint-{step}/model.safetensors", "cut off")
    run(killed, out)
    assert_same_weights(student(killed, out), student(killed, "whole"))
    assert not list((killed / out).rglob("*checkpoint-*"))
    end = "starts again from its first step." if len(steps) > 1 else "goes on from checkpoint-4."
    assert [record.getMessage() for record in caplog.records][len(steps) - 1].endswith(end)


@pytest.mark.slow
def test_a_checkpoint_without_permission_is_not_corrupt(killed):
    out = killed / "no permission"
    shutil.copytree(killed / "out", out)
    open_to_all(killed)
    path = out / "student/checkpoint-6/optimizer.pt"
    path.chmod(0)
    message = in_child(partial(run, killed, out.name), partial(as_nobody, killed))
    assert message.startswith(f"DiskError: Cannot read {path}: permission is denied. Change its permissions")
    path.chmod(0o666)
    run(killed, out.name)
    assert_same_weights(student(killed, out.name), student(killed, "whole"))


@pytest.mark.slow
def test_corrupt_records_and_models_of_a_finished_run(killed, caplog):
    out = killed / "finished"
    first = run(killed, "finished")
    damage(out / "results.json", "cut off")
    assert run(killed, "finished")["student"] == first["student"]  # measured again, and not trained again
    assert "results.json is corrupt" in caplog.text
    assert json.loads((out / "results.json").read_text())["student"] == first["student"]

    (out / "results.json").unlink()
    for name, how in (("student_last", "cut off"), ("student", "empty")):
        whole = (out / name / "model.safetensors").read_bytes()
        damage(out / name / "model.safetensors", how)
        with pytest.raises(ValueError, match=rf"In .*{name}, .*, model.safetensors is corrupt .*: put the file back"):
            run(killed, "finished")
        (out / name / "model.safetensors").write_bytes(whole)
    damage(out / "student/trainer_state.json", "cut off")
    with pytest.raises(ValueError, match=r"student/trainer_state.json is corrupt .*: put the file back, or remove"):
        run(killed, "finished")


@pytest.mark.parametrize("how", ["cut off", "empty", "garbage"])
def test_corrupt_settings(tmp_path, how):
    claim(tmp_path, {"teacher": "a"})
    damage(tmp_path / "settings.json", how)
    with pytest.raises(ValueError, match=r"settings.json is corrupt .*: remove it if the run had these settings, or"):
        claim(tmp_path, {"teacher": "a"})


@pytest.mark.slow
def test_a_corrupt_cache_is_made_again(classifier, caplog):
    """Of tokens, variants, logits and activations: the same student, and a warning that names the file."""
    arguments = {"augmentation": variants(classifier), "intermediate": {}}
    run(classifier, "whole", **arguments)
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    files, (records,) = [*cache.rglob("cache-*.arrow")], list(cache.rglob("records.bf16"))
    assert len(files) >= 4
    for index, path in enumerate(files):
        damage(path, ["cut off", "empty", "garbage"][index % 3])
    damage(records, "cut off")
    run(classifier, "again", **arguments)
    assert_same_weights(student(classifier, "again"), student(classifier, "whole"))
    assert all(f"{path} is corrupt" in caplog.text for path in files)
    assert f"{records.parent} are corrupt" in caplog.text


@pytest.mark.parametrize("name", ["layout.json", "offsets.npy", "records.bf16"])
@pytest.mark.parametrize("how", ["cut off", "empty"])
def test_each_file_of_the_activation_cache(name, how, caplog):
    make = partial(cache_activations, token_states, rows(10), pad, "key", 1.0)
    make()
    (folder,) = Path(datasets.config.HF_DATASETS_CACHE, "teacher_activations").iterdir()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / name, how)
    make()
    assert "are corrupt" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def token_states(inputs) -> Activations:
    states = inputs["input_ids"][..., None].float().expand(-1, -1, 1000)
    return Activations(inputs["attention_mask"], None, (states,), {}, (None,))


def test_without_room_for_the_activation_cache_the_teacher_runs_live(tmp_path):
    def make():
        assert cache_activations(token_states, rows(10), pad, "key", 1.0) is None
        assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("records.bf16"))

    assert in_child(make, partial(limit_files, 10_000)) == ""
    datasets.config.HF_DATASETS_CACHE = tmp_path / "closed"
    (tmp_path / "closed").mkdir()
    open_to_all(tmp_path)
    (tmp_path / "closed").chmod(0o555)
    assert in_child(make, become_nobody) == ""


# ---- Disks that are full or may not be written to ----


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(killed):
    """Once there is room, the same call goes on from the last whole checkpoint to the same student."""
    with small_disk(killed / "small", "250k") as mounted:
        prepare = (lambda: None) if mounted else partial(limit_files, 45_000)
        message = in_child(partial(run, killed, "small/out"), prepare)
        assert message.startswith("DiskError: Cannot write to ")
        assert message.endswith("remain: the same call continues.")
        place = killed / "small/out"
        assert [path.name for path in place.glob("student/checkpoint-*")] or not mounted
        if mounted:  # a larger disk
            shutil.copytree(place, killed / "larger")
    out = "larger" if mounted else "small/out"
    run(killed, out)
    assert_same_weights(student(killed, out), student(killed, "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["out", "out/student", "new"])
def test_a_folder_that_may_not_be_written_to(killed, closed, tmp_path):
    """It is named before anything is trained."""
    folder = tmp_path / "copy"
    for name in ("base", "sst2", "out"):
        shutil.copytree(killed / name, folder / name)
    settings = (folder / "out/settings.json").read_text().replace(str(killed), str(folder))
    (folder / "out/settings.json").write_text(settings)
    (folder / "new").mkdir()
    open_to_all(folder)
    (folder / closed).chmod(0o555)
    out = "new/run" if closed == "new" else "out"
    message = in_child(partial(run, folder, out), partial(as_nobody, folder))
    assert message.startswith(f"DiskError: Cannot write to {folder / closed}: permission is denied. Change its perm")


@pytest.mark.slow
def test_a_file_in_the_place_of_the_folder(classifier):
    (classifier / "out").write_text("")
    with pytest.raises(DiskError, match=r"out: a file is in its place\. Choose another folder, or move the file\."):
        run(classifier)
    with pytest.raises(DiskError, match=r"out: a file is in its place\. Choose another folder, or move the file\."):
        general_distillation(texts(), str(classifier / "base"), classifier / "out", student=SIZE, **QUICK)


@pytest.mark.slow
def test_a_finished_run_is_read_where_nothing_may_be_written(killed):
    results = run(killed, "whole")
    open_to_all(killed)
    (killed / "whole").chmod(0o555)

    def read():
        assert run(killed, "whole") == results

    assert in_child(read, partial(as_nobody, killed)) == ""


@pytest.mark.slow
def test_a_full_cache_disk_is_named(classifier):
    with small_disk(classifier / "small", "60k") as mounted:
        if not mounted:
            pytest.skip("mounting takes root")

        def with_small_cache():
            datasets.config.HF_DATASETS_CACHE = classifier / "small"
            data = sentences(classifier)
            (classifier / "small/ballast").write_bytes(b"x" * 100)
            fill(classifier / "small/ballast")
            task_distillation(GLUE["sst2"], data, str(classifier / "base"), classifier / "out", **ONE_PHASE, **QUICK)

        message = in_child(with_small_cache)
        assert message.startswith(f"DiskError: Cannot write to {classifier}/small")
        assert "the disk is full. Free space there" in message


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 1024):
                pass
        except OSError:
            return
