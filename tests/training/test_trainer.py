"""DistillationTrainer as a user of Trainer meets it."""

import copy
import json
import logging
from pathlib import Path

import datasets
import optuna
import pytest
import torch
from conftest import VOCAB, bert_config, build, pad, rows
from datasets import Dataset
from safetensors.torch import load_file
from short_runs import arguments, assert_same_run, companion_parameters, distil
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_tinybert import DistillationArguments, DistillationTrainer, TaskLoss
from hf_tinybert.training.companions import PROJECTIONS, PROJECTIONS_FILE

PLAIN = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_steps": 3,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}


def with_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return model


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def without_times(history):
    return [{k: v for k, v in log.items() if not k.endswith(("runtime", "per_second"))} for log in history]


@pytest.mark.parametrize("arguments_class", [TrainingArguments, DistillationArguments])
@pytest.mark.parametrize("task", ["student", "token_student"])
def test_without_a_teacher_it_is_trainer(tmp_path, request, task, arguments_class):
    model = with_dropout(request.getfixturevalue(task))
    tokens = task == "token_student"
    results = []
    for trainer_class, args in ((Trainer, TrainingArguments), (DistillationTrainer, arguments_class)):
        student, folder = copy.deepcopy(model), tmp_path / trainer_class.__name__
        trainer = trainer_class(
            model=student,
            args=args(output_dir=str(folder), **PLAIN),
            train_dataset=rows(16, tokens),
            eval_dataset=rows(8, tokens, seed=1),
            data_collator=pad,
            compute_metrics=accuracy,
        )
        trainer.train()
        trainer.save_model(folder / "final")
        predictions = trainer.predict(rows(8, tokens, seed=1))
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        results.append((student, without_times(trainer.state.log_history), predictions, files, folder))
    plain, history, predictions, files, folder = results[0]
    student, student_history, student_predictions, student_files, student_folder = results[1]
    assert history == student_history
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), student.parameters(), strict=True))
    assert (predictions.predictions == student_predictions.predictions).all()
    assert without_times([predictions.metrics]) == without_times([student_predictions.metrics])
    assert files == student_files
    for name in ("final/model.safetensors", "checkpoint-3/model.safetensors", "checkpoint-3/config.json"):
        assert (folder / name).read_bytes() == (student_folder / name).read_bytes()
    optimizers = [torch.load(f / "checkpoint-6/optimizer.pt", weights_only=True) for f in (folder, student_folder)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)


def test_the_teacher_runs_in_the_students_precision(tmp_path, student, teacher):
    seen = []
    teacher.bert.encoder.layer[3].output.dense.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    distil(tmp_path, student, teacher, bf16=True)
    assert seen[-1] is torch.bfloat16


class ForwardSpy:
    """Records the keyword arguments of every forward pass made in eval mode."""

    def __init__(self, model):
        self.calls = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model, args, kwargs):
        if not model.training:
            self.calls.append(set(kwargs))


def test_evaluation_and_prediction_are_the_students_alone(tmp_path, student, teacher):
    trainer, _, _ = distil(tmp_path, student, teacher)
    plain = Trainer(model=copy.deepcopy(student), args=trainer.args, data_collator=pad, eval_dataset=rows(8, seed=1))
    spy, teacher_spy = ForwardSpy(student), ForwardSpy(teacher)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    prediction, expected = trainer.predict(rows(8, seed=1)), plain.predict(rows(8, seed=1))
    assert prediction.predictions.shape == (8, 3)
    assert (prediction.predictions == expected.predictions).all()
    assert spy.calls
    assert not teacher_spy.calls
    assert not any("output_hidden_states" in call or "output_attentions" in call for call in spy.calls)


def test_evaluation_in_the_middle_of_training_gathers_logits_only(tmp_path, student, teacher):
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return accuracy(prediction)

    args = arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    DistillationTrainer(
        student, args, pad, rows(8), rows(8, seed=1), compute_metrics=metrics, teacher_model=teacher
    ).train()
    assert shapes == [(8, 3)] * 2


