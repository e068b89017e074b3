"""Reports of every kind of prediction head against Trainer and formulas, and what a report refuses."""

import copy
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import bert_config, build, rows, word_tokenizer
from head_kinds import KINDS, QUESTIONS, decisions, divergence, questions
from scipy import stats
from short_runs import arguments
from transformers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    Trainer,
)

from hf_tinybert import StudentReport, squad_scores
from hf_tinybert.evaluation import engines

PROBABILISTIC = [name for name in KINDS if "score" not in name]


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(engines, "PAUSE", 0)


@pytest.fixture
def measure(tmp_path):
    tokenizer = word_tokenizer(tmp_path)

    def run(teacher, student, dataset=None, compute_metrics=accuracy, **changes):
        dataset = rows(24) if dataset is None else dataset
        options = {"engines": ("torch",), "batch_size": 8, "calls": 5, "resamples": 20} | changes
        return StudentReport.measure(teacher, student, dataset, tokenizer, compute_metrics, **options)

    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Teacher, student, rows and report of a kind of prediction head, each made once."""
    made, tokenizer = {}, word_tokenizer(tmp_path_factory.mktemp("tokenizer"))

    def of_kind(name):
        if name not in made:
            kind, data = KINDS[name], KINDS[name].rows(tokenizer)
            teacher = build(kind.model_class, bert_config(2, 16, **kind.config), 1).eval()
            student = build(kind.model_class, bert_config(1, 16, **kind.config), 2).eval()
            report = StudentReport.measure(
                teacher,
                student,
                data,
                tokenizer,
                kind.scorer(data),
                batch_size=5,
                engines=("torch",),
                calls=2,
                resamples=50,
                preprocess_logits_for_metrics=kind.preprocess,
            )
            made[name] = SimpleNamespace(
                kind=kind, tokenizer=tokenizer, teacher=teacher, student=student, rows=data, report=report
            )
        return made[name]

    return of_kind


def trainers_prediction(run, model, folder):
    """What Trainer predicts and scores."""
    trainer = Trainer(
        model,
        arguments(folder, per_device_eval_batch_size=7, include_for_metrics=["inputs"]),
        processing_class=run.tokenizer,
        data_collator=run.kind.collator(run.tokenizer),
        compute_metrics=run.kind.scorer(run.rows),
        preprocess_logits_for_metrics=run.kind.preprocess,
    )
    return trainer.predict(run.rows)


@pytest.mark.parametrize("name", KINDS)
def test_metrics_are_trainers(measured, tmp_path, name):
    run = measured(name)
    for measurement, model in zip(run.report.measurements, (run.teacher, run.student), strict=True):
        expected = trainers_prediction(run, model, tmp_path).metrics
        assert measurement.metrics
        for metric, (value, low, high) in measurement.metrics.items():
            assert value == pytest.approx(expected[f"test_{metric}"])
            assert low <= value <= high
    teacher, student = run.report.measurements
    for metric, (difference, _, _) in student.differences.items():
        assert difference == pytest.approx(student.metrics[metric][0] - teacher.metrics[metric][0])


@pytest.mark.parametrize("name", PROBABILISTIC)
def test_agreement_is_that_of_every_decision_of_rows_by_themselves(measured, name):
    run = measured(name)
    pairs = [*zip(*(decisions(run.kind, model, run.rows) for model in (run.teacher, run.student)), strict=True)]
    agreement = run.report.student.agreement
    assert agreement["kl"] == pytest.approx(np.mean([divergence(*pair) for pair in pairs]), rel=1e-4)
    assert agreement["top1"] == pytest.approx(np.mean([t.argmax() == s.argmax() for t, s in pairs]))
    assert 0 < agreement["top1"] < 1
    assert run.report.measurements[0].agreement == {"top1": 1, "kl": 0}


@pytest.mark.parametrize("name", ["score", "two scores"])
def test_agreement_of_scores_is_their_correlation(measured, name):
    run = measured(name)
    teacher, student = (np.stack(decisions(run.kind, model, run.rows)) for model in (run.teacher, run.student))
    correlations = [stats.pearsonr(*columns)[0] for columns in zip(teacher.T, student.T, strict=True)]
    assert run.report.student.agreement == pytest.approx({"pearson": np.mean(correlations)}, rel=1e-4)
    assert run.report.measurements[0].agreement == pytest.approx({"pearson": 1})
    assert run.report.student.class_retention == {}
    assert "correlation" in run.report.to_markdown()
    assert "KL" not in run.report.to_markdown()


@pytest.mark.parametrize("name", ["classes", "several labels", "tokens"])
def test_of_what_the_teacher_gets_right_of_a_class_the_student_gets_a_share_right(measured, name):
    run = measured(name)
    logits = [decisions(run.kind, model, run.rows) for model in (run.teacher, run.student)]
    labels = np.concatenate([np.ravel(labels) for labels in run.rows["labels"]])
    labels = labels[labels != -100].astype(int)
    classes = labels if name != "several labels" else np.where(labels, np.arange(len(labels)) % 3, -1)
    teacher_right, student_right = (np.array([z.argmax() for z in model]) == labels for model in logits)
    for index, label in run.teacher.config.id2label.items():
        expected = student_right[teacher_right & (classes == index)]
        share = run.report.student.class_retention[label]
        assert share == (expected.mean() if len(expected) else None)
    assert any(share not in (0, 1, None) for share in run.report.student.class_retention.values())


@pytest.mark.parametrize("name", ["spans", "choices", "masked tokens"])
def test_heads_without_named_classes_have_no_class_retention(measured, name):
    assert measured(name).report.student.class_retention == {}


def test_questions_are_scored_by_their_best_answer_and_resampled_as_questions(measured, tmp_path):
    run = measured("spans")
    output = trainers_prediction(run, run.student, tmp_path)
    asked = questions()
    candidates = QUESTIONS.answers(asked, run.rows, *output.predictions)
    golds = [answers["text"] for answers in asked["answers"]]
    scores = [squad_scores([best[0]["text"]], [gold]) for best, gold in zip(candidates, golds, strict=True)]
    assert len(run.rows) > len(asked)
    generator = np.random.default_rng(0)
    drawn = [generator.integers(len(asked), size=len(asked)) for _ in range(50)]
    for metric in ("exact_match", "f1"):
        values = np.array([score[metric] for score in scores])
        interval = np.percentile([values[numbers].mean() for numbers in drawn], [2.5, 97.5])
        assert run.report.student.metrics[metric] == pytest.approx([values.mean(), *interval])


def test_metrics_of_all_logits_of_masked_tokens_are_those_of_preprocessed_ones(measured, measure):
    run = measured("masked tokens")
    other = measure(run.teacher, run.student, run.rows, run.kind.compute_metrics, resamples=50)
    for measurement, preprocessed in zip(other.measurements, run.report.measurements, strict=True):
        assert measurement.metrics == preprocessed.metrics
        assert measurement.agreement == pytest.approx(preprocessed.agreement, rel=1e-5, abs=1e-9)


def test_padding_says_nothing_to_metrics_of_spans(measured, measure):
    run, seen = measured("spans"), []

    def watch(prediction):
        seen.append(prediction)
        return {"starts": float((prediction.predictions[0].argmax(-1) == prediction.label_ids[0]).mean())}

    measure(run.teacher, run.student, run.rows, watch, resamples=1)
    lengths = np.array([len(ids) for ids in run.rows["input_ids"]])
    for logits in seen[0].predictions:
        assert (logits.argmax(-1) < lengths).all()
        assert (logits[np.arange(logits.shape[1]) >= lengths[:, None]] < -1e30).all()
        assert np.isfinite(logits + logits).all()
    assert [labels.tolist() for labels in seen[0].label_ids] == [
        run.rows["start_positions"][:],
        run.rows["end_positions"][:],
    ]


def test_size_and_speed(measured):
    run = measured("classes")
    for measurement, model in zip(run.report.measurements, (run.teacher, run.student), strict=True):
        assert measurement.parameters == model.num_parameters()
        weights = [*model.parameters(), *model.buffers()]
        assert measurement.megabytes == pytest.approx(sum(x.numel() * x.element_size() for x in weights) / 1e6)
        assert 0 < measurement.latency_ms["p50"] <= measurement.latency_ms["p95"]
        assert measurement.throughput > 0
    lengths = [len(ids) for ids in run.rows["input_ids"]]
    assert (run.report.rows, run.report.batch_size, run.report.resamples) == (24, 5, 50)
    assert (run.report.lengths["mean"], run.report.lengths["max"]) == (np.mean(lengths), max(lengths))
    assert abs(run.report.lengths["flops"] - np.mean(lengths)) < 1
    assert run.report.machine["threads"] == torch.get_num_threads()
    assert run.report.machine["torch"] == version("torch")  # without the CUDA that torch.__version__ adds


def test_rows_come_back_in_their_order(measure, teacher, student):
    dataset, seen = rows(24), []

    def watch(prediction):
        seen.append(prediction)
        return accuracy(prediction)

    measure(teacher, student, dataset, watch, resamples=1)
    assert seen[0].label_ids.tolist() == dataset["labels"]
    for ids, tokens in zip(dataset["input_ids"], seen[0].inputs, strict=True):
        assert tokens[: len(ids)].tolist() == ids
    with torch.no_grad():
        expected = [teacher(torch.tensor([ids])).logits[0] for ids in dataset["input_ids"]]
    np.testing.assert_allclose(seen[0].predictions, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_batches_change_nothing(measure, teacher, student):
    one, many = (measure(teacher, student, batch_size=size).measurements[1] for size in (1, 24))
    assert one.metrics == many.metrics
    assert one.agreement == pytest.approx(many.agreement, rel=1e-4)


def test_a_teacher_is_its_own_equal(measure, teacher):
    teacher.train()
    attention = teacher.config._attn_implementation
    measurement = measure(teacher, copy.deepcopy(teacher)).measurements[1]
    assert measurement.retained == {"accuracy": 1}
    assert measurement.differences == {"accuracy": [0, 0, 0]}
    assert measurement.agreement == pytest.approx({"top1": 1, "kl": 0}, abs=1e-9)
    assert set(measurement.class_retention.values()) <= {1, None}
    assert teacher.training
    assert teacher.config._attn_implementation == attention


def zeros_like(ids):
    return [zeros_like(values) for values in ids] if isinstance(ids, list) else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "spans", "choices"])
def test_every_engine(measured, tmp_path, name):
    run, tokenizer = measured(name), word_tokenizer(tmp_path)
    data = run.rows
    if "token_type_ids" not in data.column_names:  # the graphs take them
        data = data.map(lambda row: {"token_type_ids": zeros_like(row["input_ids"])})
    report = StudentReport.measure(
        run.teacher,
        run.student,
        data,
        tokenizer,
        run.kind.scorer(data),
        batch_size=5,
        calls=2,
        resamples=50,
        preprocess_logits_for_metrics=run.kind.preprocess,
    )
    names = [(measurement.model, measurement.engine) for measurement in report.measurements]
    assert names == [(model, engine) for model in ("teacher", "student") for engine in ("torch", "onnx", "onnx_int8")]
    for torch_run, onnx, int8 in (report.measurements[:3], report.measurements[3:]):
        assert onnx.agreement == pytest.approx(torch_run.agreement, abs=1e-4)
        assert onnx.metrics == torch_run.metrics
        assert int8.agreement["kl"] != pytest.approx(torch_run.agreement["kl"], abs=1e-9)
        assert int8.agreement["kl"] == pytest.approx(torch_run.agreement["kl"], abs=0.1)
        assert len({measurement.megabytes for measurement in (torch_run, onnx, int8)}) == 3
    for alone, beside in zip(run.report.measurements, report.measurements[::3], strict=True):
        assert beside.metrics == alone.metrics
    assert report.machine["onnxruntime"]
    assert report.student is report.measurements[3]
    assert "ONNX int8" in report.to_markdown()


def refused(**changes):
    return pytest.param(changes.pop("student", {}), changes.pop("edit", lambda data: data), changes)


@pytest.mark.parametrize(
    ("config", "edit", "options"),
    [
        refused(engines=("tensorrt",), match="tensorrt.*onnx_int8"),
        refused(edit=lambda data: data.remove_columns("labels"), match="'labels'"),
        refused(edit=lambda data: data.select([]), match="0 with"),
        refused(student={"id2label": {0: "neutral", 1: "positive", 2: "negative"}}, match="labels are"),
        refused(student={"problem_type": "multi_label_classification"}, match="several labels, the teacher's classes"),
        refused(engines=("torch", "onnx"), match="lack.*token_type_ids"),
    ],
)
def test_refused_before_anything_runs(measure, teacher, config, edit, options):
    student = build(BertForSequenceClassification, bert_config(2, 16, **config))
    for model in (teacher, student):
        model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    with pytest.raises(ValueError, match=options.pop("match")):
        measure(teacher, student, edit(rows(8)), **options)


def test_heads_of_two_kinds_are_refused(measure, teacher):
    with pytest.raises(ValueError, match="student's logits are choices, the teacher's classes"):
        measure(teacher, build(BertForMultipleChoice, bert_config(2, 16)))


def test_a_missing_tokenizer_is_refused(teacher, student):
    with pytest.raises(TypeError, match="pass the tokenizer"):
        StudentReport.measure(teacher, student, rows(8), None, accuracy)


def test_rows_without_positions_are_refused_for_spans(measure):
    models = [build(BertForQuestionAnswering, bert_config(1, 16)) for _ in range(2)]
    with pytest.raises(ValueError, match="'start_positions', 'end_positions'"):
        measure(*models)


def test_models_without_a_head_are_refused(measure):
    models = [build(BertModel, bert_config(2, 16)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"last_hidden_state.*head with logits"):
        measure(*models)


def test_vocabularies_of_two_sizes_cannot_be_compared(measured, measure):
    run = measured("masked tokens")
    student = build(run.kind.model_class, bert_config(1, 16, vocab_size=60))
    with pytest.raises(ValueError, match="different shapes"):
        measure(run.teacher, student, run.rows, run.kind.compute_metrics)
