"""The table of recipes/results/README.md, and the logs behind its rows beside it.

    python recipes/results.py [--hardware "..."] [--commit ...] runs/rte runs/cola
    python recipes/results.py

The first command stores settings, scores, logs and command of each finished folder of `task_distillation.py`, without
full paths. Both commands then write the table again. Runs that differ only in the seed form one row.
"""

import argparse
import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from statistics import mean

HERE = Path(__file__).parent
PLACE = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.S)
PHASES = {"intermediate": "intermediate", "prediction": "student", "fine_tuning": "teacher"}
COLUMNS = ["task", "teacher", "student", "init", "phases: epochs, losses", "bf16", "augmented", "teacher"]
COLUMNS += ["student (seeds)", "last epoch", "retained", "minutes", "commit"]
OLDER_NAMES = {"sample": "calibration_rows", "steps": "phases"}  # of settings, in the records of older commits


def shorter(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def record(folder: Path, commit: str, hardware: str) -> dict:
    """The command, settings, scores and logs of a finished run."""
    settings = json.loads((folder / "settings.json").read_text())
    teachers = settings["teacher"]
    settings["teacher"] = shorter(teachers) if isinstance(teachers, str) else ", ".join(map(shorter, teachers))
    settings["rows"] = {split: count for split, (count, *_) in settings["rows"].items()}
    if isinstance(settings["student"], str):
        settings["student"] = shorter(settings["student"])
    command = (folder / "command.txt").read_text().strip()
    states = {name: folder / part / "trainer_state.json" for name, part in PHASES.items()}
    return {
        "command": re.sub(r"(?<=\s)/\S+", lambda match: shorter(match[0]), command),
        "commit": commit,
        "hardware": hardware,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")},
        "settings": settings,
        "results": json.loads((folder / "results.json").read_text()),
        "logs": {name: json.loads(f.read_text())["log_history"] for name, f in states.items() if f.exists()},
    }


def load(file: Path) -> dict:
    """A record under the present names of settings."""
    run = json.loads(file.read_text())
    run["settings"] = {OLDER_NAMES.get(name, name): value for name, value in run["settings"].items()}
    return run


def loss_names(arguments: dict) -> list[str]:
    """The names of the losses of a phase; older records name them by `loss_type` alone."""
    if "losses" in arguments:
        return [loss["name"] for loss in arguments["losses"]]
    return arguments["loss_type"]


def group(run: dict) -> str:
    """A key that is equal for runs that differ only in the seed."""
    settings = json.loads(json.dumps(run["settings"]))
    for arguments in (*settings["phases"].values(), settings["augmentation"] or {}):
        arguments.pop("seed", None)
    del settings["phases"]["fine_tuning"], settings["teacher"]  # the teacher's score identifies it
    return json.dumps([settings, round(score(run, "teacher"), 1)])


def score(run: dict, model: str) -> float:
    return 100 * mean(split["score"] for split in run["results"][model].values())


def last_score(run: dict) -> float:
    """The score after the last epoch, from the log of the prediction phase."""
    return 100 * [entry["eval_score"] for entry in run["logs"]["prediction"] if "eval_score" in entry][-1]


def row(runs: list[dict]) -> list[str]:
    settings, seconds = runs[-1]["settings"], [run["results"]["seconds"] for run in runs]
    size = settings["student"]
    if not isinstance(size, str):
        embeddings = f", embeddings of {size['embedding_size']}" if "embedding_size" in size else ""
        size = "{num_hidden_layers} × {hidden_size}/{intermediate_size}".format_map(size) + embeddings
    phases = [
        f"{name}: {arguments['num_train_epochs']:g}, {' '.join(loss_names(arguments))}"
        + (f", {arguments['layer_mapping']}" if arguments.get("layer_mapping", "uniform") != "uniform" else "")
        for name, arguments in ((name, settings["phases"][name]) for name in ("intermediate", "prediction"))
        if arguments["num_train_epochs"]
    ]
    scores, teacher = [score(run, "student") for run in runs], score(runs[0], "teacher")
    minutes = mean(sum(taken for name, taken in part.items() if name != "fine_tuning") for part in seconds) / 60
    return [
        settings["task"] + f", {settings['rows']['train']:,} rows",
        settings["teacher"],
        size,
        settings["init"] if isinstance(settings["student"], dict) else "loaded",
        "; ".join(phases),
        "yes" if settings["phases"]["prediction"].get("bf16") else "",
        f"{runs[0]['results']['rows']:,}" if settings["augmentation"] else "",
        f"{teacher:.1f}",
        f"**{mean(scores):.1f}**" + (f" ({', '.join(f'{s:.1f}' for s in scores)})" if len(runs) > 1 else ""),
        f"{mean(map(last_score, runs)):.1f}",
        f"{mean(scores) / teacher:.1%}",
        f"{minutes:.1f}",
        ", ".join(sorted({run["commit"] for run in runs})),
    ]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", type=Path, nargs="*")
parser.add_argument("--commit", help="commit of the code that ran; default: the one checked out")
parser.add_argument("--hardware", default="2 cores, no GPU")
parser.add_argument("--results", type=Path, default=HERE / "results", help="has the logs and README.md, the table")
options = parser.parse_args()

commit = options.commit or subprocess.check_output(["git", "-C", HERE, "log", "-1", "--format=%h"], text=True).strip()
for folder in options.folders:
    text = json.dumps(record(folder, commit, options.hardware), indent=1)
    (options.results / f"{folder.name}.json").write_text(text + "\n")
groups: dict[str, list[dict]] = {}
for file in sorted(options.results.glob("*.json")):
    run = load(file)
    groups.setdefault(group(run), []).append(run)
lines = ["| " + " | ".join(cells) + " |" for cells in sorted(map(row, groups.values()))]
table = "\n".join(["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *lines]) + "\n"
readme = options.results / "README.md"
readme.write_text(PLACE.sub(lambda match: match[1] + table + match[2], readme.read_text()))
