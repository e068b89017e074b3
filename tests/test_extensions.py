"""A user's loss, architecture and kind of head, none of them known to the package, work through all of it."""

import json

import pytest
import torch
from conftest import LABELS, WORDS, build, rows, word_tokenizer
from datasets import Dataset, DatasetDict
from extensions import OrdinalClassification, ScaledLogits, Stacked, StackedConfig, StackedForOrdinal
from safetensors.torch import load_file
from short_runs import QUICK, TWO_PHASES, distil
from transformers import set_seed

from hf_tinybert import StudentReport, create_student, task_distillation
from hf_tinybert.lineage import Lineage
from hf_tinybert.models.architectures import architecture_of

SIZE = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}


@pytest.fixture
def teacher():
    config = StackedConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
    )
    return build(StackedForOrdinal, config, 1).eval()


def sentences(count: int, seed: int) -> Dataset:
    """Sentences with as many of three ordered labels."""
    set_seed(seed)
    draws = torch.randint(len(WORDS), (count, 6)).tolist()
    texts = [" ".join(WORDS[index] for index in row) for row in draws]
    return Dataset.from_dict({"sentence": texts, "label": [index % 3 for index in range(count)]})


def test_the_architecture_initialises_students_and_is_the_identity_at_its_own_sizes(teacher):
    assert isinstance(architecture_of(teacher.config), Stacked)
    batch = {"input_ids": torch.tensor([rows(1)[0]["input_ids"]])}
    same = create_student(teacher, calibration_dataset=rows(40)).eval()
    torch.testing.assert_close(same(**batch).logits, teacher(**batch).logits, rtol=1e-3, atol=1e-3)
    student = create_student(teacher, **SIZE, calibration_dataset=rows(40))
    assert student.config.num_hidden_layers == len(student.bert.encoder.floors) == 2
    assert Lineage.from_config(student.config).layers == [2, 4]


@pytest.mark.parametrize("padding_free", [False, True])
def test_the_trainer_learns_all_of_it(tmp_path, teacher, padding_free):
    student = create_student(teacher, **SIZE, init="random")
    options = {"max_steps": 8, "optim": "adamw_torch", "learning_rate": 1e-2, "padding_free": padding_free}
    options |= {"save_strategy": "steps", "save_steps": 8, "loss_type": ["attention", "hidden", "prediction"]}
    _, logs, _ = distil(tmp_path, student, teacher, **options)
    for name in ("attention_loss", "hidden_loss", "prediction_loss"):
        assert logs[-1][name] < logs[0][name]
    assert set(load_file(tmp_path / "checkpoint-8/model.safetensors")) == set(student.state_dict())


def test_the_pipeline_trains_saves_and_describes_all_of_it(tmp_path, teacher):
    tokenizer = word_tokenizer(tmp_path)
    for model in (teacher, tokenizer):
        model.save_pretrained(tmp_path / "teacher")
    task = OrdinalClassification("levels", ("sentence",), tuple(LABELS.values()))
    data = DatasetDict(train=sentences(24, 0), validation=sentences(12, 1))
    arguments = {
        "student": SIZE,
        "calibration_rows": 24,
        "prediction": {"losses": [ScaledLogits(0.5, start=2.0, classes=2)]},
        **TWO_PHASES,
        **QUICK,
    }
    results = task_distillation(task, data, tmp_path / "teacher", tmp_path / "run", **arguments)
    assert set(results["student"]["validation"]) == {"accuracy", "score"}

    student = StackedForOrdinal.from_pretrained(tmp_path / "run/student")
    assert not any("distillation" in name for name in student.state_dict())
    intermediate, prediction = Lineage.from_config(student.config).stages
    assert [loss.name for loss in intermediate.losses] == ["hidden", "embedding"]
    (record,) = prediction.losses
    assert (record.name, record.weight, record.settings) == ("scaled_logits", 0.5, {"start": 2.0, "classes": 2})
    card = (tmp_path / "run/student/README.md").read_text(encoding="utf8")
    assert "scaled_logits (0.5)" in card
    assert "scaled_logits: A. User (2026). Logits to scale." in card
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert "scaled_logits" in json.dumps(settings)
    assert task_distillation(task, data, tmp_path / "teacher", tmp_path / "run", **arguments) == results
    arguments["prediction"] = {"losses": [ScaledLogits(0.5, start=3.0, classes=2)]}
    with pytest.raises(ValueError, match="holds a run with other"):
        task_distillation(task, data, tmp_path / "teacher", tmp_path / "run", **arguments)

    rows_of_report = task.tokenize(data["validation"], tokenizer)
    report = StudentReport.measure(
        teacher, student, rows_of_report, tokenizer, task.compute_metrics, engines=["torch"], calls=5, resamples=20
    )
    assert report.summary["accuracy"] == pytest.approx(results["student"]["validation"]["accuracy"])
