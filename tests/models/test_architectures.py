"""Every architecture and every prediction head: distilled, saved, resumed in the middle, pushed and pulled."""

import copy
import logging
from functools import cache, partial

import pytest
import torch
import transformers
from conftest import WORDS, build
from datasets import Dataset
from short_runs import GradientRecorder, arguments, assert_same_run
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from hf_tinybert import DistillationTrainer, cache_logits, create_student
from hf_tinybert.models.architectures import architecture_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 128, "initializer_range": 0.2}
BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ELECTRA = BERT | {"embedding_size": 24, "summary_last_dropout": 0.0}
DISTILBERT = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"), 0.0)
MODERNBERT = {"local_attention": 8, "global_attn_every_n_layers": 2}
SMALLER = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
# Prefix of the classes, the tokenizer's class, the teacher's configuration, the sizes of the student. No narrower
# student can be initialised from ModernBERT; a BERT's student with narrower embeddings is an ALBERT.
ARCHITECTURES = {
    "roberta": ("Roberta", "RobertaTokenizer", BERT, SMALLER),
    "xlm-roberta": ("XLMRoberta", "XLMRobertaTokenizer", BERT, SMALLER),
    "distilbert": ("DistilBert", "DistilBertTokenizer", DISTILBERT | {"hidden_dim": 64}, SMALLER),
    "electra": ("Electra", "ElectraTokenizer", ELECTRA, SMALLER),
    "mpnet": ("MPNet", "MPNetTokenizer", BERT, SMALLER),
    "prelayernorm": ("RobertaPreLayerNorm", "RobertaTokenizer", BERT, SMALLER),
    "xlm-roberta-xl": ("XLMRobertaXL", "XLMRobertaTokenizer", BERT, SMALLER),
    "factorised": ("Bert", "BertTokenizer", BERT, SMALLER | {"embedding_size": 8}),
    "modernbert": ("ModernBert", "RobertaTokenizer", MODERNBERT, {"num_hidden_layers": 2, "init": "layers"}),
}
LABELS = {"id2label": {0: "bad", 1: "good", 2: "neither"}, "label2id": {"bad": 0, "good": 1, "neither": 2}}
# Suffix of the class, what its config says. transformers has all of them for each architecture. Left out, as no task
# of an encoder: RobertaForCausalLM, XLMRobertaForCausalLM and ElectraForCausalLM, which are decoders, and
# ElectraForPreTraining, which finds the tokens that a generator replaced.
HEADS = {
    "sequence": ("ForSequenceClassification", LABELS),
    "regression": ("ForSequenceClassification", {"num_labels": 1}),
    "multi-label": ("ForSequenceClassification", {"problem_type": "multi_label_classification", **LABELS}),
    "token": ("ForTokenClassification", LABELS),
    "span": ("ForQuestionAnswering", {}),
    "choice": ("ForMultipleChoice", {}),
    "masked-lm": ("ForMaskedLM", {}),
    "encoder": ("Model", {}),
}
COLLATORS = {
    "choice": DataCollatorForMultipleChoice,
    "token": DataCollatorForTokenClassification,
    "masked-lm": partial(DataCollatorForLanguageModeling, mlm_probability=0.3),
}
# Each architecture with heads that its classes build in their own way, and each head at least once.
CASES = [
    ("roberta", "sequence"),
    ("roberta", "multi-label"),
    ("roberta", "encoder"),
    ("xlm-roberta", "span"),
    ("distilbert", "masked-lm"),
    ("distilbert", "choice"),
    ("electra", "regression"),
    ("electra", "token"),
    ("electra", "masked-lm"),
    ("mpnet", "sequence"),
    ("mpnet", "token"),
    ("mpnet", "span"),
    ("mpnet", "choice"),
    ("mpnet", "masked-lm"),
    ("prelayernorm", "sequence"),
    ("prelayernorm", "choice"),
    ("prelayernorm", "masked-lm"),
    ("xlm-roberta-xl", "token"),
    ("xlm-roberta-xl", "span"),
    ("factorised", "sequence"),
    ("factorised", "masked-lm"),
    ("modernbert", "token"),
    ("modernbert", "choice"),
    ("modernbert", "masked-lm"),
    ("modernbert", "encoder"),
]
INTERMEDIATE = ["attention", "hidden", "embedding"]


