"""Nothing trains in silence: what cannot work is refused before or at the first step, with what to change."""

import copy

import pytest
import torch
from conftest import VOCAB, bert_config, build, pad, rows, word_tokenizer
from short_runs import arguments, distil
from transformers import (
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    TrainingArguments,
)
from transformers.masking_utils import AttentionMaskInterface

from hf_tinybert import (
    AttentionLoss,
    DistillationLoss,
    DistillationTrainer,
    HiddenLoss,
    PredictionLoss,
    TaskLoss,
    cache_logits,
)
from hf_tinybert.models import capture


def classifier(layers=2, width=16, seed=5, **changes):
    return build(BertForSequenceClassification, bert_config(layers, width, **changes), seed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 2}, "2 attention heads and the teacher 4.*num_attention_heads=4"),
        ({"layers": 5}, "5 layers, the teacher 4.*num_hidden_layers"),
        ({"vocab_size": VOCAB + 1}, "vocab_size is 51 and the teacher's 50.*create_student"),
        ({"id2label": {0: "positive", 1: "negative", 2: "neutral"}}, "labels are .*id2label"),
        ({"num_labels": 2, "id2label": None, "label2id": None}, "labels are .*id2label"),
        ({"problem_type": "multi_label_classification"}, "logits are several labels, the teacher's classes"),
        ({"output_attentions": True}, "output_attentions of the student's config to False"),
        ({"output_hidden_states": True}, "output_hidden_states of the student's config to False"),
        ({"return_dict": False}, "return_dict of the student's config to True"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_students_that_do_not_fit(tmp_path, teacher, change, message):
    if change.get("id2label", 0) is None:
        student = BertForSequenceClassification(bert_config(2, 16, **{**change, "id2label": {0: "no", 1: "yes"}}))
    else:
        student = classifier(**change)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        DistillationTrainer(student, arguments(tmp_path), pad, rows(8), teacher_model=teacher)


@pytest.mark.parametrize("name", ["attention", "attention_kl", "minilm"])
def test_other_head_counts_are_refused_with_what_to_do(tmp_path, teacher, name):
    args = arguments(tmp_path, loss_type=[name])
    with pytest.raises(ValueError, match=f"{name} loss .*drop '{name}'.*'relation' loss.*attention_heads='mean'"):
        DistillationTrainer(classifier(heads=2), args, pad, rows(8), teacher_model=teacher)


def test_mean_heads_take_whole_groups_alone(tmp_path, teacher):
    args = arguments(tmp_path, attention_heads="mean")
    with pytest.raises(ValueError, match=r"3 attention heads and the teacher 4.*divisor of 4"):
        DistillationTrainer(classifier(width=18, heads=3), args, pad, rows(8), teacher_model=teacher)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_other_head_counts_train_by_their_mean(tmp_path, teacher, heads):
    changes = {"loss_type": ["attention"], "attention_heads": "mean", "max_steps": 5, "learning_rate": 0.05}
    _, logs, _ = distil(tmp_path, classifier(heads=heads), teacher, **changes)
    assert logs[-1]["attention_loss"] < logs[0]["attention_loss"]


def test_one_sided_label_names_are_taken_on_trust_and_said(tmp_path, teacher, caplog):
    student = classifier(id2label={i: f"LABEL_{i}" for i in range(3)})
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        DistillationTrainer(student, arguments(tmp_path), pad, rows(8), teacher_model=teacher)
    finally:
        logging.disable_propagation()
    assert "taken on trust" in caplog.text


@pytest.mark.parametrize("mapping", ["3,6", [(1, 5)], [(3, 1)], "sideways"])
def test_layer_mappings_out_of_range(tmp_path, student, teacher, mapping):
    with pytest.raises(ValueError, match="layer_mapping"):
        DistillationTrainer(student, arguments(tmp_path, layer_mapping=mapping), pad, rows(8), teacher_model=teacher)


def test_models_and_losses_that_cannot_distil(tmp_path, student, teacher):
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="teacher_model is the student itself"):
        DistillationTrainer(student, args, pad, rows(8), teacher_model=student)
    with pytest.raises(TypeError, match="teacher must be a transformers PreTrainedModel"):
        DistillationTrainer(student, args, pad, rows(8), teacher_model=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="need a teacher"):
        DistillationTrainer(student, args, pad, rows(8), losses=[HiddenLoss()])
    with pytest.raises(ValueError, match="same name"):
        DistillationTrainer(student, args, pad, rows(8), teacher_model=teacher, losses=[HiddenLoss(), HiddenLoss()])


