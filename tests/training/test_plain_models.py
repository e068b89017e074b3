"""Whoever calls, copies or saves student or teacher meets the plain model, in callbacks and after training."""

import copy
import io
import pickle

import pytest
import torch
from conftest import pad, rows, word_tokenizer
from extensions import ScaledLogits
from safetensors.torch import load_file
from short_runs import arguments, companion_parameters, distil
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hf_tinybert import DistillationTrainer, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.formats.onnx_export import export_onnx

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]
EVENTS = [name for name in EVENTS if name not in ("on_init_end", "on_push_begin")]
BATCH = {name: values for name, values in pad(rows(4, seed=3).to_list()).items() if name != "labels"}
EVERYTHING = {  # every event of Trainer happens
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "teacher_dtype": "bfloat16",  # whose errors are logged in the first step
}


def looks(model):
    """What a model looks like from outside, apart from the values of its weights."""
    parts = dict(model.named_modules())
    return {
        "state": list(model.state_dict()),
        "parameters": model.num_parameters(),
        "modules": {name: type(part) for name, part in parts.items()},
        "hooks": {name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in parts.items()},
        "attention": model.config._attn_implementation,
        "attributes": {name: {*vars(part)} - {"_is_accelerate_prepared"} for name, part in parts.items()},
    }


def differing(look, expected):
    return {name: (look[name], expected[name]) for name in look if look[name] != expected[name]}


def plain_call(model):
    """The outputs of a forward pass, which leaves the mode of the model alone."""
    training = model.training
    with torch.no_grad():
        outputs = model.eval()(**BATCH)
    model.train(training)
    return outputs


class Looker(TrainerCallback):
    """At every event looks at the models that callbacks and closures have."""

    def __init__(self, *others):
        self.seen, self.others = {}, others

    def look(self, event, model):
        models = (model, *self.others)
        self.seen.setdefault(event, []).append(([looks(m) for m in models], [list(plain_call(m)) for m in models]))


def _look_at(event):
    def look(self, args, state, control, model=None, **kwargs):
        assert model is self.trainer.model
        self.look(event, model)

    return look


for _event in EVENTS:
    setattr(Looker, _event, _look_at(_event))


@pytest.mark.parametrize("changes", [{}, {"padding_free": True, "loss_type": ["hidden"], "layer_mapping": "bottom"}])
def test_callbacks_meet_plain_models_at_every_event(tmp_path, student, teacher, changes):
    """Also the teacher, of which the second run leaves out two layers."""
    plain = [looks(model) for model in (student, teacher)]
    looker = Looker(teacher)
    trainer, _, gradients = distil(tmp_path, student, teacher, callbacks=[looker], **EVERYTHING | changes)
    trainer.predict(rows(4))
    assert set(looker.seen) == set(EVENTS)
    for event, states in looker.seen.items():
        for state, outputs in states:
            for look, expected in zip(state, plain, strict=True):
                assert differing(look, expected) == {}, event
            assert outputs == [["logits"], ["logits"]], event
    assert any("distillation_projections" in name for name in gradients[0])  # which were there to be trained


class Acts(TrainerCallback):
    """Does what users' callbacks do with the student, in the middle of training."""

    def __init__(self, folder, act):
        self.folder, self.act, self.count = folder, act, 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.act(self, model)
        self.count += 1


def save(callback, model):
    model.save_pretrained(callback.folder / "mine")
    assert set(load_file(callback.folder / "mine/model.safetensors")) == set(model.state_dict())
    loaded, loading = AutoModelForSequenceClassification.from_pretrained(
        callback.folder / "mine", output_loading_info=True
    )
    assert not any(loading.values())
    torch.testing.assert_close(plain_call(loaded).logits, plain_call(model).logits, rtol=0, atol=0)


def average(callback, model):
    """An exponential moving average, as callbacks keep it."""
    if callback.count == 0:
        callback.average = copy.deepcopy(model)
    for mean, parameter in zip(callback.average.parameters(), model.parameters(), strict=True):
        mean.data.lerp_(parameter.data, 0.5)
    torch.save(callback.average, io.BytesIO())
    assert looks(callback.average) == looks(model)


def ask_for_states(callback, model):
    """transformers' hooks are then on the student when the next step begins."""
    with torch.no_grad():
        outputs = model(**BATCH, output_hidden_states=True, output_attentions=False)
    assert len(outputs.hidden_states) == 3