def draw(high: int, size: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randint(high, size, generator=torch.Generator().manual_seed(seed))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 2 to 9 words."""
    drawn = zip(draw(8, (count,), seed) + 2, draw(len(WORDS), (count, 9), seed), strict=True)
    return [" ".join(WORDS[i] for i in words[:length]) for length, words in drawn]


@cache
def _tokenizer(architecture: str):
    return getattr(transformers, ARCHITECTURES[architecture][1])().train_new_from_iterator(sentences(100), 300)


@cache
def _models(architecture: str, head: str):
    (prefix, _, changes, sizes), (suffix, of_head) = ARCHITECTURES[architecture], HEADS[head]
    tokenizer = _tokenizer(architecture)
    ids = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") or 0 for role in ("pad", "bos", "eos", "cls", "sep")
    }
    config = SIZES | ids | changes | of_head | {"vocab_size": len(tokenizer)}
    config = getattr(transformers, f"{prefix}Config")(**config)
    teacher = build(getattr(transformers, prefix + suffix), config, seed=1).eval()
    calibration_rows = [{"input_ids": ids} for ids in tokenizer(sentences(40, seed=1))["input_ids"]]
    return teacher, create_student(teacher, **sizes, calibration_dataset=calibration_rows, processing_class=tokenizer)


def setup(architecture: str, head: str):
    """Copies of a tokenizer of the architecture's kind, a student and its teacher, each made once."""
    teacher, student = copy.deepcopy(_models(architecture, head))
    return copy.deepcopy(_tokenizer(architecture)), student, teacher


def rows(head: str, tokenizer, count: int = 12) -> Dataset:
    """Tokenised rows, unpadded, with what the head learns from."""
    texts, others, classes = sentences(count, seed=2), sentences(count, seed=3), draw(3, (count,), seed=4).tolist()
    if head == "choice":
        choices = [sentences(3, seed=10 + i) for i in range(count)]
        encoded = [dict(tokenizer([text] * 3, ends)) for text, ends in zip(texts, choices, strict=True)]
        return Dataset.from_list(encoded).add_column("labels", classes)
    data = Dataset.from_dict(dict(tokenizer(texts, others if head == "span" else None)))
    lengths = [len(ids) for ids in data["input_ids"]]
    if head == "span":
        starts = [number % length for number, length in zip(draw(99, (count,), seed=5).tolist(), lengths, strict=True)]
        return data.add_column("start_positions", starts).add_column("end_positions", [n - 1 for n in lengths])
    labels = {
        "sequence": classes,
        "regression": [float(y) for y in classes],
        "multi-label": draw(2, (count, 3), seed=6).float().tolist(),
        "token": [[-100, *draw(3, (n - 2,), seed=n).tolist(), -100] for n in lengths],
    }
    return data.add_column("labels", labels[head]) if head in labels else data


def run(folder, head, tokenizer, student, teacher, train_dataset=None, resume_from=None, **changes):
    """As `short_runs.distil`, with every loss that the head has: (trainer, logs of steps, gradients of each step)."""
    losses, recorder = INTERMEDIATE + (["prediction", "task"] if head != "encoder" else []), GradientRecorder()
    trainer = DistillationTrainer(
        student,
        arguments(folder, **{"loss_type": losses, "max_steps": 4, "per_device_train_batch_size": 4, **changes}),
        COLLATORS.get(head, DataCollatorWithPadding)(tokenizer),
        rows(head, tokenizer) if train_dataset is None else train_dataset,
        processing_class=tokenizer,
        callbacks=[recorder],
        teacher_model=teacher,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer, [log for log in trainer.state.log_history if "loss" in log], recorder.steps


def outputs(model, batch):
    """What a model gives for the inputs of a batch, by name."""
    with torch.no_grad():
        return dict(model.eval()(**{name: batch[name] for name in batch if "label" not in name}))


def prediction_loss(head, student_outputs, teacher_outputs, batch):
    """What each head is to be taught from its teacher's logits, row by row over what is real, in float64."""

    def cross_entropy(z, t, dim=-1):
        return -(t.double().softmax(dim) * z.double().log_softmax(dim)).sum(dim)

    real = [row.bool() for row in batch["attention_mask"]]
    if head == "span":
        names = ("start_logits", "end_logits")
        pairs = [(student_outputs[name], teacher_outputs[name]) for name in names]
        return torch.stack([cross_entropy(z[i, m], t[i, m]) for z, t in pairs for i, m in enumerate(real)]).mean()
    z, t = student_outputs["logits"], teacher_outputs["logits"]
    if head == "regression":
        return (z.double() - t.double()).square().mean()
    if head == "multi-label":
        q, p = z.double().sigmoid(), t.double().sigmoid()
        return -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    if head in ("sequence", "choice"):
        return cross_entropy(z, t).mean()
    predicted = [row != -100 for row in batch["labels"]] if head == "masked-lm" else real
    values = [cross_entropy(z[i, mask], t[i, mask]) for i, mask in enumerate(predicted)]
    return torch.stack([row.mean() if len(row) else row.sum() for row in values]).mean()


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_distilled_saved_resumed_and_pushed(hub, tmp_path, architecture, head):
    tokenizer, student, teacher = setup(architecture, head)
    start, other, batches = copy.deepcopy(student), copy.deepcopy(student), []
    hook = student.register_forward_pre_hook(
        lambda model, _, inputs: batches.append(inputs) if model.training else None, with_kwargs=True
    )
    # Trainer collates a batch ahead: masks that are drawn anew are the same again only at an epoch's end, 3 steps
    half = 3 if head == "masked-lm" else 2
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": half}
    folder = tmp_path / "student"
    trainer, logs, (gradients, *_) = run(folder, head, tokenizer, student, teacher, push_to_hub=True, **options)
    hook.remove()
    assert all(0 < log[f"{name}_loss"] < float("inf") for log in logs for name in trainer.args.loss_type)
    untrained = {name for name, _ in student.named_parameters() if name not in gradients}
    assert all(head == "encoder" and "pooler" in name for name in untrained)
    inputs = {name: value for name, value in batches[0].items() if not name.startswith("output_")}
    if head != "encoder":
        expected = prediction_loss(head, outputs(start, inputs), outputs(teacher, inputs), inputs)
        assert logs[0]["prediction_loss"] == pytest.approx(expected.item(), rel=1e-4)
        assert 0 < trainer.evaluate(rows(head, tokenizer))["eval_loss"] < float("inf")

    trainer.save_model()  # and pushes
    saved, loading = type(student).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    run(tmp_path / "resumed", head, tokenizer, other, teacher, resume_from=folder / f"checkpoint-{half}", **options)
    auto_class = getattr(transformers, "AutoModel" + HEADS[head][0].removeprefix("Model"))
    expected = outputs(student, inputs)
    for model in (saved, other, auto_class.from_pretrained("user/student")):
        assert type(model) is type(student)
        assert model.state_dict().keys() == student.state_dict().keys()
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(value, expected[name]) for name, value in outputs(model, inputs).items())
    assert AutoTokenizer.from_pretrained("user/student")("a good film") == tokenizer("a good film")


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("roberta", "sequence"), ("modernbert", "sequence"), ("electra", "choice")],
)
def test_a_teacher_without_the_layers_that_no_loss_reads(tmp_path, monkeypatch, architecture, head):
    tokenizer, student, teacher = setup(architecture, head)
    ran, layers = [], next(m for m in teacher.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    layers[2].register_forward_hook(lambda *_: ran.append(1))
    options = {"loss_type": [*INTERMEDIATE, "relation"], "layer_mapping": "bottom"}
    short = run(tmp_path, head, tokenizer, copy.deepcopy(student), teacher, **options)
    assert not ran
    monkeypatch.setattr(type(architecture_of(teacher.config)), "drops_layers", False)
    whole = run(tmp_path, head, tokenizer, student, teacher, **options)
    assert ran
    assert_same_run(short, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "head", "side"),
    [
        *(("electra", head, "right") for head in ("sequence", "token", "span", "choice")),
        # on the left where neither positions nor the token that the head reads depend on padding
        ("xlm-roberta", "span", "left"),
        ("modernbert", "token", "left"),
    ],
)
def test_cached_logits_train_as_the_live_teacher_does(tmp_path, architecture, head, side):
    tokenizer, student, teacher = setup(architecture, head)
    tokenizer.padding_side = side
    live = run(tmp_path, head, tokenizer, copy.deepcopy(student), teacher)
    collator = COLLATORS.get(head, DataCollatorWithPadding)(tokenizer)
    data = cache_logits(teacher, rows(head, tokenizer), tokenizer, 5, collator)
    assert_same_run(run(tmp_path, head, tokenizer, copy.deepcopy(student), teacher, data), live)
    stale = data.select([*range(1, len(data)), 0])["teacher_logits"][:]
    stale = data.remove_columns("teacher_logits").add_column("teacher_logits", stale)
    with pytest.raises(ValueError, match=r"teacher_logits (is not what teacher_model computes|has other numbers)"):
        run(tmp_path, head, tokenizer, student, teacher, stale)


