"""What the blocks of README.md and the guides find: small models and data in the place of those that they name.

A folder of the name of a Hub id is read instead of the Hub, so that blocks need no other names than a reader's.
Weights are random, and every training stops after `STEPS` optimizer steps.
"""

from pathlib import Path

import pytest
import transformers
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoModelForSequenceClassification, BertForMaskedLM, BertForSequenceClassification

from hf_tinybert import TextClassification

STEPS = 2
LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
# Models: what a page calls them, and which of the two it gets.
ENCODERS = ("bert-base-uncased", "google-bert/bert-base-uncased")
CLASSIFIERS = ("runs/classifier", "runs/teacher")
# Files with the columns `text` and `label` (`review` and `stars`), and text files of one text a line.
TABLES = {"my.csv": ("text", "label"), "reviews.csv": ("review", "stars")}
TEXTS = ("my.txt", "reviews.txt", "more_reviews.txt")


class StopSoon(transformers.TrainerCallback):
    """Ends every training after a few steps."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= STEPS


def sentences(count: int) -> list[str]:
    """Different sentences of words that the tokenizer knows."""
    words = [word for word in WORDS if word.isalpha()]
    return [" ".join(words[(i // 13**place + place) % 13] for place in range(5)) for i in range(count)]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """An encoder of MiniLM-L6's size with a few tokens, and a classifier of the same size."""
    folder, models = tmp_path_factory.mktemp("models"), {}
    tokenizer = word_tokenizer(folder)
    config = bert_config(6, 384, 12, vocab_size=len(tokenizer), intermediate_size=1536, **LABELS)
    for name, model_class in (("encoder", BertForMaskedLM), ("classifier", BertForSequenceClassification)):
        models[name] = folder / name
        build(model_class, config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return models


@pytest.fixture
def page_folder(tmp_path, monkeypatch, models, hub) -> Path:
    """The folder that the blocks of a page are in: their models and files, with a Hub that has nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, StopSoon])
    for names, model in ((ENCODERS, "encoder"), (CLASSIFIERS, "classifier")):
        for name in map(Path, names):
            name.parent.mkdir(exist_ok=True)
            name.symlink_to(models[model])
    rows = {"text": sentences(40), "label": [["negative", "positive"][i % 2] for i in range(40)]}
    for file, columns in TABLES.items():
        Dataset.from_dict(dict(zip(columns, rows.values(), strict=True))).to_csv(file)
    for file in TEXTS:
        Path(file).write_text("\n".join(sentences(80)[40:]), encoding="utf8")
    pairs = {"sentence1": rows["text"], "sentence2": rows["text"][::-1], "label": [i % 2 for i in range(40)]}
    for split in ("train", "validation"):
        Dataset.from_dict(pairs).to_parquet(f"nyu-mll/glue/rte/{split}.parquet")
    return tmp_path


@pytest.fixture
def variables(page_folder) -> dict:
    """The variables that a page may use without having made them."""
    data = load_dataset("csv", data_files="my.csv")["train"].train_test_split(0.5, seed=0)
    task, data = TextClassification.from_dataset(DatasetDict(train=data["train"], validation=data["test"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained("runs/classifier")
    many = Dataset.from_dict({"text": sentences(512), "label": [i % 2 for i in range(512)]})
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
