"""Layers on real tokens alone against the same batch padded, for every architecture that is promised."""

import copy

import datasets
import pytest
import torch
from conftest import VOCAB, bert_config, build, pad, rows
from short_runs import assert_same_run, distil
from tiny_architectures import ALL, tiny_model
from torch import nn
from transformers import BertForSequenceClassification, TrainerCallback

from hf_tinybert import DistillationTrainer
from hf_tinybert.models.architectures import architecture_of, model_types
from hf_tinybert.models.capture import ActivationCapture
from hf_tinybert.models.padding_free import RealTokens

MODEL_TYPES = [name for name in model_types("computes_tokens_separately") if name in ALL]
LENGTHS = [3, 9, 1, 7]
INTERMEDIATE = ["attention", "hidden", "embedding"]


def batch(lengths=LENGTHS, side="right"):
    length = max(lengths)
    mask = torch.stack([(torch.arange(length) < n).long() for n in lengths])
    ids = torch.randint(3, VOCAB, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return (
        {"input_ids": ids, "attention_mask": mask}
        if side == "right"
        else {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
    )


def forward(model, inputs, padding_free):
    capture = ActivationCapture(model, range(1, 4), range(4), values=True, padding_free=padding_free)
    with capture.enabled():
        outputs = model(**inputs, **capture.forward_arguments)
    return capture.collect(outputs, inputs["attention_mask"])


def vectors(activations):
    """What a loss may read of each token, (B, S, …)."""
    per_head = [x.transpose(1, 2) for scores in activations.attentions for x in scores.vectors]
    return [*activations.hidden_states, *per_head]


@pytest.mark.parametrize(
    ("name", "implementation", "side"),
    [*((name, "sdpa", "right") for name in MODEL_TYPES), ("bert", "eager", "left"), ("albert", "eager", "right")],
)
def test_activations_and_gradients_are_those_of_the_padded_batch(name, implementation, side):
    model, inputs = tiny_model(name).double(), batch(side=side)
    model.set_attn_implementation(implementation)
    real, results = inputs["attention_mask"].bool(), []
    for padding_free in (False, True):
        activations = forward(model, inputs, padding_free)
        values = [activations.logits, *(x[real] for x in vectors(activations))]
        generator = torch.Generator().manual_seed(1)
        drawn = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in values]
        model.zero_grad()
        sum((x * weights).sum() for x, weights in zip(values, drawn, strict=True)).backward()
        results.append([values, [p.grad for p in model.parameters() if p.grad is not None]])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)
    padding = ~real
    padding[:, 0] = False  # computed, for heads that read it
    computed = vectors(activations)
    if name == "roberta-prelayernorm":
        computed.pop(3)  # its base model normalises the padded states
    assert not any(x[padding].any() for x in computed)


def linear_rows(model):
    """The shapes, without the width, of the inputs of the encoder's linear maps from now on."""
    shapes = []
    for module in architecture_of(model.config).encoder(model).modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, output: shapes.append((*args[0].shape[:-1],)))
    return shapes


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_every_linear_map_of_the_layers_sees_the_real_tokens(name):
    model = tiny_model(name)
    shapes = linear_rows(model)
    forward(model, batch(), padding_free=True)
    assert set(shapes) == {(1, 20)}
    assert len(shapes) >= 3 * 6


def test_a_batch_padding_free_or_mask_is_left_as_it_is():
    model, inputs = tiny_model("bert"), batch([5, 5])
    shapes, expected = linear_rows(model), forward(model, inputs, padding_free=False).logits
    assert torch.equal(forward(model, inputs, padding_free=True).logits, expected)
    with ActivationCapture(model, padding_free=True).enabled():
        assert torch.equal(model(input_ids=inputs["input_ids"]).logits, expected)
    assert set(shapes) == {(2, 5)}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_row_of_padding_alone(implementation):
    model, inputs = tiny_model("bert"), batch([4, 0, 6])
    model.set_attn_implementation(implementation)
    packed, expected = (forward(model, inputs, padding_free) for padding_free in (True, False))
    assert torch.isfinite(packed.logits).all()
    torch.testing.assert_close(packed.logits[[0, 2]], expected.logits[[0, 2]])


def test_packing_and_padding():
    mask = batch()["attention_mask"]
    tokens, x = RealTokens(mask), torch.randn(4, 9, 2, 5) * mask[:, :, None, None]
    assert torch.equal(tokens.pack(x)[0], torch.cat([row[:n] for row, n in zip(x, LENGTHS, strict=True)]))
    assert torch.equal(tokens.pad(tokens.pack(x)), x)
    assert torch.equal(tokens.pad_heads(tokens.pack(x).transpose(1, 2)), x.transpose(1, 2))


STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
STEPS |= {"eval_strategy": "steps", "eval_steps": 1, "train_dataset": rows(24)}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": [*INTERMEDIATE, "prediction", "task"], "train_sampling_strategy": "random"},
        {"activation_checkpointing": True},
        {"loss_type": INTERMEDIATE, "layer_mapping": "bottom"},  # the teacher's upper layers do not run
        {"loss_type": ["prediction"]},  # nobody reads the attention
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_a_run_is_that_of_the_padded_batches(tmp_path, student, teacher, changes):
    padded, packed = copy.deepcopy(student), copy.deepcopy(student)
    expected = distil(tmp_path, padded, teacher, **STEPS, **changes)
    shapes = linear_rows(teacher), linear_rows(packed)
    result = distil(tmp_path, packed, teacher, padding_free=True, **STEPS, **changes)
    assert [{batch for batch, _ in seen} for seen in shapes] == [{1}, {1}]  # evaluation included
    assert_same_run(result, expected)
    torch.testing.assert_close(dict(packed.named_parameters()), dict(padded.named_parameters()))
    histories = [trainer.state.log_history for trainer, _, _ in (result, expected)]
    losses, expected_losses = ([log["eval_loss"] for log in logs if "eval_loss" in log] for logs in histories)
    assert len(losses) == 3
    assert losses == pytest.approx(expected_losses, rel=1e-5)


def test_two_teachers(tmp_path, student, teacher):
    teachers = [teacher, build(BertForSequenceClassification, bert_config(6, 48), 7).eval()]
    runs = [distil(tmp_path, copy.deepcopy(student), teachers, padding_free=on) for on in (True, False)]
    assert_same_run(*runs)


def test_bfloat16_is_close(tmp_path, student, teacher):
    changes = {"loss_type": [*INTERMEDIATE, "prediction", "task"], "bf16": True}
    runs = [distil(tmp_path, copy.deepcopy(student), teacher, padding_free=on, **changes) for on in (True, False)]
    (_, (log,), (gradients,)), (_, (expected,), (wanted,)) = runs
    assert log["loss"] == pytest.approx(expected["loss"], rel=0.03)
    flat = [torch.cat([g.flatten() for g in step.values()]) for step in (gradients, wanted)]
    assert torch.nn.functional.cosine_similarity(*flat, 0) > 0.99


def test_cached_activations_are_those_of_a_padded_run(tmp_path, student, teacher):
    changes = {"loss_type": INTERMEDIATE, "max_steps": 2, "data_collator": pad}
    live = distil(tmp_path, copy.deepcopy(student), teacher, **changes)
    for padding_free in (True, False):  # the second run reads the cache of the first
        cached = distil(
            tmp_path, copy.deepcopy(student), teacher, padding_free=padding_free, teacher_cache_gb=1.0, **changes
        )
        assert_same_run(cached, live, rtol=3e-2, atol=1e-5)
    assert len(list((datasets.config.HF_DATASETS_CACHE / "teacher_activations").iterdir())) == 1


def test_resume_is_bitwise_equal(tmp_path, student, teacher):
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    changes = {"train_dataset": rows(20), "max_steps": 6, "per_device_train_batch_size": 4, "optim": "adamw_torch"}
    changes |= {"save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random", "padding_free": True}
    whole, other = copy.deepcopy(student), copy.deepcopy(student)
    trainer, logs, _ = distil(tmp_path, whole, teacher, **changes)
    resumed = DistillationTrainer(other, copy.deepcopy(trainer.args), pad, rows(20), teacher_model=teacher)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [log for log in resumed.state.log_history if "loss" in log] == logs
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), other.parameters(), strict=True))


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return hooks, model.config._attn_implementation


@pytest.mark.parametrize("interrupted", [False, True])
def test_models_are_handed_back_as_they_came(tmp_path, student, teacher, interrupted):
    distil(tmp_path, student, teacher)  # transformers leaves hooks of its own
    before = state(student), state(teacher)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            distil(tmp_path, student, teacher, padding_free=True, callbacks=[Interrupt()])
    else:
        distil(tmp_path, student, teacher, padding_free=True)
    assert (state(student), state(teacher)) == before
    assert before[0][1] == "sdpa"
    shapes = linear_rows(student)
    student(**batch())
    assert set(shapes) == {(4, 9)}


@pytest.mark.parametrize(
    ("name", "role"),
    [*((name, "teacher") for name in sorted(ALL.keys() - set(MODEL_TYPES))), ("modernbert", "student")],
)
def test_other_architectures_are_refused(tmp_path, student, name, role):
    other = tiny_model(name)
    before, seen = state(student), []
    other.register_forward_pre_hook(lambda *call: seen.append(call))
    models = (other, copy.deepcopy(other)) if role == "student" else (student, other)
    with pytest.raises(
        ValueError, match=f"padding_free does not work with {type(other).__name__}.*padding_free=False"
    ):
        distil(tmp_path, *models, padding_free=True, loss_type=["hidden"])
    assert not seen
    assert state(student) == before