def evaluate(callback, model):
    assert set(callback.trainer.evaluate(rows(4, seed=2))) >= {"eval_loss"}
    assert callback.trainer.predict(rows(4, seed=2)).predictions.shape == (4, 3)
    callback.trainer.save_model(callback.folder / "mine")
    assert set(load_file(callback.folder / "mine/model.safetensors")) == set(model.state_dict())


def compute_loss(callback, model):
    """Trainer's own, although the model is in train mode."""
    batch = pad(rows(4).to_list())
    loss, outputs = callback.trainer.compute_loss(model.train(), dict(batch), return_outputs=True)
    assert list(outputs) == ["loss", "logits"]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]))


@pytest.mark.parametrize(
    "act",
    [save, evaluate, *(pytest.param(act, marks=pytest.mark.slow) for act in (average, ask_for_states, compute_loss))],
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_callbacks_do_with_the_student_changes_no_step(tmp_path, student, teacher, act, compiled):
    run = {"max_steps": 3, "learning_rate": 0.01}
    run |= {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    losses = [HiddenLoss(), ScaledLogits(), TaskLoss()]
    *_, expected = distil(tmp_path / "alone", copy.deepcopy(student), teacher, copy.deepcopy(losses), **run)
    acting = Acts(tmp_path, act)
    *_, gradients = distil(tmp_path / "run", student, teacher, losses, callbacks=[acting], **run)
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-8)
    assert acting.count == 3


@pytest.mark.slow
def test_export_in_a_callback(tmp_path, student, teacher):
    def export(callback, model):
        assert export_onnx(model, word_tokenizer(tmp_path), tmp_path / "onnx").is_file()

    acting = Acts(tmp_path, export)
    distil(tmp_path / "run", student, teacher, callbacks=[acting])
    assert acting.count == 1


class Stops(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        raise self.error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("stop")])
@pytest.mark.parametrize("inside", [False, True])
def test_student_and_teacher_are_handed_back_as_they_came(tmp_path, student, teacher, error, inside):
    """`inside` raises in the middle of a forward pass of the student; teacher and student are in unusual states."""
    if inside and error is None:
        pytest.skip("nothing to raise")
    student.eval()
    teacher.train().bert.embeddings.requires_grad_(False)
    for model in (student, teacher):
        model.config.problem_type = "single_label_classification"  # which training decides otherwise
    plain = [looks(model) | details(model) for model in (student, teacher)]
    callbacks = [] if inside or error is None else [Stops(error)]
    handle = student.classifier.register_forward_hook(_raising(error)) if inside else None
    run = {"callbacks": callbacks, "max_steps": 3, "teacher_dtype": "bfloat16"}
    if error is None:
        distil(tmp_path, student, teacher, **run)
    else:
        with pytest.raises(type(error)):
            distil(tmp_path, student, teacher, **run)
    if handle:
        handle.remove()
    for model, expected in zip((student, teacher), plain, strict=True):
        assert differing(looks(model) | details(model), expected) == {}
        copies = pickle.loads(pickle.dumps(model)), copy.deepcopy(model), saved_and_loaded(model)
        for copied in copies:
            torch.testing.assert_close(plain_call(copied).logits, plain_call(model).logits, rtol=0, atol=0)


def _raising(error):
    def hook(module, args, output):
        if module.training or torch.is_grad_enabled():
            raise error

    return hook


def details(model):
    config = model.config.to_dict()
    config = {name: config[name] for name in config.keys() - {"distillation", "use_cache"}}  # the latter is Trainer's
    parameters = [(name, p.requires_grad, p.dtype) for name, p in model.named_parameters()]
    return {"config": config, "kinds": parameters, "modes": [part.training for part in model.modules()]}


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_hooks_that_the_user_asked_for_before_stay(tmp_path, student, teacher):
    with torch.no_grad():
        before = student(**BATCH, output_hidden_states=True).hidden_states
    plain = looks(student)
    distil(tmp_path, student, teacher, [HiddenLoss(), PredictionLoss()], learning_rate=0.0)
    assert looks(student) == plain
    with torch.no_grad():
        after = student(**BATCH, output_hidden_states=True).hidden_states
    assert len(after) == len(before) == 3


def test_a_second_training_goes_on_with_the_same_projections(tmp_path, student, teacher):
    trainer = DistillationTrainer(student, arguments(tmp_path), pad, rows(8), teacher_model=teacher)
    kept = []

    class Keep(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            kept.append(companion_parameters(trainer))

    trainer.add_callback(Keep)
    for _ in range(2):
        trainer.train()
    assert trainer.companions == {}
    assert all(kept[0][name] is kept[1][name] for name in kept[1])
