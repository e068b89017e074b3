import copy
import json
import re
from dataclasses import dataclass

import pytest
from conftest import bert_config, build, pad, rows, word_tokenizer
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from short_runs import arguments, distil
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainerCallback,
)

from hf_tinybert import DistillationTrainer, HiddenLoss, create_student
from hf_tinybert.lineage import describe_data, finetuned_from, fingerprint, hub_ids
from hf_tinybert.publishing.model_card import extend_card

TEACHER, COMMIT = "org/big-teacher", "0123456789abcdef0123456789abcdef01234567"
INTERMEDIATE = {"loss_type": ["attention", "hidden", "embedding"], "loss_weights": [1.0, 0.5, 2.0]}


@pytest.fixture
def hub_teacher(teacher, monkeypatch):
    """As if it had been pulled from the Hub."""
    monkeypatch.setattr("transformers.modelcard.is_offline_mode", lambda: True)
    teacher.config._name_or_path, teacher.config._commit_hash = TEACHER, COMMIT
    return teacher


def cut(teacher, **changes):
    size = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
    return create_student(teacher, **size | {"calibration_dataset": rows(40)} | changes)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def stages(model) -> list[dict]:
    return model.config.distillation["stages"]


# ---- Lineage ----


@pytest.fixture
def two_steps(hub_teacher, tmp_path):
    """Trainer of the second step; the student was saved and loaded between the steps."""
    distil(tmp_path / "1", student := cut(hub_teacher), hub_teacher, train_dataset=rows(8), **INTERMEDIATE)
    student.save_pretrained(tmp_path / "between")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "between")
    args = arguments(tmp_path / "student", loss_type=["prediction"], temperature=2.0, learning_rate=3e-5, seed=7)
    trainer = DistillationTrainer(
        student,
        args,
        pad,
        rows(12),
        rows(8, seed=1),
        word_tokenizer(tmp_path),
        compute_metrics=accuracy,
        teacher_model=hub_teacher,
    )
    trainer.data_name, trainer.augmentation = "sst2", {"copies": 20, "p": 0.4}
    trainer.train()
    trainer.save_model()
    return trainer


def test_lineage_survives_both_steps(two_steps, tmp_path):
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    lineage = loaded.config.distillation
    assert lineage == json.loads((tmp_path / "student/config.json").read_text())["distillation"]
    start = {"teacher": TEACHER, "teacher_revision": COMMIT, "init": "teacher", "layers": [2, 4], "sample": 40}
    assert {name: lineage[name] for name in start} == start
    first, second = lineage["stages"]
    assert first["losses"] == {"attention": 1.0, "hidden": 0.5, "embedding": 2.0}
    assert first["layer_mapping"] == [[0, 0], [1, 2], [2, 4]]
    assert "temperature" not in first
    assert second == {
        "losses": {"prediction": 1.0},
        "layer_mapping": [],
        "teacher": TEACHER,
        "teacher_revision": COMMIT,
        "temperature": 2.0,
        "data": {"name": "sst2", "config": None, "split": None, "rows": 12, "fingerprint": fingerprint(rows(12))},
        "augmentation": {"copies": 20, "p": 0.4},
        "max_steps": 1,
        "learning_rate": 3e-5,
        "batch_size": 8,
        "seed": 7,
        "precision": "fp32",
    }


def test_an_exception_takes_the_stage_back(teacher, student, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    for model in (cut(teacher), student):
        before = copy.deepcopy(model.config.to_dict())
        with pytest.raises(KeyboardInterrupt):
            distil(tmp_path, model, teacher, callbacks=[Stop()])
        assert model.config.to_dict() == before | {"use_cache": False}  # Trainer's doing


@pytest.mark.parametrize("from_checkpoint", [False, True], ids=["student made anew", "student of the checkpoint"])
def test_resume_has_one_entry(teacher, tmp_path, from_checkpoint):
    settings = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, **INTERMEDIATE}
    distil(tmp_path, cut(teacher), teacher, max_steps=1, **settings)
    checkpoint = tmp_path / "checkpoint-1"
    # the pipelines start anew from random weights where a checkpoint has the weights
    student = cut(teacher, init="random")
    if from_checkpoint:
        student = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    args = arguments(tmp_path, max_steps=2, **settings)
    trainer = DistillationTrainer(student, args, pad, rows(8), teacher_model=teacher)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert [stage["max_steps"] for stage in stages(student)] == [2]
    assert student.config.distillation["init"] == "teacher"