def test_every_component_is_logged(tmp_path, student, teacher):
    trainer, logs, _ = distil(tmp_path, student, teacher, max_steps=4, logging_steps=2)
    names = {"attention_loss", "hidden_loss", "embedding_loss", "prediction_loss"}
    assert len(logs) == 2
    assert all(names <= set(log) for log in logs)
    assert logs[1]["loss"] == pytest.approx(sum(logs[1][name] for name in names), rel=1e-5)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(sum(log["loss"] for log in logs) / 2)


class InTraining(TrainerCallback):
    """Looks at the student while it trains."""

    def __init__(self):
        self.projections, self.zeroed, self.norms, self.raise_at = [], [], [], None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        companions = companion_parameters(self.trainer).values()
        self.projections.append([p.detach().clone() for p in companions])
        gradients = torch.cat([p.grad.flatten() for p in (*model.parameters(), *companions) if p.grad is not None])
        self.norms.append(gradients.norm().item())

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.zeroed.append(all(p.grad is None for p in companion_parameters(self.trainer).values()))
        if state.global_step == self.raise_at:
            raise KeyboardInterrupt


def test_projections_change_and_are_clipped_and_zeroed_with_everything_else(tmp_path, student, teacher):
    callback = InTraining()
    _, _, gradients = distil(
        tmp_path, student, teacher, callbacks=[callback], max_steps=3, max_grad_norm=0.01, learning_rate=1.0
    )
    assert {name for name in gradients[0] if PROJECTIONS in name} == {
        f"{PROJECTIONS}.{loss}.{part}" for loss in ("hidden", "embedding") for part in ("weight", "bias")
    }
    assert callback.norms == pytest.approx([0.01] * 3, rel=1e-3)
    assert callback.zeroed == [True] * 3
    for first, last in zip(callback.projections[0], callback.projections[-1], strict=True):
        assert not torch.equal(first, last)


def is_clean(student, plain):
    return (
        set(student.state_dict()) == set(plain.state_dict())
        and not hasattr(student, PROJECTIONS)
        and student.config._attn_implementation == plain.config._attn_implementation
        and len(student._forward_hooks) == len(plain._forward_hooks)
    )


@pytest.mark.parametrize("raise_at", [None, 2])
def test_the_student_is_handed_back_clean(tmp_path, student, teacher, raise_at):
    plain, plain_teacher, callback = copy.deepcopy(student), copy.deepcopy(teacher), InTraining()
    callback.raise_at = raise_at
    changes = {"callbacks": [callback], "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    if raise_at is None:
        distil(tmp_path, student, teacher, **changes)
    else:
        with pytest.raises(KeyboardInterrupt):
            distil(tmp_path, student, teacher, **changes)
    assert is_clean(student, plain)
    assert is_clean(teacher, plain_teacher)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), plain_teacher.parameters(), strict=True))
    assert set(load_file(tmp_path / "checkpoint-1/model.safetensors")) == set(plain.state_dict())
    assert set(load_file(tmp_path / f"checkpoint-1/{PROJECTIONS_FILE}")) == {
        f"{loss}.{part}" for loss in ("hidden", "embedding") for part in ("weight", "bias")
    }
    _, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "checkpoint-1", output_loading_info=True
    )
    assert not any(loading.values())


@pytest.mark.parametrize("resume_at", [3, 5, 8])
def test_resume_is_bitwise_equal(tmp_path, student, teacher, resume_at):
    student = with_dropout(student)
    changes = {
        "train_dataset": rows(20),
        "max_steps": 10,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "train_sampling_strategy": "random",
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
    }
    whole, other = copy.deepcopy(student), copy.deepcopy(student)
    trainer, logs, _ = distil(tmp_path, whole, teacher, **changes)
    last = load_file(tmp_path / f"checkpoint-10/{PROJECTIONS_FILE}")
    args = copy.deepcopy(trainer.args)
    resumed = DistillationTrainer(other, args, pad, rows(20), teacher_model=teacher)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{resume_at}"))
    assert resumed.state.global_step == 10
    assert [log for log in resumed.state.log_history if "loss" in log] == logs
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), other.parameters(), strict=True))
    projections = load_file(tmp_path / f"checkpoint-10/{PROJECTIONS_FILE}")
    assert all(torch.equal(value, last[name]) for name, value in projections.items())


