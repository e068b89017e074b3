"""Pushing to a Hub: what arrives by each strategy, failures provoked one by one, the bar, and no token in any file."""

import copy
import logging
import socket
from concurrent import futures
from io import BytesIO

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import pad, rows, word_tokenizer
from hub_server import TOKEN
from safetensors.torch import load as load_safetensors
from short_runs import arguments
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from hf_tinybert import DistillationArguments, DistillationTrainer
from hf_tinybert.publishing.hub import WAITS, push_folder
from hf_tinybert.training.companions import PROJECTIONS_FILE

STUDENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PUSHED = STUDENT | {".gitattributes", "training_args.bin"}
STEPS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture
def make(tmp_path, student, teacher):
    """Build a trainer that pushes; `trainer_class`, `args` or single arguments can be others."""
    tokenizer = word_tokenizer(tmp_path)

    def make(folder="out", trainer_class=DistillationTrainer, args=None, **changes):
        options = {"teacher_model": teacher} if trainer_class is DistillationTrainer else {}
        own = ("model", "teacher_model", "eval_dataset", "compute_metrics")
        options |= {name: changes.pop(name) for name in own if name in changes}
        return trainer_class(
            args=args or arguments(tmp_path / folder, **{"push_to_hub": True, **changes}),
            **{
                "model": student,
                "train_dataset": rows(8),
                "data_collator": pad,
                "processing_class": tokenizer,
                **options,
            },
        )

    return make


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for, none of them really."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def messages(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda level="WARNING": [r.getMessage() for r in caplog.records if r.levelname == level]