@pytest.mark.parametrize("head", ["multi-label", "span"])
def test_cached_logits_of_two_teachers_by_their_confidence(tmp_path, head):
    tokenizer, student, teacher = setup("electra", head)
    teachers, options = [teacher, build(type(teacher), teacher.config, seed=5).eval()], {"teacher_weights": [1.0, 3.0]}
    live = run(tmp_path, head, tokenizer, copy.deepcopy(student), teachers, teacher_logits="confidence", **options)
    data = cache_logits(teachers, rows(head, tokenizer), tokenizer, weights=[1, 3], how="confidence")
    cached = run(tmp_path, head, tokenizer, student, teachers, data, teacher_logits="confidence", **options)
    assert_same_run(cached, live)


@pytest.mark.parametrize(("architecture", "side"), [("distilbert", "right"), ("modernbert", "left")])
def test_cached_activations_train_as_the_live_teacher_does(tmp_path, architecture, side):
    tokenizer, student, teacher = setup(architecture, "token")
    tokenizer.padding_side = side
    options = {"loss_type": [*INTERMEDIATE, "task"], "max_steps": 6, "learning_rate": 1e-3}
    live, ran = run(tmp_path, "token", tokenizer, copy.deepcopy(student), teacher, **options), []
    teacher.base_model.register_forward_hook(lambda *_: ran.append(1))
    cached = run(tmp_path, "token", tokenizer, student, teacher, teacher_cache_gb=1.0, **options)
    left = int(side == "left")  # a row by itself, whose activations padding must not change
    assert len(ran) == 3 + 3 + left  # projections; layout, one pass of 12 rows, check in the first step
    assert_same_run(cached, live, rtol=3e-2, atol=1e-5)