def test_a_teacher_with_nan_weights(tmp_path, student, teacher):
    teacher.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight 'bert.encoder.layer.1.output.dense.weight' holds NaN"):
        DistillationTrainer(student, arguments(tmp_path), pad, rows(8), teacher_model=teacher)


@pytest.mark.parametrize("losses", [None, [AttentionLoss()], [PredictionLoss()]])
def test_a_teacher_that_overflows(tmp_path, student, teacher, losses):
    def overflow(module, args, output):
        return output * float("inf")

    teacher.bert.encoder.layer[0].output.dense.register_forward_hook(overflow)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        distil(tmp_path, student, teacher, losses)


@pytest.mark.parametrize("name", ["activation_checkpointing_kwargs", "on the model"])
def test_reentrant_checkpointing(tmp_path, student, teacher, name):
    if name == "on the model":
        student.activation_checkpointing_enable({"use_reentrant": True})
        changes = {}
    else:
        changes = {"activation_checkpointing": True, name: {"use_reentrant": True}}
    with pytest.raises(ValueError, match="use_reentrant"):
        distil(tmp_path, student, teacher, **changes)


def test_captures_that_carry_no_gradient(tmp_path, student, teacher, monkeypatch):
    attention_of = capture._query_key_attention

    def detaching(base):
        attention = attention_of(base)

        def detached(*args, **kwargs):
            output, (query, key, *rest) = attention(*args, **kwargs)
            return output, (query.detach(), key.detach(), *rest)

        return detached

    monkeypatch.setattr(capture, "_query_key_attention", detaching)
    monkeypatch.delitem(capture.ALL_ATTENTION_FUNCTIONS._global_mapping, "query_key_sdpa", raising=False)
    try:
        with pytest.raises(RuntimeError, match="attention scores of layer 1 carries no gradient"):
            distil(tmp_path, student, teacher)
    finally:
        capture.ALL_ATTENTION_FUNCTIONS._global_mapping.pop("query_key_sdpa")


def test_an_attention_capture_that_comes_back_empty(tmp_path, student, teacher, monkeypatch):
    monkeypatch.setattr(capture, "_query_key_implementation", lambda base: base)  # plain sdpa returns no attentions
    with pytest.raises(RuntimeError, match="4 layers but 0 attention scores were captured"):
        distil(tmp_path, student, teacher)


def test_a_mask_function_that_was_lost(tmp_path, student, teacher, monkeypatch):
    distil(tmp_path, copy.deepcopy(student), teacher)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, "query_key_sdpa")
    with pytest.raises(RuntimeError, match="lost its mask function"):
        distil(tmp_path, student, teacher)


def test_an_attention_mask_that_was_lost(tmp_path, student, teacher):
    def without_mask(features):
        batch = pad(features)
        del batch["attention_mask"]
        return batch

    with pytest.raises(ValueError, match="padding but no attention_mask"):
        distil(tmp_path, student, teacher, [PredictionLoss()], data_collator=without_mask)


def test_a_teacher_column_that_was_dropped(tmp_path, student, teacher):
    data = rows(8)
    data = data.add_column("token_type_ids", [[0] * len(row) for row in data["input_ids"]])

    def without_token_types(features):
        return pad([{k: v for k, v in feature.items() if k != "token_type_ids"} for feature in features])

    with pytest.raises(ValueError, match=r"teacher takes \['token_type_ids'\]"):
        distil(tmp_path, student, teacher, train_dataset=data, data_collator=without_token_types)