def test_a_checkpoint_without_projections_is_refused(tmp_path, student, teacher):
    trainer, _, _ = distil(tmp_path, student, teacher, max_steps=2, save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "checkpoint-1"
    path = checkpoint / PROJECTIONS_FILE
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="corrupt"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    path.unlink()
    with pytest.raises(ValueError, match="save_only_model"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_the_best_model_is_loaded_and_clean(tmp_path, student, teacher):
    plain = copy.deepcopy(student)
    trainer, _, _ = distil(
        tmp_path,
        student,
        teacher,
        max_steps=4,
        learning_rate=1.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    assert is_clean(student, plain)
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in student.state_dict().items())
    trainer.save_model(tmp_path / "final")
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == [
        "config.json",
        "model.safetensors",
        "training_args.bin",
    ]


class RunsOutOfMemory(TrainerCallback):
    """Fails once, as a too large batch would."""

    def __init__(self):
        self.sizes = []

    def on_step_end(self, args, state, control, **kwargs):
        self.sizes.append(state.train_batch_size)
        if state.train_batch_size > 4:
            raise RuntimeError("CUDA out of memory.")


def test_auto_find_batch_size(tmp_path, student, teacher):
    plain, callback = copy.deepcopy(student), RunsOutOfMemory()
    trainer, logs, gradients = distil(tmp_path, student, teacher, callbacks=[callback], auto_find_batch_size=True)
    assert callback.sizes[0] == 8
    assert callback.sizes[-1] <= 4
    assert is_clean(student, plain)
    assert logs[-1]["hidden_loss"] > 0
    groups = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(groups) == len(set(groups)) == len(list(plain.parameters())) + 4
    assert any(PROJECTIONS in name for name in gradients[-1])


def test_model_init_and_a_second_train_call(tmp_path, teacher):
    def model_init(trial=None):
        return build(BertForSequenceClassification, bert_config(2, 16), 2)

    args = arguments(tmp_path, max_steps=2, optim="adamw_torch", save_strategy="steps", save_steps=2)
    trainer = DistillationTrainer(
        args=args, data_collator=pad, train_dataset=rows(8), model_init=model_init, teacher_model=teacher
    )
    runs = []
    for _ in range(2):
        trainer.train()
        files = ("model.safetensors", PROJECTIONS_FILE)
        runs.append([(tmp_path / "checkpoint-2" / name).read_bytes() for name in files])
        assert is_clean(trainer.model, model_init())
    assert runs[0] == runs[1]


def test_hyperparameter_search(tmp_path, teacher):
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1),
        data_collator=pad,
        train_dataset=rows(8),
        eval_dataset=rows(8, seed=1),
        model_init=lambda trial: build(BertForSequenceClassification, bert_config(2, 16), 2),
        teacher_model=teacher,
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1)},
        n_trials=2,
        direction="minimize",
    )
    assert 1e-3 <= best.hyperparameters["learning_rate"] <= 1e-1


class FirstValues(TrainerCallback):
    """Collects a loss from the log of each step."""

    def __init__(self, loss):
        self.values, self.loss = [], loss

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.loss in logs:
            self.values.append(logs[self.loss])