def test_checkpoints_carry_it(teacher, tmp_path):
    distil(tmp_path, cut(teacher), teacher, save_strategy="steps", save_steps=1)
    assert len(json.loads((tmp_path / "checkpoint-1/config.json").read_text())["distillation"]["stages"]) == 1


def test_training_twice_has_two_entries(teacher, student, tmp_path):
    trainer, _, _ = distil(tmp_path, student, teacher)
    trainer.train()
    assert len(stages(student)) == 2


def test_model_init(teacher, tmp_path):
    trainer = DistillationTrainer(
        None, arguments(tmp_path), pad, rows(8), model_init=lambda: cut(teacher, init="random"), teacher_model=teacher
    )
    for _ in range(2):  # each begins with a student of its own
        trainer.train()
        assert len(stages(trainer.model)) == 1
    assert trainer.model.config.distillation["layers"] is None


def test_a_teacher_that_is_a_student_keeps_its_lineage_to_itself(teacher, tmp_path):
    assistant = cut(teacher, num_hidden_layers=3, hidden_size=32, intermediate_size=64)
    distil(tmp_path, assistant, teacher)
    assistant.save_pretrained(tmp_path / "assistant")
    assistant = AutoModelForSequenceClassification.from_pretrained(tmp_path / "assistant")
    student = cut(assistant, num_hidden_layers=1)
    assert student.config.distillation == {
        "teacher": "./assistant",
        "teacher_revision": None,
        "init": "teacher",
        "layers": [3],
        "sample": 40,
        "stages": [],
    }
    assert len(stages(assistant)) == 1


@pytest.mark.parametrize("has_lineage", [False, True])
def test_without_a_teacher_config_and_card_are_trainers_own(teacher, tmp_path, has_lineage):
    cards, configs = [], []
    for trainer_class in (Trainer, DistillationTrainer):
        student = cut(teacher) if has_lineage else build(BertForSequenceClassification, bert_config(2, 16))
        trainer = trainer_class(student, arguments(tmp_path / "run"), pad, rows(8), rows(8))
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        cards.append((tmp_path / "run/README.md").read_text())
        configs.append((tmp_path / "run/config.json").read_text())
        (tmp_path / "run/README.md").unlink()
    assert cards[0] == cards[1]
    assert configs[0] == configs[1]
    assert ("distillation" in configs[0]) == has_lineage


def test_batch_size_is_the_one_that_fitted(teacher, student, tmp_path):
    class OutOfMemory(TrainerCallback):
        attempts = 0

        def on_step_begin(self, args, state, control, **kwargs):
            self.attempts += 1
            if self.attempts == 1:
                raise RuntimeError("CUDA out of memory.")

    options = {"auto_find_batch_size": True, "gradient_accumulation_steps": 3}
    trainer, _, _ = distil(tmp_path, student, teacher, callbacks=[OutOfMemory()], **options)
    assert trainer._train_batch_size < 8
    assert [stage["batch_size"] for stage in stages(student)] == [3 * trainer._train_batch_size]


def test_fingerprint_is_of_the_rows_alone():
    data = rows(16)
    same = fingerprint(data)
    columns = {name: data[name][:] for name in data.column_names}
    assert fingerprint(Dataset.from_dict(columns)) == same
    assert fingerprint(data.add_column("teacher_logits", [[0.0]] * 16)) == same
    assert fingerprint(rows(32).select(range(32)).shard(1, 0)) == fingerprint(rows(32))
    assert fingerprint(data.select(range(4, 16)).select(range(2))) == fingerprint(data.select([4, 5]))
    moved = copy.deepcopy(columns["input_ids"])
    moved[0], moved[1] = moved[0] + moved[1][:1], moved[1][1:]  # the same tokens, cut elsewhere
    others = [
        data.select(range(15)),
        data.select([1, 0, *range(2, 16)]),
        Dataset.from_dict({**columns, "labels": [*columns["labels"][:-1], 9]}),
        Dataset.from_dict({**columns, "input_ids": moved}),
    ]
    assert len({same, *map(fingerprint, others)}) == 5
    assert fingerprint(data.rename_column("input_ids", "ids")) is None