def test_missing_labels_and_missing_logits(tmp_path, student, teacher):
    with pytest.raises(ValueError, match="did not return a loss"):
        distil(tmp_path, student, teacher, [TaskLoss()], rows(8).remove_columns("labels"))
    base = build(BertModel, bert_config(4, 32), 1)
    with pytest.raises(ValueError, match="prediction loss needs logits"):
        distil(tmp_path, student, base, [PredictionLoss()])


def test_frozen_embeddings_are_no_obstacle(tmp_path, student, teacher):
    student.bert.embeddings.requires_grad_(False)
    _, (log,), _ = distil(tmp_path, student, teacher)
    assert log["embedding_loss"] > 0


class FirstToken(DistillationLoss):
    """A user's loss: the distance of the first token's last state."""

    name = "first_token"
    reads = frozenset({"hidden_states"})
    projects = True

    def hidden_layers(self, layer_mapping):
        return layer_mapping[-1:]

    def forward(self, student, teacher, layer_mapping):
        ((m, g),) = self.hidden_layers(layer_mapping)
        return (student.projected_states[self.name][m][:, 0] - teacher.hidden_states[g][:, 0]).square().mean(-1)


def test_a_users_loss(tmp_path, student, teacher):
    _, logs, gradients = distil(tmp_path, student, teacher, [FirstToken(0.5)], max_steps=5, learning_rate=0.05)
    assert logs[-1]["first_token_loss"] < logs[0]["first_token_loss"]
    assert logs[0]["loss"] == pytest.approx(0.5 * logs[0]["first_token_loss"])
    assert "distillation_projections.first_token.weight" in gradients[0]


def test_a_pre_training_head_is_refused(tmp_path):
    student, teacher = (build(BertForPreTraining, bert_config(layers, 16), layers) for layers in (2, 4))
    with pytest.raises(ValueError, match="does not cover BertForPreTraining"):
        DistillationTrainer(student, arguments(tmp_path), pad, rows(8), teacher_model=teacher)


def test_a_teacher_with_other_tokens_is_refused(tmp_path, student, teacher):
    tokenizer = word_tokenizer(tmp_path)
    other = BertTokenizer(vocab={token: -index % len(tokenizer) for token, index in tokenizer.get_vocab().items()})
    teacher.save_pretrained(tmp_path / "teacher")
    options = {"processing_class": tokenizer, "teacher_model": str(tmp_path / "teacher")}
    DistillationTrainer(student, arguments(tmp_path), pad, rows(8), **options)  # it has no tokenizer to compare with
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"have another id.*trim_vocabulary"):
        DistillationTrainer(student, arguments(tmp_path), pad, rows(8), **options)
    tokenizer.save_pretrained(tmp_path / "teacher")
    DistillationTrainer(student, arguments(tmp_path), pad, rows(8), **options)


@pytest.mark.parametrize(
    "change",
    [
        {"loss_type": ["prediction"]},
        {"temperature": 2.0},
        {"layer_mapping": "top"},
        {"loss_weights": [1, 1, 1, 2]},
        {"padding_free": True},
        {"teacher_dtype": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_arguments_of_distillation_without_a_teacher_are_refused(tmp_path, student, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} of DistillationArguments need a teacher"):
        DistillationTrainer(student, arguments(tmp_path, **change), pad, rows(8))


def test_cached_logits_without_a_teacher_are_enough_for_the_prediction_loss_alone(tmp_path, student, teacher):
    data = cache_logits(teacher, rows(8), word_tokenizer(tmp_path), data_collator=pad)
    with pytest.raises(ValueError, match=r"pass teacher_model.*loss_type=\['prediction'\]"):
        DistillationTrainer(student, arguments(tmp_path), pad, data)
    with pytest.raises(TypeError, match="column teacher_logits"):
        DistillationTrainer(student, TrainingArguments(str(tmp_path), report_to=[]), pad, data)
    trainer = DistillationTrainer(student, arguments(tmp_path, loss_type=["prediction"]), pad, data)
    trainer.train()
    assert trainer.state.log_history[0]["prediction_loss"] > 0