@pytest.mark.parametrize(
    ("name", "choices", "loss"),
    [("temperature", [1.0, 5.0], "prediction_loss"), ("layer_mapping", ["top", "bottom"], "hidden_loss")],
)
def test_every_trial_reads_its_arguments(tmp_path, teacher, name, choices, loss):
    """Reference: trainers that are made with these arguments. Nothing else differs between the trials."""

    def trainer(**changes):
        collector = FirstValues(loss)
        made = DistillationTrainer(
            args=arguments(tmp_path, eval_strategy="steps", eval_steps=1, **changes),
            data_collator=pad,
            train_dataset=rows(8),
            eval_dataset=rows(8, seed=1),
            model_init=lambda trial=None: build(BertForSequenceClassification, bert_config(2, 16), 2),
            callbacks=[collector],
            teacher_model=teacher,
        )
        return made, collector.values

    searched, values = trainer()
    searched.hyperparameter_search(
        lambda trial: {name: trial.suggest_categorical(name, choices)},
        n_trials=2,
        direction="minimize",
        sampler=optuna.samplers.GridSampler({name: choices}, seed=0),
    )
    expected = []
    for choice in choices:
        fresh, expected_values = trainer(**{name: choice})
        fresh.train()
        expected += expected_values
    assert len(set(values)) == 2
    assert sorted(values) == pytest.approx(sorted(expected))


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "adagrad"])
@pytest.mark.parametrize("scheduler", ["linear", "cosine", "reduce_lr_on_plateau"])
def test_optimizers_and_schedulers(tmp_path, student, teacher, optim, scheduler):
    plain = copy.deepcopy(student)
    _, logs, _ = distil(
        tmp_path,
        student,
        teacher,
        optim=optim,
        lr_scheduler_type=scheduler,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_loss",
        learning_rate=1e-3,
    )
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert is_clean(student, plain)


def test_a_users_own_optimizer_trains_what_it_holds(tmp_path, student, teacher):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before, callback = copy.deepcopy(student.state_dict()), InTraining()
    callback.trainer = DistillationTrainer(
        student,
        arguments(tmp_path, max_steps=2),
        pad,
        rows(8),
        callbacks=[callback],
        optimizers=(optimizer, None),
        teacher_model=teacher,
    )
    callback.trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    for first, last in zip(callback.projections[0], callback.projections[-1], strict=True):
        assert not torch.equal(first, last)


def test_torch_compile_changes_nothing(tmp_path, student, teacher):
    plain = distil(tmp_path, copy.deepcopy(student), teacher)
    compiled = distil(tmp_path, student, teacher, torch_compile=True, torch_compile_backend="aot_eager")
    strip = [{name.removeprefix("_orig_mod."): g for name, g in step.items()} for step in compiled[2]]
    assert_same_run((compiled[0], compiled[1], strip), plain)
    compiled[0].save_model(tmp_path / "final")
    assert set(load_file(tmp_path / "final/model.safetensors")) == set(student.state_dict())


def test_streams_and_unlabelled_rows(tmp_path, student, teacher):
    plain = copy.deepcopy(student)
    unlabelled = rows(16).remove_columns("labels")
    stream = distil(tmp_path, student, teacher, train_dataset=unlabelled.to_iterable_dataset(), max_steps=2)
    listed = distil(tmp_path, plain, teacher, train_dataset=unlabelled, max_steps=2)
    assert_same_run(stream, listed)


def test_the_task_loss_alone_needs_no_teacher(tmp_path, student):
    plain = copy.deepcopy(student)
    _, (log,), _ = distil(tmp_path, student, None, losses=[TaskLoss()])
    trainer = Trainer(plain, arguments(tmp_path), pad, rows(8))
    trainer.train()
    assert log["loss"] == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_reaches_the_task_loss(tmp_path, student, teacher, smoothing):
    plain = copy.deepcopy(student)
    _, (log,), _ = distil(tmp_path, student, teacher, losses=[TaskLoss()], label_smoothing_factor=smoothing)
    trainer = Trainer(plain, arguments(tmp_path, label_smoothing_factor=smoothing), pad, rows(8))
    trainer.train()
    assert log["task_loss"] == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-6)


def test_a_distilbert_student_of_a_bert_teacher_that_reads_token_types(tmp_path, teacher):
    config = DistilBertConfig(
        vocab_size=VOCAB,
        dim=16,
        n_layers=2,
        n_heads=4,
        hidden_dim=32,
        id2label=teacher.config.id2label,
        pad_token_id=0,
    )
    student = build(DistilBertForSequenceClassification, config)
    data = rows(8)
    data = data.add_column("token_type_ids", [[0] + [1] * (len(row) - 1) for row in data["input_ids"]])
    spy = ForwardSpy(teacher)
    teacher.base_model.register_forward_pre_hook(spy, with_kwargs=True)
    trainer, logs, _ = distil(tmp_path, student, teacher, train_dataset=data)
    assert all("token_type_ids" in call for call in spy.calls)
    assert logs[0]["attention_loss"] > 0
    trainer.evaluate(data)
    assert trainer.predict(data).predictions.shape == (8, 3)


