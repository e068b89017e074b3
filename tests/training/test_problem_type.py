"""The kind of prediction head is decided once, before the first step, as the label loss would decide it."""

import contextlib

import pytest
import torch
from conftest import bert_config, build, pad, rows
from short_runs import arguments, distil
from transformers import AutoConfig, BertForSequenceClassification

from hf_tinybert import DistillationTrainer, PredictionLoss, TaskLoss
from hf_tinybert.models.prediction_heads import soft_binary_cross_entropy
from hf_tinybert.training.problem_type import problem_type_of


def classifier(seed, **changes):
    return build(BertForSequenceClassification, bert_config(2, 16, **changes), seed)


def labelled(labels, count=8):
    return rows(count).remove_columns("labels").add_column("labels", labels[:count])


def collate(features):
    """Rows with labels of any shape, in either column."""
    features = [{"labels" if name == "label" else name: value for name, value in row.items()} for row in features]
    batch = pad([{name: value for name, value in row.items() if name != "labels"} for row in features])
    return batch | ({"labels": torch.tensor([row["labels"] for row in features])} if "labels" in features[0] else {})


SEVERAL = [[1.0, 0.0, float(i % 2)] for i in range(8)]
STEPS = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}


@pytest.mark.parametrize(("column", "stream"), [("labels", True), ("label", False)])
def test_lists_of_real_numbers_are_several_labels_from_the_first_step_to_the_last(tmp_path, column, stream):
    """Reference: the sigmoid cross-entropy of the two models' logits; a learning rate of 0 keeps it."""
    student, teacher, data = classifier(1), classifier(2), labelled(SEVERAL)
    batch = {name: values for name, values in collate(list(data)).items() if name != "labels"}
    with torch.no_grad():
        expected = soft_binary_cross_entropy(student(**batch).logits, teacher(**batch).logits).mean().item()
    evaluation = data.rename_columns({"labels": column} if column != "labels" else {})
    train = evaluation.to_iterable_dataset() if stream else evaluation
    args = arguments(tmp_path, loss_type=["prediction"], save_strategy="steps", save_steps=1, **STEPS)

    trainer = DistillationTrainer(student, args, collate, train, evaluation, teacher_model=teacher)
    trainer.train()
    values = [log["prediction_loss"] for log in trainer.state.log_history if "prediction_loss" in log]
    assert values == pytest.approx([expected] * 3, rel=1e-5)
    trainer.save_model(tmp_path / "final")
    for folder in ("checkpoint-1", "checkpoint-3", "final"):
        assert AutoConfig.from_pretrained(tmp_path / folder).problem_type == "multi_label_classification"
    resumed = DistillationTrainer(classifier(1), args, collate, train, evaluation, teacher_model=classifier(2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    values = [log["prediction_loss"] for log in resumed.state.log_history if "prediction_loss" in log]
    assert values == pytest.approx([expected] * 3, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("labels", [[0, 1], [0.5, 1.0], [[1.0, 0.0, 1.0]] * 2])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_the_rule_is_that_of_transformers(labels, num_labels):
    """Reference: what a forward pass with labels writes into the configuration."""
    model = classifier(1, num_labels=num_labels, id2label={i: str(i) for i in range(num_labels)})
    with contextlib.suppress(ValueError, RuntimeError):  # the kind is decided before the loss fails
        model(torch.tensor([[1, 2], [3, 4]]), labels=torch.tensor(labels))
    assert model.config.problem_type == problem_type_of(torch.tensor(labels), num_labels)


@pytest.mark.parametrize("kind", ["one", "several"])
def test_evaluation_data_alone_has_labels(tmp_path, kind):
    student, teacher = classifier(1), classifier(2)
    evaluation = labelled(SEVERAL)
    distilled = DistillationTrainer(
        student,
        arguments(tmp_path, loss_type=["prediction"], **STEPS),
        collate,
        rows(8).remove_columns("labels"),
        evaluation if kind == "one" else {"first": evaluation, "second": evaluation},
        teacher_model=teacher,
    )
    assert student.config.problem_type == teacher.config.problem_type == "multi_label_classification"
    distilled.train()
    values = {log["prediction_loss"] for log in distilled.state.log_history if "prediction_loss" in log}
    assert len(values) == 1


def test_model_init_and_no_labels(tmp_path):
    options = {"loss_type": ["prediction"], "max_steps": 1}
    trainer = DistillationTrainer(
        args=arguments(tmp_path, **options),
        data_collator=collate,
        train_dataset=labelled(SEVERAL),
        model_init=lambda trial=None: classifier(1),
        teacher_model=classifier(2),
    )
    trainer.train()
    assert trainer.model.config.problem_type == "multi_label_classification"
    student = classifier(1)
    trainer = DistillationTrainer(
        student, trainer.args, collate, rows(8).remove_columns("labels"), teacher_model=classifier(2)
    )
    trainer.train()
    assert student.config.problem_type is None


def test_a_student_takes_the_kind_of_its_teacher_where_the_data_cannot_be_read_yet(tmp_path):
    student, teacher = classifier(1), classifier(2, problem_type="multi_label_classification")
    stream = labelled(SEVERAL).to_iterable_dataset()
    args = arguments(tmp_path, loss_type=["prediction"])
    DistillationTrainer(student, args, collate, stream, teacher_model=teacher)
    assert student.config.problem_type == "multi_label_classification"


def test_one_integer_score_a_row(tmp_path):
    student, teacher = (classifier(seed, num_labels=1) for seed in (1, 2))
    _, (log,), _ = distil(tmp_path, student, teacher, [PredictionLoss(), TaskLoss()], labelled([*range(8)]), collate)
    assert log["task_loss"] > 0
    assert AutoConfig.for_model(**student.config.to_dict()).problem_type == "regression"


def test_a_users_loss_function_keeps_the_labels_for_itself(tmp_path):
    student, data = classifier(1), labelled(SEVERAL)

    def soft(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    DistillationTrainer(
        student, arguments(tmp_path), collate, data, compute_loss_func=soft, teacher_model=classifier(2)
    ).train()
    assert student.config.problem_type is None


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([[1, 0, 1]] * 8, {}, "3 integers a row: for several labels make it a list of 3 numbers of type float32"),
        ([[1.0, 0.0]] * 8, {}, "2 real numbers a row: for several labels make it a list of 3"),
        ([0.0, 1.0] * 4, {}, "1 real number a row: .*for classes make it one integer"),
        (SEVERAL, {"problem_type": "single_label_classification"}, "3 real numbers a row: make it one integer"),
        ([0.5] * 8, {"problem_type": "regression"}, "1 real number a row: make it 3 a row"),
    ],
    ids=["integers", "too few", "one", "classes", "scores"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_labels_that_no_loss_can_take_are_refused(tmp_path, labels, changes, message, stream):
    models = [classifier(seed, **changes) for seed in (1, 2)]
    data = labelled(labels)
    args = arguments(tmp_path, loss_type=["prediction"])
    train = data.to_iterable_dataset() if stream else data
    with pytest.raises(ValueError, match=f"num_labels=3 and .*{message}"):
        DistillationTrainer(models[0], args, collate, train, teacher_model=models[1]).train()
