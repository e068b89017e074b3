"""The ablations of the paper's tables 2 to 4 on one task, beside the results of the paper (TinyBERT4, dev sets).

    python recipes/ablations.py --task cola --teacher folder --general folder/of/general/student --augment 20 ...

Each variant is one run of recipes/task_distillation.py in a separate folder. Finished runs are not repeated. Flags
that are not listed below are passed on to that recipe. `--general` is a student of recipes/general_distillation.py.
Without it every variant starts from `--init`, and "without general distillation" is left out.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

# MNLI-m, MNLI-mm, MRPC, CoLA, average: tables 2, 3 and 4 of arXiv 1909.10351v5
PAPER = {
    "everything": (82.8, 82.9, 85.8, 50.8, 75.6),
    "without general distillation": (82.5, 82.6, 84.1, 40.8, 72.5),
    "without task distillation": (80.6, 81.2, 83.8, 28.5, 68.5),
    "without augmentation": (80.5, 81.0, 82.4, 29.8, 68.4),
    "without embedding loss": (82.3, 82.3, 85.0, 46.7, 74.1),
    "without prediction loss": (80.5, 81.0, 84.3, 48.2, 73.5),
    "without attention and hidden losses": (71.7, 72.3, 70.1, 11.2, 56.3),
    "without attention loss": (79.9, 80.7, 82.3, 41.1, 71.0),
    "without hidden loss": (81.7, 82.1, 84.1, 43.7, 72.9),
    "top mapping": (81.7, 82.3, 83.6, 35.9, 70.9),
    "bottom mapping": (80.6, 81.3, 84.6, 38.5, 71.3),
}
CHANGES = {
    "without embedding loss": ["--intermediate_losses", "attention", "hidden"],
    "without prediction loss": ["--prediction_losses", "task"],
    "without attention and hidden losses": ["--intermediate_losses", "embedding"],
    "without attention loss": ["--intermediate_losses", "hidden", "embedding"],
    "without hidden loss": ["--intermediate_losses", "attention", "embedding"],
    "top mapping": ["--layer_mapping", "top"],
    "bottom mapping": ["--layer_mapping", "bottom"],
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", required=True)
parser.add_argument("--general", help="folder or Hub id of a generally distilled student")
parser.add_argument("--augment", default="0", help="number of variants of each row")
parser.add_argument("--intermediate_epochs", default="3")
parser.add_argument("--prediction_epochs", default="3")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--output_dir", type=Path, default=Path("runs/ablations"))
options, others = parser.parse_known_args()
student = ["--student", options.general] if options.general else []
augment = ["--augment", options.augment] if options.augment != "0" else []
epochs = [float(options.intermediate_epochs), float(options.prediction_epochs)]
phases = ["--intermediate_epochs", str(epochs[0]), "--prediction_epochs", str(epochs[1])]
# Without task distillation the student is fine-tuned on the labels for the same number of epochs.
labels_only = ["--intermediate_epochs", "0", "--prediction_epochs", str(sum(epochs)), "--prediction_losses", "task"]

variants = {"everything": student + augment + phases}
if student:
    variants["without general distillation"] = augment + phases
variants["without task distillation"] = student + labels_only
if augment:
    variants["without augmentation"] = student + phases
variants |= {name: variants["everything"] + change for name, change in CHANGES.items()}

columns = f"variant | {options.task}, best epoch | last epoch | paper: MNLI-m | MNLI-mm | MRPC | CoLA | average"
table = [f"| {columns} |", "|---" * 8 + "|"]
for name, flags in variants.items():
    scores = {"student": [], "student_last": []}
    for seed in options.seeds:
        folder = options.output_dir / options.task / f"{name.replace(' ', '_')}_{seed}"
        command = [sys.executable, str(Path(__file__).parent / "task_distillation.py"), "--task", options.task]
        command += [*others, *flags, "--seed", str(seed), "--output_dir", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = json.loads((folder / "results.json").read_text())
        for student_name, by_seed in scores.items():
            by_seed.append(100 * next(iter(results[student_name].values()))["score"])
    cells = [f"{mean(by_seed):.1f}" for by_seed in scores.values()]
    if len(options.seeds) > 1:
        cells[0] += f" ({', '.join(f'{score:.1f}' for score in scores['student'])})"
    table.append("| " + " | ".join([name, *cells, *map(str, PAPER[name])]) + " |")
    print(table[-1], flush=True)
options.output_dir.mkdir(parents=True, exist_ok=True)
(options.output_dir / f"{options.task}.md").write_text("\n".join(table) + "\n")
print("\n".join(table))
