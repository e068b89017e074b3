"""Calibration errors of teachers and students, before and after a temperature: means and standard errors of seeds.

    python recipes/calibration_error.py runs/quality/cola_default_s* --task cola --data folder/of/glue
    python recipes/calibration_error.py runs/quality/tweets_default_s* --data tweets.csv

A run is a folder of `task_distillation`: one seed. Its student is in `student`, and its teacher in `teacher` or where
settings.json says. The rows are those of the validation split. Each half of them is calibrated with the temperature of
the other half (`Calibration`). Scores after are those of all logits divided by the temperature of all rows.
"""

import argparse
import json
from functools import cache
from pathlib import Path
from statistics import mean, stdev

from transformers import AutoTokenizer, EvalPrediction, Trainer, TrainingArguments

from hf_tinybert import GLUE
from hf_tinybert.evaluation.calibration import Calibration
from hf_tinybert.pipelines.data import load_task

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", nargs="+", type=Path, help="folders of task_distillation, one for each seed")
parser.add_argument("--data", required=True, help="folder of GLUE's tasks, or a file, folder or Hub id with text")
parser.add_argument("--task", choices=GLUE, help="of GLUE; default: that of the file")
parser.add_argument("--output", type=Path, default=Path("runs/calibration_error.json"))
options = parser.parse_args()

task, data = (GLUE[options.task], GLUE[options.task].load(options.data)) if options.task else load_task(options.data)
rows = data[task.validation[0]]
arguments = TrainingArguments("runs", per_device_eval_batch_size=64, report_to=[], disable_tqdm=True)


@cache
def measure(folder: str) -> dict[str, float]:
    model, untrained = task.load_model(folder)
    if untrained:
        raise SystemExit(f"{folder} has no trained prediction head for {task.name}.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = task.tokenize(rows, tokenizer)
    logits, labels, _ = Trainer(model, arguments, data_collator=task.collator(tokenizer)).predict(tokens)
    calibration, scorer = Calibration.measure(logits, labels), task.scorer(rows, tokens)
    scores = [scorer(EvalPrediction(logits / t, labels))["score"] for t in (1, calibration.temperature)]
    names = ("score", "score after", "error", "error after", "temperature")
    values = (*scores, calibration.error, calibration.error_after, calibration.temperature)
    return dict(zip(names, values, strict=True))


def teacher_of(run: Path) -> str:
    """The folder in the run, or the one that it was given."""
    inside = run / "teacher"
    return str(inside) if inside.exists() else json.loads((run / "settings.json").read_text())["teacher"]


def summary(values: list[float]) -> str:
    """The mean and its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.4f}" if len(set(values)) > 1 else ""
    return f"{mean(values):.4f}{error}"


measured = {"teacher": [measure(teacher_of(run)) for run in options.runs]}
measured["student"] = [measure(str(run / "student")) for run in options.runs]
columns = list(measured["student"][0])
print(f"{len(rows):,} rows of {task.name}, {len(options.runs)} runs\n")
print("| model |", " | ".join(columns), "|\n|---|" + "---|" * len(columns))
for model, values in measured.items():
    print(f"| {model} |", " | ".join(summary([each[column] for each in values]) for column in columns), "|")
options.output.parent.mkdir(parents=True, exist_ok=True)
options.output.write_text(json.dumps({"task": task.name, "rows": len(rows), **measured}, indent=1))
