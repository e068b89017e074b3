"""Tiny models built from configs and small data sets; nothing comes from a network."""

import copy
import gc
import logging

import datasets
import pytest
import torch
from datasets import Dataset
from hub_server import hub  # noqa: F401
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    set_seed,
)

needs_accelerator = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="needs an accelerator, such as a GPU"
)
torch.set_num_threads(1)  # on models this small more threads only wait for each other

VOCAB = 50
LABELS = {0: "negative", 1: "positive", 2: "neutral"}


def bert_config(layers: int, width: int, heads: int = 4, dropout: float = 0.0, **changes) -> BertConfig:
    """A tiny BERT; no dropout unless asked for, so that runs can be compared."""
    return BertConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 2 * width,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "id2label": LABELS,
            "label2id": {name: index for index, name in LABELS.items()},
            "initializer_range": 0.2,
            **changes,
        }
    )


def build(model_class, config, seed: int = 0):
    """A model with its own random weights."""
    set_seed(seed)
    return model_class(copy.deepcopy(config))


@pytest.fixture(autouse=True, scope="session")
def _frozen():
    """Trainer collects garbage whenever it starts: what all tests have imported need not be searched each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Teacher activations that a run keeps are gone with the test, also those of the recipes' own processes."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))


@pytest.fixture(autouse=True)
def _own_precision():
    """`TrainingArguments(torch_compile=True)` turns TF32 on for the whole process if there is a GPU."""
    yield
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"  # torch's default


@pytest.fixture
def cpu_capabilities(monkeypatch):
    """The instructions that torch says the CPU has; none of bfloat16 until a test sets them."""
    capabilities = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    return capabilities


@pytest.fixture
def warned(caplog, monkeypatch):
    """What was logged, also what is logged once in a process."""
    logging.Logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: caplog.text


@pytest.fixture(scope="session")
def _models():
    teacher, student = bert_config(4, 32), bert_config(2, 16)
    return {
        "teacher": build(BertForSequenceClassification, teacher, 1).eval(),
        "student": build(BertForSequenceClassification, student, 2),
        "token_teacher": build(BertForTokenClassification, teacher, 3).eval(),
        "token_student": build(BertForTokenClassification, student, 4),
    }


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """The folder of `exported_classifier`; tests that write take another."""
    from exported_students import exported_classifier

    return exported_classifier(tmp_path_factory.mktemp("served"))


@pytest.fixture
def teacher(_models):
    return copy.deepcopy(_models["teacher"])


@pytest.fixture
def student(_models):
    return copy.deepcopy(_models["student"])


@pytest.fixture
def token_teacher(_models):
    return copy.deepcopy(_models["token_teacher"])


@pytest.fixture
def token_student(_models):
    return copy.deepcopy(_models["token_student"])


WORDS = ["good", "bad", "film", "book", "very", "not", "a", "the", "is", "was", "dull", "bright", "play", "##er", "."]


def word_tokenizer(folder) -> BertTokenizer:
    """A tokenizer that knows a few words; it fits `bert_config`."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return BertTokenizer(str(folder / "vocab.txt"))


def rows(count: int = 16, token_labels: bool = False, seed: int = 0) -> Dataset:
    """Rows of 3 to 12 tokens with labels, unpadded."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high, low=0, size=()):
        return torch.randint(low, high, size, generator=generator).tolist()

    lengths = [draw(13, 3) for _ in range(count)]
    ids = [draw(VOCAB, 1, (length,)) for length in lengths]
    labels = [draw(3, 0, (length,)) if token_labels else draw(3) for length in lengths]
    if token_labels:  # uneven numbers of labelled tokens
        labels = [[y if i % (1 + n % 4) == 0 else -100 for i, y in enumerate(ys)] for n, ys in enumerate(labels)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * n for n in lengths], "labels": labels})


def pad(features: list[dict], to: int | None = None) -> dict[str, torch.Tensor]:
    """Collate rows of `rows`, padded to the longest or to `to` tokens."""
    length = to or max(len(feature["input_ids"]) for feature in features)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100, "token_type_ids": 0}
    batch = {}
    for name in features[0]:
        values = [feature[name] for feature in features]
        if isinstance(values[0], (list, torch.Tensor)):
            values = [list(value) + [fill[name]] * (length - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    return batch