def test_description_of_data_without_rows():
    assert describe_data(None)["rows"] is None
    stream = describe_data(rows(4).to_iterable_dataset(), "tweets")
    assert stream["name"] == "tweets"
    assert stream["rows"] is stream["fingerprint"] is None


# ---- The card ----


@dataclass
class Report:
    summary: dict

    def to_markdown(self) -> str:
        return "| model | accuracy |\n| --- | --- |\n| student | 0.75 |\n"


@pytest.fixture
def card(two_steps, tmp_path):
    two_steps.evaluate()
    two_steps.create_model_card(model_name="tiny")
    return ModelCard.load(tmp_path / "student/README.md")


def test_metadata_is_the_hubs(card, two_steps):
    data = card.data
    assert (data.base_model, data["base_model_relation"]) == (TEACHER, "finetune")
    assert data.tags == ["hf_tinybert", "tinybert", "knowledge-distillation", "generated_from_trainer"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_name, result.metric_type) == ("text-classification", "sst2", "accuracy")
    assert result.metric_value == two_steps.state.log_history[-1]["eval_accuracy"]
    again = ModelCard(str(card))
    assert str(again) == str(card)
    assert again.data.to_dict() == data.to_dict()
    assert ModelCardData(**data.to_dict()).eval_results == data.eval_results


def test_text_tells_the_whole_lineage(card, two_steps, tmp_path):
    first, second = stages(two_steps.model)
    told = [TEACHER, COMMIT, "layers 2, 4", "40 rows", "2 layers, 16 wide, feed-forward 32, 4 heads"]
    told += [f"{two_steps.model.num_parameters():,} parameters", "attention (1), embedding (2), hidden (0.5)"]
    told += ["0 ← 0, 1 ← 2, 2 ← 4", "prediction (1)", first["data"]["fingerprint"], second["data"]["fingerprint"]]
    told += ["| rows | 8 | 12 |", "| temperature | – | 2.0 |", "| learning rate | 0.1 | 3e-05 |", "| seed | 42 | 7 |"]
    told += ["| batch size | 8 | 8 |", "| steps | 1 | 1 |", "| precision | fp32 | fp32 |", "copies 20, p 0.4"]
    told += ["1909.10351", "### Training hyperparameters", "lr_scheduler_type", "### Framework versions", "# tiny\n"]
    told += ['pipeline("text-classification", model="tiny")']
    assert [fact for fact in told if fact not in card.text] == []
    assert "More information needed" not in card.text
    assert "fine-tuned version of" not in card.text
    assert str(tmp_path) not in str(card)
    assert "](" not in card.text


