"""Models, tokenizers and data by id from the Hub: from before `model_type`, with old names, and again offline."""

import json
from io import BytesIO

import datasets
import huggingface_hub
import pytest
import torch
from conftest import WORDS, bert_config, build, pad, rows
from short_runs import launch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from hf_tinybert import DistillationTrainer, task_distillation
from hf_tinybert.models.loading import from_pretrained, load_config, load_tokenizer
from hf_tinybert.tasks import GLUE

NAME = "huawei-noah/TinyBERT_General_4L_312D"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def legacy_files(model) -> dict[str, bytes]:
    """`model` as the published TinyBERTs are stored: config keys, weight names and files as they have them."""
    names = ("attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range")
    names += ("intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")
    config = {name: getattr(model.config, name) for name in (*names, "type_vocab_size", "vocab_size")}
    config |= {"cell": {}, "emb_size": model.config.hidden_size, "structure": [], "pre_trained": ""}
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {}
    for name, value in model.state_dict().items():
        for now, before in old.items():
            name = name.replace(now, before)
        weights[name] = value
    weights |= {f"fit_dense{suffix}.weight": torch.ones(32, 16) for suffix in ("", "s.0", "s.1")}
    stored = BytesIO()
    torch.save(weights, stored)
    files = {"config.json": json.dumps(config).encode(), "pytorch_model.bin": stored.getvalue()}
    return files | {"vocab.txt": "\n".join(VOCABULARY).encode()}


@pytest.fixture
def published(hub):
    """A tiny TinyBERT on the Hub as it was published, and the model that it holds."""
    model = build(BertForPreTraining, bert_config(2, 16), seed=5).eval()
    hub.add("model", NAME, legacy_files(model))
    return model


def inputs():
    return {name: value for name, value in pad(list(rows(4))).items() if name != "labels"}


@pytest.mark.parametrize("model_class", [AutoModel, BertModel, None])
def test_a_published_tinybert_is_pulled_by_id(published, model_class):
    model, loading = from_pretrained(model_class, NAME, output_loading_info=True)
    assert isinstance(model, BertModel)
    assert not loading["missing_keys"]
    torch.testing.assert_close(model.state_dict(), published.bert.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(**inputs())[0], published.bert(**inputs())[0], rtol=0, atol=0)


def test_its_head_is_kept_where_the_class_has_one_and_new_where_not(published):
    torch.testing.assert_close(
        from_pretrained(AutoModelForMaskedLM, NAME).eval()(**inputs()).logits,
        published(**inputs()).prediction_logits,
        rtol=0,
        atol=0,
    )
    head = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model, loading = from_pretrained(AutoModelForSequenceClassification, NAME, output_loading_info=True, **head)
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert model.config.id2label == head["id2label"]
    torch.testing.assert_close(model.bert.state_dict(), published.bert.state_dict(), rtol=0, atol=0)


def test_its_tokenizer_needs_no_more_than_the_vocabulary(published):
    assert load_tokenizer(NAME)("Good film player").tokens() == ["[CLS]", "good", "film", "play", "##er", "[SEP]"]


