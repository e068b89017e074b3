"""Pushing to a Hub: what arrives by each strategy, failures provoked one by one, and no token in any file."""

# ruff: noqa: F401, F811 (pytest finds the fixtures of pushing.py by their names)

import copy
import socket
from io import BytesIO

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN
from pushing import PUSHED, STEPS, PushByPush, logits, make_trainer, messages
from safetensors.torch import load as load_safetensors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hf_tinybert import DistillationTrainer, push_folder
from hf_tinybert.publishing.hub import WAITS
from hf_tinybert.training.companions import PROJECTIONS_FILE


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited for; the test does not wait."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def assert_same_logits(model, expected):
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=0)


# ---- What arrives ----


@pytest.mark.parametrize("strategy", ["every_save", "all_checkpoints"])
def test_every_strategy_pushes_the_student_and_only_the_student(hub, make_trainer, student, tmp_path, strategy):
    trainer = make_trainer(hub_strategy=strategy, **STEPS)
    trainer.add_callback(PushByPush(trainer))
    trainer.train()
    trainer.push_to_hub()
    local = {path.name for path in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert {"optimizer.pt", PROJECTIONS_FILE} <= local
    folders = ["checkpoint-1", "checkpoint-2"] if strategy == "all_checkpoints" else []
    files, repo = hub.model("user/out").files(), hub.model("user/out")
    assert set(files) == PUSHED | {f"{folder}/{name}" for folder in folders for name in local}
    assert set(load_safetensors(files["model.safetensors"])) == set(student.state_dict())
    assert repo.messages[1].startswith("Training in progress")
    assert repo.messages[-1] == "End of training"
    assert_same_logits(AutoModelForSequenceClassification.from_pretrained("user/out"), student)
    pulled = AutoTokenizer.from_pretrained("user/out")
    assert pulled("a good film").input_ids == trainer.processing_class("a good film").input_ids


def test_without_a_teacher_it_pushes_what_trainer_pushes_without_the_token(hub, make_trainer, tmp_path):
    for trainer_class in (Trainer, DistillationTrainer):
        args = TrainingArguments(
            str(tmp_path / trainer_class.__name__),
            push_to_hub=True,
            hub_token=TOKEN,
            hub_strategy="checkpoint",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            per_device_train_batch_size=8,
            **STEPS,
        )
        without_teacher = {} if trainer_class is Trainer else {"teacher_model": None}
        trainer = make_trainer(trainer_class=trainer_class, trainer_arguments={"args": args, **without_teacher})
        trainer.train()
        trainer.push_to_hub()
    plain, distilling = hub.model("user/Trainer"), hub.model("user/DistillationTrainer")
    assert set(plain.files()) == set(distilling.files())
    assert plain.messages[-1] == distilling.messages[-1]
    assert set(plain.messages) == set(distilling.messages)
    card = distilling.files()["README.md"].decode().replace("DistillationTrainer", "Trainer")
    assert card == plain.files()["README.md"].decode()
    assert any(TOKEN.encode() in data for data in plain.files().values())  # so that the next line can fail
    assert not any(TOKEN.encode() in data for data in distilling.files().values())


def test_organisation_private_and_revision_are_passed_on(hub, make_trainer, student):
    huggingface_hub.create_repo("org/small", private=True)
    huggingface_hub.create_branch("org/small", branch="try")
    make_trainer(hub_model_id="org/small", hub_revision="try").push_to_hub()
    assert set(hub.model("org/small").files("try")) == PUSHED
    assert set(hub.model("org/small").files()) == {".gitattributes"}
    assert_same_logits(AutoModelForSequenceClassification.from_pretrained("org/small", revision="try"), student)
    make_trainer(hub_model_id="org/hidden", hub_private_repo=True)
    assert hub.model("org/hidden").private
    with pytest.raises(OSError, match="org/hidden"):
        AutoModelForSequenceClassification.from_pretrained("org/hidden", token=False)


def test_the_token_is_in_no_file(hub, make_trainer, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    trainer = make_trainer(hub_token=TOKEN, hub_strategy="all_checkpoints", **STEPS)
    trainer.train()
    trainer.push_to_hub()
    local = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    pushed = list(hub.model("user/out").files().values())
    assert min(len(local), len(pushed)) > 15
    assert not any(TOKEN.encode() in data for data in local + pushed)
    plain = BytesIO()
    torch.save(TrainingArguments(str(tmp_path / "plain"), hub_token=TOKEN), plain)
    assert TOKEN.encode() in plain.getvalue()  # so that the search above can find one
    assert trainer.args.hub_token == copy.deepcopy(trainer.args).hub_token == TOKEN
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert saved.hub_token is None
    assert saved.hub_strategy == trainer.args.hub_strategy


# ---- Failures that pass ----


@pytest.mark.parametrize(
    ("kind", "method", "path", "how"),
    [
        ("fail", "POST", "/repos/create", 503),
        ("fail", "POST", "/validate-yaml", 502),
        ("fail", "POST", "/preupload/", 500),
        ("fail", "POST", "/commit/", 500),
        ("cut", "PUT", "/lfs/", "inside"),
        ("cut", "POST", "/commit/", "inside"),
        ("cut", "POST", "/commit/", "after"),
        ("cut", "POST", "/repos/create", "after"),
    ],
)
def test_what_breaks_once_is_tried_again(hub, make_trainer, student, waits, kind, method, path, how):
    getattr(hub, kind)(method, path, how)
    trainer = make_trainer()
    begun = []
    trainer.callback_handler.on_push_begin = lambda *args: begun.append(args)
    trainer.push_to_hub()
    assert len(begun) == 1  # only the upload is repeated, because all ranks take part in saving
    assert hub.faults[0].times == 0
    assert waits == [1]
    assert hub.count("POST", "/commit/") == (2 if path == "/commit/" and how != "after" else 1)
    assert hub.model("user/out").messages == ["initial commit", "End of training"]
    assert_same_logits(AutoModelForSequenceClassification.from_pretrained("user/out"), student)


def test_failed_pushes_while_training_are_warnings_and_the_last_one_pushes_everything(
    hub, make_trainer, student, messages, waits
):
    hub.fail("POST", "/commit/", 500, times=2)
    trainer = make_trainer(hub_strategy="every_save", **STEPS)
    trainer.add_callback(PushByPush(trainer))
    trainer.train()
    warned = [message for message in messages() if "A push to 'user/out' failed: the Hub answered 500" in message]
    assert len(warned) == 2
    assert all("\n" not in message for message in warned)
    assert trainer.state.global_step == 2
    assert hub.model("user/out").messages == ["initial commit"]
    trainer.push_to_hub()
    assert set(hub.model("user/out").files()) == PUSHED
    assert not waits


# ---- Failures that stay ----


@pytest.mark.parametrize(
    ("path", "attempts", "waited", "push_to_hub"), [("/commit/", 4, 3, True), ("/preupload/", 6, 5, False)]
)
def test_a_hub_that_stays_down_costs_only_the_push(
    hub, make_trainer, student, waits, tmp_path, path, attempts, waited, push_to_hub
):
    asked = {} if push_to_hub else {"hub_private_repo": True, "hub_revision": "main"}
    trainer = make_trainer("my out", push_to_hub=push_to_hub, hub_model_id="user/out", **asked)
    hub.fail("POST", path, 500, times=float("inf"))
    folder = tmp_path / "my out"
    with pytest.raises(RuntimeError) as raised:
        trainer.push_to_hub()
    command = f"hf-tinybert push '{folder}' --to user/out" + " --private --revision main" * bool(asked)
    assert str(raised.value) == (
        f"Could not push to 'user/out': the Hub answered 500, try again later. "
        f"The student is in {folder}; push it later with: {command}"
    )
    assert raised.value.__cause__ is not None
    assert hub.count("POST", path) == attempts
    assert len(waits) == waited
    assert path != "/commit/" or waits == list(WAITS)
    assert_same_logits(AutoModelForSequenceClassification.from_pretrained(folder), student)
    hub.faults.clear()
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").touch()
    assert push_folder(folder, "user/out").oid == hub.model("user/out").branches["main"]
    assert set(hub.model("user/out").files()) == PUSHED


def test_the_student_is_saved_before_its_repository_is_created(hub, make_trainer, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = make_trainer(push_to_hub=False)
    with pytest.raises(RuntimeError, match=r"token is missing or wrong.*The student is in .*out; push it later"):
        trainer.push_to_hub()
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_without_a_model_is_not_pushed(hub, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        push_folder(tmp_path, "user/x")
    assert not hub.requests


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            "wrong token",
            r"answered 401, the token is missing or wrong: run `hf auth login`, or set hub_token or HF_TOKEN\.",
        ),
        ("not mine", r"answered 403, the token may not write there: use one that may, or another hub_model_id\."),
        ("no network", r"no connection to http://127.0.0.1:\d+ \(.+\): check the network and HF_ENDPOINT\."),
        ("offline", r"HF_HUB_OFFLINE is set: unset it to push\."),
        ("no branch", r"answered 404, Invalid rev id: missing\."),
    ],
)
def test_the_constructor_says_why_it_could_not_push(hub, make_trainer, waits, monkeypatch, trouble, message):
    changes = {
        "wrong token": {"hub_token": "hf_other"},
        "not mine": {"hub_model_id": "others/out"},
        "no branch": {"hub_revision": "missing"},
    }
    if trouble == "no network":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed_port())
    if trouble == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=rf"^Cannot push to the Hub: .*{message}$") as raised:
        make_trainer(**changes.get(trouble, {}))
    assert raised.value.__cause__ is not None
    assert "\n" not in str(raised.value)
    assert waits == (list(WAITS) if trouble == "no network" else [])
