"""The model card of a student: metadata for the Hub, lineage, losses with their settings and citations."""

import json
import re
from dataclasses import dataclass

import pytest
from conftest import bert_config, build, pad, rows, word_tokenizer
from huggingface_hub import ModelCard, ModelCardData
from short_runs import arguments, distil
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    Trainer,
)

from hf_tinybert import DistillationTrainer, HiddenLoss, PredictionLoss, create_student, extend_card
from hf_tinybert.lineage import DataRecord, Lineage, LossRecord, ModelRecord, Stage, TeacherRecord
from hf_tinybert.publishing.model_card import pipeline_tag, usage

TEACHER, COMMIT = "org/big-teacher", "0123456789abcdef0123456789abcdef01234567"
TINYBERT = "Jiao et al. (2020). TinyBERT"
BARE_CARD = "---\ntags: []\n---\n\n# tiny\n\n## Training procedure\n\n### Training hyperparameters\n\n- seed: 42\n"


def initialised(teacher, **changes):
    size = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
    return create_student(teacher, **size | {"calibration_dataset": rows(40)} | changes)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def table_row(card: ModelCard, name: str) -> list[str]:
    """The cells of a row of the lineage's table."""
    (line,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", card.text, re.MULTILINE)
    return line.split(" | ")


@pytest.fixture
def offline_cards(monkeypatch):
    """Trainer's card asks the Hub for the licence of the teacher otherwise."""
    monkeypatch.setattr("transformers.modelcard.is_offline_mode", lambda: True)


# ---- The card that a trainer writes ----


@pytest.fixture
def trained(teacher, tmp_path, offline_cards):
    """The trainer of a student's second phase, evaluated."""
    teacher.config.name_or_path, teacher.config._commit_hash = TEACHER, COMMIT
    student = initialised(teacher)
    losses = {"loss_type": ["attention", "hidden", "embedding"], "loss_weights": [1.0, 0.5, 2.0]}
    distil(tmp_path / "intermediate", student, teacher, **losses)
    trainer = DistillationTrainer(
        student,
        arguments(tmp_path / "student", loss_type=["prediction"], temperature=2.0, learning_rate=3e-5, seed=7),
        pad,
        rows(12),
        rows(8, seed=1),
        word_tokenizer(tmp_path),
        compute_metrics=accuracy,
        teacher_model=teacher,
    )
    trainer.data_name, trainer.augmentation = "sst2", {"copies": 20, "p": 0.4}
    trainer.train()
    trainer.save_model()
    trainer.evaluate()
    return trainer


def card_of(trainer, **card_arguments) -> ModelCard:
    trainer.create_model_card(**card_arguments)
    return ModelCard.load(f"{trainer.args.output_dir}/README.md")


def test_the_card_of_a_trainer_tells_the_whole_lineage(trained, tmp_path):
    card = card_of(trained, model_name="tiny")
    data = card.data
    assert (data.base_model, data["base_model_relation"]) == (TEACHER, "finetune")
    assert data.tags == ["hf_tinybert", "tinybert", "knowledge-distillation", "generated_from_trainer"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_name, result.metric_type) == ("text-classification", "sst2", "accuracy")
    assert result.metric_value == trained.state.log_history[-1]["eval_accuracy"]
    again = ModelCard(str(card))
    assert str(again) == str(card)
    assert again.data.to_dict() == data.to_dict()
    assert ModelCardData(**data.to_dict()).eval_results == data.eval_results

    first, second = trained.model.config.distillation["stages"]
    fingerprints = [f"`{stage['data']['fingerprint']}`" for stage in (first, second)]
    assert table_row(card, "losses (weight)") == ["attention (1), hidden (0.5), embedding (2)", "prediction (1)"]
    assert table_row(card, "settings of losses")[1] == "prediction: temperature 2.0"
    assert table_row(card, "layers, student ← teacher (0: embeddings)") == ["0 ← 0, 1 ← 2, 2 ← 4", "–"]
    assert table_row(card, "teacher") == [f"`{TEACHER}` (revision `{COMMIT}`)"] * 2
    assert table_row(card, "fingerprint of tokens and labels") == fingerprints
    assert table_row(card, "augmentation") == ["none", "copies 20, p 0.4"]
    assert table_row(card, "rows") == ["8", "12"]
    assert table_row(card, "learning rate") == ["0.1", "3e-05"]
    assert table_row(card, "seed") == ["42", "7"]
    assert table_row(card, "optimizer steps") == ["1", "1"]
    facts = [
        f"{trained.model.num_parameters():,} parameters",
        "2 layers, 16 wide, feed-forward 32, 4 heads",
        "# tiny\n",
    ]
    facts += [f"It was initialised from layers 2, 4 of `{TEACHER}` (revision `{COMMIT}`), by least squares on 40 "]
    facts += [
        "40 calibration rows without labels.",
        "| phase 1 | phase 2 |",
        'pipeline("text-classification", model="tiny")',
    ]
    facts += ["### Training hyperparameters", "lr_scheduler_type", "### Framework versions", f"prediction: {TINYBERT}"]
    assert [fact for fact in facts if fact not in card.text] == []
    for text in ("More information needed", "fine-tuned version of", "](", str(tmp_path)):
        assert text not in str(card)


def test_the_data_set_that_the_user_names_stays(trained):
    named = {"dataset": "SST-2", "dataset_tags": "nyu-mll/glue", "dataset_args": "sst2"}
    data = card_of(trained, tasks="text-classification", **named).data
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("SST-2", "nyu-mll/glue")
    assert data.datasets == ["nyu-mll/glue"]


def test_no_file_holds_a_path_or_a_token(teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "secret/teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "secret/teacher")
    student = initialised(teacher)
    student.config.name_or_path = "/home/somebody/gone"  # Trainer takes a folder that does not exist for a Hub id
    trainer, _, _ = distil(tmp_path / "run", student, teacher, hub_token="hf_secret")
    trainer.save_model()
    data = card_of(trainer).data
    for name in ("README.md", "config.json"):
        text = (tmp_path / "run" / name).read_text()
        assert not any(secret in text for secret in (str(tmp_path), "secret", "/home"))
    assert data.base_model is None
    assert "base_model_relation" not in data
    assert json.loads(text)["distillation"]["teacher"]["name"] == "./teacher"


def test_scores_are_those_of_the_best_step_that_was_loaded(teacher, student, tmp_path):
    scores = iter([0.5, 0.9, 0.1])
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    args = arguments(tmp_path, max_steps=3, **every_step, **best)
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
    assert "| accuracy | 0.9000 |" in card_of(trainer).text
    trainer.compute_metrics = lambda prediction: {"accuracy": 0.3}
    trainer.evaluate()  # of the loaded student, and newer than the best step
    assert "| accuracy | 0.3000 |" in card_of(trainer).text


def test_a_headless_student_whose_start_is_not_recorded(tmp_path):
    teacher, student = build(BertModel, bert_config(4, 32)), build(BertModel, bert_config(2, 16))
    trainer, _, _ = distil(tmp_path, student, teacher, [HiddenLoss()], train_dataset=rows(8).remove_columns("labels"))
    card = card_of(trainer)
    assert card.data.pipeline_tag == "feature-extraction"
    assert "Its start is not recorded." in card.text
    assert "It is the student of a teacher without a name." in card.text


@pytest.mark.parametrize("has_lineage", [False, True])
def test_without_a_teacher_config_and_card_are_those_of_trainer(teacher, tmp_path, has_lineage):
    cards, configs = [], []
    for trainer_class in (Trainer, DistillationTrainer):
        student = initialised(teacher) if has_lineage else build(BertForSequenceClassification, bert_config(2, 16))
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


@pytest.mark.parametrize("by_name", [True, False], ids=["teacher by id", "teacher loaded by the user"])
def test_a_pushed_card_names_the_commit_of_the_teacher(hub, teacher, tmp_path, by_name):
    teacher.save_pretrained(tmp_path / "teacher")
    files = {file.name: file.read_bytes() for file in (tmp_path / "teacher").iterdir()}
    commit = hub.add("model", "user/teacher", files)
    teacher = AutoModelForSequenceClassification.from_pretrained("user/teacher")
    student = initialised(teacher)
    assert Lineage.from_config(student.config).teacher == ModelRecord("user/teacher", commit)
    if by_name:  # the trainer knows what it loads, also if the cache holds several commits
        commit = hub.model("user/teacher").commit("main", "again", files)
    args = arguments(tmp_path / "student", push_to_hub=True, hub_model_id="org/student")
    trainer = DistillationTrainer(student, args, pad, rows(8), teacher_model="user/teacher" if by_name else teacher)
    trainer.train()
    trainer.push_to_hub()
    pulled = AutoModelForSequenceClassification.from_pretrained("org/student")
    (stage,) = Lineage.from_config(pulled.config).stages
    assert stage.teachers[0].model == ModelRecord("user/teacher", commit)
    card = ModelCard.load("org/student")
    assert hub.count("POST", "/validate-yaml")  # the server has accepted the card
    assert card.data.base_model == "user/teacher"
    assert 'model="org/student"' in card.text


# ---- The card of a lineage ----


def stage(losses: list[LossRecord], *teachers: TeacherRecord) -> Stage:
    data = DataRecord("glue", "sst2", "train", 67349)
    return Stage(losses, list(teachers), "confidence", data, None, 3.0, None, 3e-5, 32, 42, "bf16")


def extended(student, lineage: Lineage, **card_arguments) -> ModelCard:
    lineage.write(student.config)
    return extend_card(ModelCard(BARE_CARD), student, **card_arguments)


def test_losses_are_cited_once_each_with_settings_schedules_and_factors(student):
    settings = {"relation_heads": 48, "kinds": ["queries", "keys"], "pattern": "a|b\nc"}
    losses = [
        LossRecord("relation", 0.5, settings, "Wang et al.\n  (2021).", "linear_decay", 2.0),
        LossRecord("prediction", 1.0, {"temperature": 2.0}, PredictionLoss.citation),
        LossRecord("hidden", 1.0, {}, PredictionLoss.citation),
        LossRecord("mine", 1.0),
    ]
    lineage = Lineage(start=ModelRecord("./start"), stages=[stage(losses), stage(losses[1:2])])
    card = extended(student, lineage)
    citations = card.text.partition("## Citation")[2].partition("```bibtex")[0]
    assert citations.strip().splitlines() == [
        "The losses come from:",
        "",
        "- relation: Wang et al. (2021).",
        f"- prediction, hidden: {PredictionLoss.citation}",
    ]
    assert table_row(card, "losses (weight)")[0] == "relation (0.5), prediction (1), hidden (1), mine (1)"
    assert table_row(card, "settings of losses") == [
        r"relation: relation_heads 48, kinds ['queries', 'keys'], pattern a\|b c; prediction: temperature 2.0",
        "prediction: temperature 2.0",
    ]
    assert table_row(card, "schedules of weights") == ["relation linear_decay", "–"]
    assert table_row(card, "balancing factors of weights") == ["relation 2.0", "–"]
    assert table_row(card, "data") == ["glue, sst2, train"] * 2
    assert table_row(card, "epochs") == ["3.0"] * 2
    assert "| optimizer steps |" not in card.text  # no phase has them
    assert "1909.10351" in card.text.partition("```bibtex")[2]


def test_several_teachers_are_named_with_their_weights(student):
    fine_tuned = ModelRecord("./teacher", None, ModelRecord(TEACHER, COMMIT))
    teachers = TeacherRecord(fine_tuned, 0.25, [[1, 2]]), TeacherRecord(ModelRecord("org/other"), 0.75, [[1, 3]])
    card = extended(student, Lineage(teacher=fine_tuned, init="random", stages=[stage([], *teachers)]))
    told = f"`./teacher` (a local folder), fine-tuned from `{TEACHER}` (revision `{COMMIT}`)"
    assert table_row(card, "teacher") == [f"{told} (weight 0.25), `org/other` (weight 0.75)"]
    assert table_row(card, "teachers' logits") == ["confidence"]
    assert table_row(card, "layers, student ← teacher (0: embeddings)") == ["1 ← 2; 1 ← 3"]
    assert f"It is the student of {told} and `org/other`." in card.text
    assert f"It started from random weights, in the architecture of {told}." in card.text
    assert card.data.base_model == [TEACHER, "org/other"]


@pytest.mark.parametrize(
    ("lineage", "sentence"),
    [
        (
            Lineage(ModelRecord(TEACHER), init="layers", layers=[2, 4]),
            f"It started from layers 2, 4 of `{TEACHER}`, copied.",
        ),
        (
            Lineage(ModelRecord(TEACHER), init="teacher", layers=[2, 4]),
            f"It was initialised from layers 2, 4 of `{TEACHER}`.",
        ),
        (Lineage(start=ModelRecord("org/small", COMMIT)), f"It started from `org/small` (revision `{COMMIT}`)."),
        (Lineage(), "Its start is not recorded."),
    ],
)
def test_how_the_student_started(student, lineage, sentence):
    card = extended(student, lineage)
    assert f"## Lineage\n\n{sentence}\n\nIt has not been trained since." in card.text


@dataclass
class Report:
    summary: dict

    def to_markdown(self) -> str:
        return "| model | accuracy |\n| --- | --- |\n| student | 0.75 |\n"


def test_extending_again_adds_the_report_and_repeats_nothing(student):
    losses = [LossRecord("prediction", 1.0, {}, PredictionLoss.citation)]
    evaluated_on = DataRecord("tweets", "en", "test", 1000)
    card = extended(student, Lineage(stages=[stage(losses)]), metrics={"accuracy": 0.5}, evaluated_on=evaluated_on)
    assert "On tweets, en, test, 1,000 rows:\n\n| metric | value |\n| --- | --- |\n| accuracy | 0.5000 |" in card.text
    with_report = extend_card(card, student, Report({"accuracy": 0.75}))
    assert "## Teacher and student\n\n| model | accuracy |" in with_report.text
    assert with_report.data.eval_results[0].metric_value == 0.75
    assert "| accuracy | 0.7500 |" in with_report.text
    assert str(extend_card(with_report, student, Report({"accuracy": 0.75}))) == str(with_report)
    headings = re.findall(r"^#+ .+", with_report.text, re.MULTILINE)
    assert len(headings) == len(set(headings)) == 8
    elsewhere = extend_card(with_report, student, Report({"accuracy": 0.25}), evaluated_on=DataRecord("films"))
    results = [(result.dataset_name, result.metric_value) for result in elsewhere.data.eval_results]
    assert results == [("films", 0.25)]  # not that of tweets under the name of films, or the reverse


@pytest.mark.parametrize(
    ("model_class", "task"),
    [
        (BertForSequenceClassification, "text-classification"),
        (BertForMaskedLM, "fill-mask"),
        (BertForQuestionAnswering, "question-answering"),
        (BertForMultipleChoice, "multiple-choice"),
    ],
)
def test_what_the_card_says_about_loading_runs(tmp_path, model_class, task):
    tokenizer = word_tokenizer(tmp_path)
    model = build(model_class, bert_config(1, 16, vocab_size=len(tokenizer), num_labels=2))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    assert pipeline_tag(model) == task
    exec(re.search(r"```python\n(.*)```", usage(task, str(tmp_path)), re.DOTALL)[1], {})


def test_a_model_without_lineage_is_refused(student):
    with pytest.raises(ValueError, match="create_student"):
        extend_card(ModelCard(BARE_CARD), student)