def test_activations_of_choices_are_not_cached(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer, student, teacher = setup("roberta", "choice")
    live = run(tmp_path, "choice", tokenizer, copy.deepcopy(student), teacher, loss_type=INTERMEDIATE)
    options = {"loss_type": INTERMEDIATE, "teacher_cache_gb": 1.0}
    uncached = run(tmp_path, "choice", tokenizer, student, teacher, **options)
    assert "Teacher activations are not cached" in caplog.text
    assert "choices" in caplog.text
    assert_same_run(uncached, live)


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert"])
def test_another_number_of_heads_and_labels_in_another_order(tmp_path, architecture):
    tokenizer, _, teacher = setup(architecture, "token")
    torch.manual_seed(0)
    student = create_student(teacher, **SMALLER, num_attention_heads=2, init="random")
    with pytest.raises(ValueError, match="2 attention heads and the teacher 4"):
        run(tmp_path, "token", tokenizer, student, teacher)
    losses = ["relation", "hidden", "embedding", "prediction"]
    _, (log, *_), (gradients, *_) = run(tmp_path, "token", tokenizer, student, teacher, loss_type=losses)
    assert all(log[f"{name}_loss"] > 0 for name in losses)
    assert {name for name, _ in student.named_parameters()} <= set(gradients)
    student.config.id2label = {0: "good", 1: "bad", 2: "neither"}
    with pytest.raises(ValueError, match="cannot be compared by position"):
        run(tmp_path, "token", tokenizer, student, teacher, loss_type=["prediction"])