def test_projections_start_at_the_least_squares_fit(tmp_path, student, teacher):
    """Reference: LAPACK over the real tokens of all rows; LayerNorm leaves one direction of x empty, hence rcond."""
    data, callback = rows(64), InTraining()
    states = {"x": [], "y": []}
    with torch.no_grad():
        for row in data:
            batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
            student_states = student.eval()(**batch, output_hidden_states=True).hidden_states
            teacher_states = teacher(**batch, output_hidden_states=True).hidden_states
            for m, g in ((1, 2), (2, 4)):
                states["x"].append(student_states[m][0].double())
                states["y"].append(teacher_states[g][0].double())
    x, y = torch.cat(states["x"]), torch.cat(states["y"])
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    expected = x @ torch.linalg.lstsq(x, y, rcond=1e-4, driver="gelsd").solution
    distil(tmp_path, student, teacher, train_dataset=data, callbacks=[callback])
    weight, bias = callback.projections[0][:2]
    torch.testing.assert_close(x[:, :-1] @ weight.double().T + bias, expected, rtol=1e-2, atol=1e-2)


def test_a_teacher_by_path_and_what_is_refused_there(tmp_path, student, teacher):
    teacher.save_pretrained(tmp_path / "teacher")
    _, logs, _ = distil(tmp_path / "run", student, str(tmp_path / "teacher"))
    assert logs[0]["hidden_loss"] > 0
    teacher.base_model.save_pretrained(tmp_path / "headless")
    config = json.loads((tmp_path / "headless/config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "headless/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks weights for .*classifier"):
        distil(tmp_path / "run", student, str(tmp_path / "headless"))
    config["architectures"] = ["MyOwnModel"]
    (tmp_path / "headless/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'MyOwnModel', unknown to transformers"):
        distil(tmp_path / "run", student, str(tmp_path / "headless"))


def test_plain_training_arguments_with_a_teacher_are_refused(tmp_path, student, teacher):
    with pytest.raises(TypeError, match="DistillationArguments"):
        DistillationTrainer(student, TrainingArguments(str(tmp_path)), teacher_model=teacher)


def test_an_empty_data_set_is_refused(tmp_path, student, teacher):
    empty = Dataset.from_dict({"input_ids": [], "attention_mask": [], "labels": []})
    with pytest.raises(ValueError, match="empty"):
        distil(tmp_path, student, teacher, train_dataset=empty)


def recorded_dtypes(teacher):
    """The data types of what the teacher's first layer returns from now on."""
    seen = []
    teacher.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    return seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_teacher_in_lower_precision_says_what_it_changes(tmp_path, student, teacher, dtype):
    full = distil(tmp_path / "full", copy.deepcopy(student), copy.deepcopy(teacher), max_steps=2)
    seen, weights = recorded_dtypes(teacher), copy.deepcopy(teacher.state_dict())
    trainer, logs, _ = distil(tmp_path / "low", student, teacher, max_steps=2, teacher_dtype=dtype)
    assert seen[-1] == getattr(torch, dtype)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    errors = {name: value for name, value in trainer.state.log_history[0].items() if "dtype_error" in name}
    assert set(errors) == {f"{name}_loss_dtype_error" for name in ("attention", "hidden", "embedding", "prediction")}
    for name, error in errors.items():
        loss = name.removesuffix("_dtype_error")
        assert 0 < error < 0.03
        assert abs(logs[0][loss] / full[1][0][loss] - 1) == pytest.approx(error, rel=0.05, abs=1e-6)


CACHED = {"teacher_cache_gb": 1.0, "loss_type": ["attention", "hidden", "embedding"], "max_steps": 6}


@pytest.mark.parametrize("bf16", [False, True])
def test_cached_activations_train_as_the_live_teacher_does(tmp_path, student, teacher, bf16):
    options = CACHED | {"bf16": bf16, "per_device_train_batch_size": 4}
    live = distil(tmp_path / "live", copy.deepcopy(student), teacher, **options | {"teacher_cache_gb": 0})
    data, calls = rows(8), []
    teacher.base_model.register_forward_hook(lambda *_: calls.append(1))
    cached = distil(tmp_path / "cached", copy.deepcopy(student), teacher, train_dataset=data, **options)
    assert len(calls) == 5  # projections 2, layout, one pass of 8 rows, check in the first step
    assert cached[0].train_dataset is data
    assert_same_run(cached, live, rtol=2e-2)
    calls.clear()
    again = distil(tmp_path / "again", copy.deepcopy(student), teacher, **options)
    assert len(calls) == 3  # what another run has cached is read
    assert_same_run(again, cached, rtol=1e-9)


def test_cached_activations_know_their_teacher_and_rows(tmp_path, student, teacher):
    options, folder = dict(CACHED), Path(datasets.config.HF_DATASETS_CACHE, "teacher_activations")
    for step, change in enumerate(("nothing", "teacher", "rows", "losses", "short"), start=1):
        if change == "teacher":
            teacher.base_model.embeddings.word_embeddings.weight.data[3] += 1
        elif change == "losses":
            options["loss_type"] = ["hidden"]
        elif change == "short":  # not worthwhile, but what is there is read
            options["max_steps"] = 1
        data = rows(8, seed=int(change in ("rows", "losses", "short")))
        distil(tmp_path, copy.deepcopy(student), teacher, train_dataset=data, **options)
        assert len(list(folder.iterdir())) == min(step, 4)


def test_cached_activations_that_do_not_fit_are_left_out(tmp_path, student, teacher, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    distil(tmp_path, student, teacher, **CACHED | {"teacher_cache_gb": 1e-6})
    assert "bytes a token" in caplog.text
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("records*"))


def test_a_collator_that_drops_the_row_numbers_is_refused(tmp_path, student, teacher):
    def collate(features):
        return {name: values for name, values in pad(features).items() if name in ("input_ids", "attention_mask")}

    with pytest.raises(ValueError, match="lacks the column teacher_row"):
        distil(tmp_path, student, teacher, data_collator=collate, **CACHED)


def test_tokens_that_change_from_epoch_to_epoch_are_refused(tmp_path, student, teacher):
    def collate(features):
        batch = pad(features)
        batch["input_ids"] = torch.randint_like(batch["input_ids"], 1, VOCAB)
        return batch

    with pytest.raises(ValueError, match="teacher_cache_gb=0"):
        distil(tmp_path, student, teacher, data_collator=collate, **CACHED)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [["attention", "hidden", "embedding", "prediction"], ["relation", "prediction"]])
def test_compiled_it_is_the_same_run_for_batches_of_many_lengths(tmp_path, student, teacher, losses):
    torch._dynamo.reset()
    counters.clear()
    options = {"loss_type": losses, "max_steps": 10, "per_device_train_batch_size": 2, "train_dataset": rows(20)}
    plain = distil(tmp_path / "plain", copy.deepcopy(student), copy.deepcopy(teacher), **options)
    compiled = distil(tmp_path / "compiled", student, teacher, torch_compile=True, **options)
    assert_same_run(compiled, plain)
    assert 0 < counters["stats"]["unique_graphs"] <= 10, counters  # student, teacher and projections, by size and free


def test_a_teacher_of_which_layers_are_left_out_is_whole_and_in_full_precision_afterwards(tmp_path, student, teacher):
    seen, weights = recorded_dtypes(teacher), copy.deepcopy(teacher.state_dict())
    steps = {"loss_type": ["hidden"], "layer_mapping": "bottom"}, {"loss_type": ["prediction"]}
    for step in steps:  # the first runs two of the teacher's four layers
        distil(tmp_path, student, teacher, teacher_dtype="bfloat16", **step)
        assert seen[-1] == torch.bfloat16
        assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert [name for name, _ in teacher.bert.encoder.named_children()] == ["layer"]