class PushByPush(TrainerCallback):
    """Trainer itself goes on, and writes over the files that it is pushing."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_save(self, *args, **kwargs):
        if self.trainer.push_in_progress is not None:
            futures.wait(self.trainer.push_in_progress.jobs)


def logits(model):
    return model.eval()(**{name: value for name, value in pad(list(rows(4))).items() if name != "labels"}).logits


# ---- What arrives ----


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_strategy_pushes_the_student_and_only_the_student(hub, make, student, tmp_path, strategy):
    trainer = make(hub_strategy=strategy, **STEPS)
    trainer.add_callback(PushByPush(trainer))
    trainer.train()
    trainer.push_to_hub()
    local = {path.name for path in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert {"optimizer.pt", PROJECTIONS_FILE} <= local
    folders = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-1", "checkpoint-2"]}
    files, repo = hub.model("user/out").files(), hub.model("user/out")
    assert set(files) == PUSHED | {f"{at}/{name}" for at in folders.get(strategy, []) for name in local}
    assert set(load_safetensors(files["model.safetensors"])) == set(student.state_dict())
    progress = [message for message in repo.messages if message.startswith("Training in progress")]
    assert bool(progress) == (strategy != "end")
    assert repo.messages[-1] == "End of training"
    torch.testing.assert_close(
        logits(AutoModelForSequenceClassification.from_pretrained("user/out")), logits(student), rtol=0, atol=0
    )
    pulled = AutoTokenizer.from_pretrained("user/out")
    assert pulled("a good film").input_ids == trainer.processing_class("a good film").input_ids


def test_without_a_teacher_it_pushes_what_trainer_pushes(hub, make, tmp_path):
    for trainer_class in (Trainer, DistillationTrainer):
        name = trainer_class.__name__
        same = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8}
        args = TrainingArguments(str(tmp_path / name), push_to_hub=True, hub_strategy="checkpoint", **same, **STEPS)
        trainer = make(
            trainer_class=trainer_class, args=args, **({} if trainer_class is Trainer else {"teacher_model": None})
        )
        trainer.train()
        trainer.push_to_hub()
    plain, ours = hub.model("user/Trainer"), hub.model("user/DistillationTrainer")
    assert set(plain.files()) == set(ours.files())
    assert plain.messages[-1] == ours.messages[-1]
    assert set(plain.messages) == set(ours.messages)
    card = ours.files()["README.md"].decode().replace("DistillationTrainer", "Trainer")
    assert card == plain.files()["README.md"].decode()


def test_organisation_private_and_revision_go_along(hub, make, student):
    huggingface_hub.create_repo("org/small", private=True)
    huggingface_hub.create_branch("org/small", branch="try")
    make(hub_model_id="org/small", hub_revision="try").push_to_hub()
    assert set(hub.model("org/small").files("try")) == PUSHED
    assert set(hub.model("org/small").files()) == {".gitattributes"}
    pulled = AutoModelForSequenceClassification.from_pretrained("org/small", revision="try")
    torch.testing.assert_close(logits(pulled), logits(student), rtol=0, atol=0)
    make(hub_model_id="org/hidden", hub_private_repo=True)
    assert hub.model("org/hidden").private
    with pytest.raises(OSError, match="org/hidden"):
        AutoModelForSequenceClassification.from_pretrained("org/hidden", token=False)


@pytest.mark.parametrize("distils", [True, False])
def test_the_token_is_in_no_file(hub, make, monkeypatch, tmp_path, distils):
    monkeypatch.delenv("HF_TOKEN")
    secret = {"push_to_hub": True, "hub_token": TOKEN, "hub_strategy": "all_checkpoints", **STEPS}
    if distils:
        trainer = make(**secret)
    else:
        args = TrainingArguments(str(tmp_path / "out"), report_to=[], use_cpu=True, disable_tqdm=True, **secret)
        trainer = make(args=args, teacher_model=None)
    trainer.train()
    trainer.push_to_hub()
    local = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    pushed = list(hub.model("user/out").files().values())
    assert min(len(local), len(pushed)) > 15
    assert not any(TOKEN.encode() in data for data in local + pushed)
    plain = BytesIO()
    torch.save(TrainingArguments(str(tmp_path / "plain"), hub_token=TOKEN), plain)
    assert TOKEN.encode() in plain.getvalue()  # so that one would have been found
    assert trainer.args.hub_token == copy.deepcopy(trainer.args).hub_token == TOKEN
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert saved.hub_token is None
    assert saved.hub_strategy == trainer.args.hub_strategy


# ---- Failures that pass ----


@pytest.mark.parametrize(
    "fault",
    [
        ("fail", "POST", "/repos/create", 503),
        ("fail", "POST", "/validate-yaml", 502),
        ("fail", "POST", "/preupload/", 500),
        ("fail", "POST", "/objects/batch", 500),
        ("fail", "PUT", "/lfs/", 500),
        ("fail", "POST", "/commit/", 500),
        ("cut", "PUT", "/lfs/", "inside"),
        ("cut", "POST", "/commit/", "inside"),
        ("cut", "POST", "/commit/", "after"),
        ("cut", "POST", "/repos/create", "after"),
    ],
    ids=lambda fault: f"{fault[0]} {fault[2]} {fault[3]}",
)
def test_what_breaks_once_is_tried_again(hub, make, student, waits, fault):
    kind, method, path, how = fault
    getattr(hub, kind)(method, path, how)
    trainer = make()
    begun = []
    trainer.callback_handler.on_push_begin = lambda *args: begun.append(args)
    trainer.push_to_hub()
    assert len(begun) == 1  # only the upload is done again: saving is a matter of all ranks
    assert hub.faults[0].times == 0
    assert waits == [1]
    assert hub.count("POST", "/commit/") == (2 if path == "/commit/" and how != "after" else 1)
    assert hub.model("user/out").messages == ["initial commit", "End of training"]
    pulled = AutoModelForSequenceClassification.from_pretrained("user/out")
    torch.testing.assert_close(logits(pulled), logits(student), rtol=0, atol=0)


def test_failed_pushes_while_training_are_told_and_the_last_one_carries_all(hub, make, student, messages, waits):
    hub.fail("POST", "/commit/", 500, times=2)
    trainer = make(hub_strategy="every_save", **STEPS)
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


@pytest.mark.parametrize("push_to_hub", [True, False])
@pytest.mark.parametrize(("path", "attempts", "waited"), [("/commit/", 4, 3), ("/preupload/", 6, 5)])
def test_a_hub_that_stays_down_costs_only_the_push(
    hub, make, student, waits, tmp_path, path, attempts, waited, push_to_hub
):
    trainer = make("my out", push_to_hub=push_to_hub, hub_model_id="user/out")
    hub.fail("POST", path, 500, times=float("inf"))
    folder = tmp_path / "my out"
    with pytest.raises(RuntimeError) as raised:
        trainer.push_to_hub()
    command = f"hf-tinybert push '{folder}' --to user/out"
    assert str(raised.value) == (
        f"Could not push to 'user/out': the Hub answered 500, try again later. "
        f"The student is in {folder}; push it later with: {command}"
    )
    assert raised.value.__cause__ is not None
    assert hub.count("POST", path) == attempts
    assert len(waits) == waited
    assert path != "/commit/" or waits == list(WAITS)
    saved = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(saved), logits(student), rtol=0, atol=0)
    hub.faults.clear()
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").touch()
    assert push_folder(folder, "user/out").oid == hub.model("user/out").branches["main"]
    assert set(hub.model("user/out").files()) == PUSHED


def test_the_student_is_saved_before_its_repository_is_asked_for(hub, make, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = make(push_to_hub=False)
    with pytest.raises(RuntimeError, match=r"token is missing or wrong.*The student is in .*out; push it later"):
        trainer.push_to_hub()
    assert (tmp_path / "out" / "model.safetensors").exists()


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (
            "no token",
            r"answered 401, the token is missing or wrong: run `hf auth login`, or set hub_token or HF_TOKEN\.",
        ),
        ("wrong token", r"answered 401, the token is missing or wrong: run `hf auth login`, .*"),
        ("not mine", r"answered 403, the token may not write there: use one that may, or another hub_model_id\."),
        ("no network", r"no connection to http://127.0.0.1:\d+ \(.+\): check the network and HF_ENDPOINT\."),
        ("offline", r"HF_HUB_OFFLINE is set: unset it to push\."),
        ("no branch", r"answered 404, Invalid rev id: missing\."),
    ],
)
def test_trouble_is_told_before_training(hub, make, waits, monkeypatch, trouble, says):
    changes = {"not mine": {"hub_model_id": "others/out"}, "no branch": {"hub_revision": "missing"}}.get(trouble, {})
    if trouble == "no token":
        monkeypatch.delenv("HF_TOKEN")
    if trouble == "wrong token":
        changes = {"hub_token": "hf_other"}
    if trouble == "no network":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed_port())
    if trouble == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=rf"^Cannot push to the Hub: .*{says}$") as raised:
        make(**changes)
    assert raised.value.__cause__ is not None
    assert "\n" not in str(raised.value)
    assert waits == (list(WAITS) if trouble == "no network" else [])
    if trouble == "no network":  # the same for a folder
        with pytest.raises(ValueError, match=r"no config\.json"):
            push_folder("tests", "user/x")


# ---- The bar ----


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def barred(make, teacher):
    """Trainers with a bar; the teacher is always right on the validation rows."""
    data = rows(32, seed=1)
    labels = [logits_of(teacher, row).argmax().item() for row in data]
    options = {"eval_dataset": data.remove_columns("labels").add_column("labels", labels)}
    options |= {"compute_metrics": accuracy, "metric_for_best_model": "accuracy", "push_to_hub_min_retained": 0.9}
    return lambda **changes: make(**{**options, **changes})


def logits_of(model, row):
    return model(torch.tensor([row["input_ids"]])).logits[0]


@pytest.mark.parametrize("metric", ["accuracy", "eval_accuracy", "loss"])
def test_a_student_under_the_bar_stays_on_disk(hub, barred, student, teacher, tmp_path, metric):
    trainer = barred(metric_for_best_model=metric)
    data, labels = trainer.eval_dataset, torch.tensor(trainer.eval_dataset["labels"])
    name = metric.removeprefix("eval_")
    scores = []
    for model in (student, teacher):
        found = torch.stack([logits_of(model.eval(), row) for row in data])
        loss = torch.nn.functional.cross_entropy(found, labels).item()
        scores.append(loss if name == "loss" else (found.argmax(-1) == labels).float().mean().item())
    assert trainer.teacher_score == pytest.approx(scores[1], rel=1e-4)
    share = scores[1] / scores[0] if name == "loss" else scores[0] / scores[1]
    with pytest.raises(ValueError, match="It is not pushed") as raised:
        trainer.push_to_hub()
    assert str(raised.value) == (
        f"The student's eval_{name} is {scores[0]:.4g} and the teacher's {scores[1]:.4g}: {share:.1%} retained, under "
        f"push_to_hub_min_retained=0.9. It is not pushed; it is in {tmp_path / 'out'}."
    )
    assert hub.model("user/out").messages == ["initial commit"]
    assert hub.count("POST", "/repos/create") == 1
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(saved), logits(student), rtol=0, atol=0)
    barred(metric_for_best_model=metric, push_to_hub_min_retained=share - 1e-3).push_to_hub()
    assert hub.model("user/out").messages[-1] == "End of training"


def test_pushes_begin_when_the_newest_evaluation_reaches_the_bar(hub, barred, messages):
    scores = iter([0.8, 0.5, 0.71, 0.73, 0.73])  # teacher, three evaluations, the one before the last push
    trainer = barred(
        compute_metrics=lambda prediction: {"accuracy": next(scores)},
        eval_strategy="steps",
        eval_steps=1,
        hub_strategy="every_save",
        **{**STEPS, "max_steps": 3},
    )
    trainer.add_callback(PushByPush(trainer))
    trainer.train()
    skipped = [message for message in messages("INFO") if message.endswith("This checkpoint is not pushed.")]
    assert len(skipped) == 2
    assert skipped[0].startswith("The student's eval_accuracy is 0.5 and the teacher's 0.8: 62.5% retained")
    assert hub.model("user/out").messages == ["initial commit", "Training in progress, step 3"]
    trainer.push_to_hub()
    assert hub.model("user/out").messages[-1] == "End of training"


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_bar_is_the_best_of_several_teachers(barred, teacher, metric):
    right, worse = copy.deepcopy(teacher), copy.deepcopy(teacher)
    with torch.no_grad():
        worse.classifier.weight.zero_()  # the same answer for every row
    options = {"push_to_hub": False, "metric_for_best_model": metric}
    alone, below = (barred(teacher_model=copy.deepcopy(each), **options).teacher_score for each in (right, worse))
    assert (alone > below) == (metric == "accuracy")
    for several in ([right, worse], [worse, right]):
        assert barred(teacher_model=several, **options).teacher_score == pytest.approx(alone)


@pytest.mark.parametrize("bf16", [False, True])
def test_measuring_the_teacher_changes_nothing_else(hub, barred, teacher, student, bf16):
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    before, runs = logits(teacher), []
    for bar in (None, 0.9):
        models = {"model": copy.deepcopy(student), "teacher_model": copy.deepcopy(teacher)}
        trainer = barred(**models, push_to_hub_min_retained=bar, push_to_hub=False, bf16=bf16, max_steps=2)
        assert (trainer.teacher_score is None) == (bar is None)
        torch.testing.assert_close(
            logits(trainer.teacher_models[0]), before, rtol=0, atol=0
        )  # no autocast stays around it
        trainer.train()
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher_model": None}, "pass teacher_model too"),
        ({"eval_dataset": None}, "pass eval_dataset too"),
        ({"compute_metrics": None}, "pass compute_metrics too"),
        ({"metric_for_best_model": None}, "needs metric_for_best_model"),
        ({"metric_for_best_model": "f1"}, "'f1' is None for the teacher.*teacher_accuracy"),
        ({"compute_metrics": lambda prediction: {"accuracy": 0.0}}, "is 0.0 for the teacher"),
        ({"push_to_hub_min_retained": 0.0}, "above 0, e.g. 0.95"),
    ],
)
def test_a_bar_that_cannot_be_measured_is_refused(hub, barred, changes, says):
    with pytest.raises(ValueError, match=says):
        barred(**changes)


def test_no_score_is_no_number_above_the_bar(hub, barred):
    scores = iter([0.8, np.nan])
    trainer = barred(compute_metrics=lambda prediction: {"accuracy": next(scores)})
    with pytest.raises(ValueError, match="nan"):
        trainer.push_to_hub()
    assert isinstance(trainer.args, DistillationArguments)