def test_a_revision_is_what_is_loaded(hub, published, tmp_path):
    other = build(BertForPreTraining, bert_config(1, 16), seed=6)
    repo = hub.model(NAME)
    commit = repo.commit("small", "another", legacy_files(other))
    for revision in ("small", commit):
        model = from_pretrained(AutoModel, NAME, revision=revision)
        torch.testing.assert_close(model.state_dict(), other.bert.state_dict(), rtol=0, atol=0)
    assert load_config(NAME).num_hidden_layers == 2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_size": 16, "num_hidden_layers": 2}, r"for want of vocab_size, type_vocab_size, num_attention_heads"),
        ({"model_type": "bert", "architectures": ["MyOwn"]}, "names the class 'MyOwn', unknown to transformers"),
    ],
)
def test_only_what_is_like_bert_is_taken_for_bert(hub, config, says):
    hub.add("model", "user/odd", {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match=says):
        from_pretrained(None, "user/odd")


def test_other_models_load_as_they_always_did(student, teacher, tmp_path):
    student.save_pretrained(tmp_path)
    loaded = from_pretrained(None, tmp_path)
    assert isinstance(loaded, BertForSequenceClassification)
    torch.testing.assert_close(loaded.state_dict(), student.state_dict(), rtol=0, atol=0)
    assert loaded.config.to_dict() == type(student).from_pretrained(tmp_path).config.to_dict()
    trainer = DistillationTrainer(student, teacher_model=str(tmp_path))
    torch.testing.assert_close(trainer.teachers[0].model.state_dict(), student.state_dict(), rtol=0, atol=0)


TASK = """
import sys
import torch
from datasets import load_dataset
from transformers import AutoModel, logging
from hf_tinybert.models.loading import from_pretrained, load_tokenizer

model, tokenizer = from_pretrained(AutoModel, sys.argv[1]).eval(), load_tokenizer(sys.argv[1])
data = load_dataset("user/data", split="train")
batch = tokenizer(data["sentence"][:], padding=True, return_tensors="pt")
torch.save(model(**batch).last_hidden_state, sys.argv[2])
"""


@pytest.mark.slow
def test_a_process_of_its_own_pulls_all_by_id_and_then_again_offline(hub, published, tmp_path, monkeypatch):
    """Nothing is patched here: the variables HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are all that it is told."""
    sentences = ["a good film", "the play is dull ."]
    datasets.Dataset.from_dict({"sentence": sentences}).to_parquet(tmp_path / "train.parquet")
    hub.add("dataset", "user/data", {"data/train.parquet": (tmp_path / "train.parquet").read_bytes()})
    (tmp_path / "pull.py").write_text(TASK)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    launch(tmp_path / "pull.py", 1, NAME, tmp_path / "online.pt")
    batch = load_tokenizer(NAME)(sentences, padding=True, return_tensors="pt")
    want = published.bert(**batch).last_hidden_state
    torch.testing.assert_close(torch.load(tmp_path / "online.pt"), want, rtol=1e-5, atol=1e-6)
    requests = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    launch(tmp_path / "pull.py", 1, NAME, tmp_path / "offline.pt")
    assert len(hub.requests) == requests
    torch.testing.assert_close(torch.load(tmp_path / "offline.pt"), torch.load(tmp_path / "online.pt"), rtol=0, atol=0)


def test_what_was_pulled_once_loads_offline(hub, published, monkeypatch):
    before = from_pretrained(AutoModel, NAME).eval()(**inputs())[0], load_tokenizer(NAME).get_vocab()
    requests = len(hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    after = from_pretrained(AutoModel, NAME).eval()(**inputs())[0], load_tokenizer(NAME).get_vocab()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1] == before[1]
    assert len(hub.requests) == requests


def test_a_whole_run_takes_teacher_student_and_data_by_id(hub, published, tmp_path):
    teacher = build(BertForPreTraining, bert_config(4, 32), seed=7)
    hub.add("model", "user/teacher", legacy_files(teacher))
    text = {"sentence": ["a good film", "a dull book", "not bad", "the play is dull"] * 2, "label": [1, 0, 1, 0] * 2}
    datasets.Dataset.from_dict({**text, "idx": range(8)}).to_parquet(tmp_path / "rows.parquet")
    parquet = (tmp_path / "rows.parquet").read_bytes()
    hub.add("dataset", "user/sst2", {f"data/{split}.parquet": parquet for split in ("train", "validation")})
    data = datasets.load_dataset("user/sst2")
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 1}
    results = task_distillation(GLUE["sst2"], data, "user/teacher", tmp_path / "run", student=NAME, **options)
    assert results["parameters"]["student"] < results["parameters"]["teacher"]
    assert from_pretrained(None, tmp_path / "run" / "student").config.num_hidden_layers == 2