def test_no_path_and_no_token(teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "secret/teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "secret/teacher")
    student = cut(teacher)
    student.config._name_or_path = "/home/somebody/gone"  # no folder any more: Trainer takes it for a Hub id
    trainer, _, _ = distil(tmp_path / "run", student, teacher, hub_token="hf_secret")
    trainer.save_model()
    trainer.create_model_card()
    for name in ("README.md", "config.json"):
        text = (tmp_path / "run" / name).read_text()
        assert not any(secret in text for secret in (str(tmp_path), "secret", "/home"))
    data = ModelCard.load(tmp_path / "run/README.md").data
    assert data.base_model is None
    assert "base_model_relation" not in data
    assert json.loads(text)["distillation"]["teacher"] == "./teacher"


def test_extending_again_puts_the_report_in(card, two_steps):
    student = two_steps.model
    extended = extend_card(card, student, Report({"accuracy": 0.75}))
    assert "## Teacher and student\n\n| model | accuracy |" in extended.text
    assert extended.data.eval_results[0].metric_value == 0.75
    assert "| accuracy | 0.7500 |" in extended.text
    assert str(extend_card(extended, student, Report({"accuracy": 0.75}))) == str(extended)
    headings = re.findall(r"^#+ .+", extended.text, re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_scores_are_those_of_the_best_step_that_was_loaded(teacher, student, tmp_path):
    scores = iter([0.5, 0.9, 0.1])
    args = arguments(
        tmp_path,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    trainer = DistillationTrainer(
        student,
        args,
        pad,
        rows(8),
        rows(8),
        compute_metrics=lambda prediction: {"accuracy": next(scores)},
        teacher_model=teacher,
    )
    trainer.train()
    trainer.create_model_card()
    assert "| accuracy | 0.9000 |" in (tmp_path / "README.md").read_text()
    trainer.compute_metrics = lambda prediction: {"accuracy": 0.3}
    trainer.evaluate()  # of the student as it is: newer than the best step
    trainer.create_model_card()
    assert "| accuracy | 0.3000 |" in (tmp_path / "README.md").read_text()


def test_data_set_that_the_user_names(two_steps, tmp_path):
    two_steps.evaluate()
    two_steps.create_model_card(
        dataset="SST-2", dataset_tags="nyu-mll/glue", dataset_args="sst2", tasks="text-classification"
    )
    data = ModelCard.load(tmp_path / "student/README.md").data
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("SST-2", "nyu-mll/glue")
    assert data.datasets == ["nyu-mll/glue"]


def test_headless_student_from_elsewhere(tmp_path):
    teacher, student = build(BertModel, bert_config(4, 32)), build(BertModel, bert_config(2, 16))
    trainer, _, _ = distil(tmp_path, student, teacher, [HiddenLoss()], train_dataset=rows(8).remove_columns("labels"))
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "feature-extraction"
    assert "Its start is not recorded." in card.text
    assert "a teacher without a name" in card.text


def test_teacher_that_was_fine_tuned_leads_to_what_it_was(hub_teacher, tmp_path):
    hub_teacher.config.distillation = finetuned_from(hub_teacher.config)
    hub_teacher.save_pretrained(tmp_path / "teacher")
    fine_tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    student = cut(fine_tuned, init="random")
    trainer, _, _ = distil(tmp_path, student, fine_tuned)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == TEACHER
    assert hub_ids(student.config.distillation) == [TEACHER]
    assert f"`./teacher` (a local folder), fine-tuned from `{TEACHER}` (revision `{COMMIT}`)" in card.text


def test_a_model_without_lineage_is_refused(student, tmp_path):
    with pytest.raises(ValueError, match="create_student"):
        extend_card(ModelCard("---\n---\n# x\n"), student)


@pytest.mark.parametrize("by_name", [True, False], ids=["teacher by id", "teacher loaded by the user"])
def test_pushed_card_names_the_commit_of_the_teacher(hub, teacher, tmp_path, by_name):
    teacher.save_pretrained(tmp_path / "teacher")
    files = {file.name: file.read_bytes() for file in (tmp_path / "teacher").iterdir()}
    commit = hub.add("model", "user/teacher", files)
    teacher = AutoModelForSequenceClassification.from_pretrained("user/teacher")
    student = cut(teacher)
    assert student.config.distillation["teacher_revision"] == commit
    if by_name:  # loaded by the trainer, it is known also where the cache holds several
        commit = hub.model("user/teacher").commit("main", "again", files)
    args = arguments(tmp_path / "student", push_to_hub=True, hub_model_id="org/student")
    trainer = DistillationTrainer(student, args, pad, rows(8), teacher_model="user/teacher" if by_name else teacher)
    trainer.train()
    trainer.push_to_hub()
    pulled = AutoModelForSequenceClassification.from_pretrained("org/student").config.distillation
    (stage,) = pulled["stages"]
    assert (stage["teacher"], stage["teacher_revision"]) == ("user/teacher", commit)
    card = ModelCard.load("org/student")
    card.validate()
    assert card.data.base_model == "user/teacher"
    assert 'model="org/student"' in card.text
