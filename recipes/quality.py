"""The scores of the default recipe beside those of its alternatives: one student for each method and seed.

    python recipes/quality.py --data folder/of/glue --task cola --teacher folder/of/teacher --methods labels default
    python recipes/quality.py --data tweets.csv --labelled 2400 --teacher folder/of/teacher --methods transfer

Every run is a folder of --output_dir, whose settings and results are copied to --results as one small file. A run that
was killed continues with the same command. --dev scores on a tenth of the training rows, for the choice of settings.
"""

import argparse
import json
import random
from pathlib import Path
from time import process_time

import datasets
import torch

from hf_tinybert import GLUE, TINYBERT4, task_distillation
from hf_tinybert.pipelines.data import hold_out, load_task

NONE = {"num_train_epochs": 0}
LAYERS = {"num_train_epochs": 1}
# arguments of task_distillation beside those of all methods
METHODS = {
    "labels": {"prediction": NONE},
    "random_labels": {"init": "random", "prediction": NONE},
    "logits": {"augmentation": None, "labels": NONE},
    "default": {},
    "transfer": {},
    "no_labels": {},
    "without_augmentation": {"augmentation": None},
    "without_labels_phase": {"labels": NONE},
    "with_layers": {"intermediate": LAYERS},
    "with_dropout": {},
    "random_start": {"init": "random"},
}
TRANSFER = ("transfer", "no_labels")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, help="folder of GLUE's tasks, or a file or Hub id with text and label")
parser.add_argument("--task", choices=GLUE, help="of GLUE; default: that of the file")
parser.add_argument("--teacher", required=True, help="Hub id or folder; fine-tuned first without a prediction head")
parser.add_argument("--size", type=int, nargs=4, default=[4, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--labelled", type=int, help="number of rows that keep their labels; default all")
parser.add_argument("--transfer", type=int, help="number of the other rows that are transfer rows; default all")
parser.add_argument("--methods", nargs="+", choices=METHODS, default=["labels", "default"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--dev", action="store_true", help="score on a tenth of the training rows")
parser.add_argument("--prediction", default="{}", help="arguments of the prediction phase, as JSON")
parser.add_argument("--labels", default="{}", help="arguments of the labels phase, as JSON")
parser.add_argument("--intermediate", help="arguments of an intermediate phase, as JSON")
parser.add_argument("--name", required=True, help="begins the name of every run")
parser.add_argument("--output_dir", type=Path, default=Path("runs/quality"))
parser.add_argument("--results", type=Path, help="folder of the small files")
options = parser.parse_args()

if options.task:
    task = GLUE[options.task]
    data = task.load(options.data)
else:
    task, data = load_task(options.data)
if options.dev:
    data = hold_out(datasets.DatasetDict(train=data["train"]), "label")
order = random.Random(0).sample(range(len(data["train"])), len(data["train"]))
labelled = options.labelled or len(order)
others = order[labelled : None if options.transfer is None else labelled + options.transfer]
transfer = data["train"].select(others).select_columns([*task.text]) if others else None
data["train"] = data["train"].select(order[:labelled])
size = dict(zip(TINYBERT4, options.size, strict=True))
for method in options.methods:
    for seed in options.seeds:
        chosen = dict(METHODS[method])
        prediction = json.loads(options.prediction) | chosen.pop("prediction", {})
        labels = json.loads(options.labels) | chosen.pop("labels", {})
        if options.intermediate:
            chosen["intermediate"] = json.loads(options.intermediate)
        splits = {name: rows for name, rows in data.items() if name != "train"} if method == "no_labels" else data
        folder, start = options.output_dir / f"{options.name}_{method}_s{seed}", process_time()
        results = task_distillation(
            task,
            datasets.DatasetDict(splits),
            options.teacher,
            folder,
            student=size | ({"dropout": 0.1} if method == "with_dropout" else {}),
            transfer=transfer if method in TRANSFER else None,
            prediction=prediction,
            labels=labels,
            seed=seed,
            use_cpu=not torch.accelerator.is_available(),
            report_to=[],
            disable_tqdm=True,
            **chosen,
        )
        score = {name: results[name][task.validation[0]]["score"] for name in ("teacher", "student", "student_last")}
        print(folder.name, {name: round(100 * value, 1) for name, value in score.items()}, results["seconds"])
        if options.results:
            record = {"settings": json.loads((folder / "settings.json").read_text()), "results": results}
            record["cpu_seconds"] = process_time() - start
            options.results.mkdir(parents=True, exist_ok=True)
            (options.results / f"{folder.name}.json").write_text(json.dumps(record, indent=1))
