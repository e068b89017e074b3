"""The scores of the default recipe beside those of its alternatives: one student for each method and seed.

    python recipes/quality.py run --name cola --data folder/of/glue --task cola --teacher folder/of/teacher
    python recipes/quality.py run --name tweets --data tweets.csv --labelled 2400 --teacher folder --methods transfer
    python recipes/quality.py table recipes/results/quality
    python recipes/quality.py curve recipes/results/quality --tasks mpnet_sst2 minilm_sst2

Every run is a folder of --output_dir, whose scores and settings are copied to a small file in --results. A run that
was killed continues with the same command. The method "labels" is the best of six settings on the first seed. --dev
scores on a tenth of the training rows, for the choice of settings. `table` prints means and standard errors of seeds.
`curve` draws score against transfer rows: a task's runs with all of them, and those named after it, "_" and a number.
"""

import argparse
import json
import random
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import datasets
import torch
from transformers import AutoTokenizer, set_seed

from hf_tinybert import (
    GLUE,
    TINYBERT4,
    DistillationLoss,
    RandomWords,
    cache_logits,
    create_student,
    task_distillation,
)
from hf_tinybert.pipelines.data import hold_out, load_task


class LogitError(DistillationLoss):
    """The mean squared difference of the logits."""

    name, reads = "logit_error", frozenset({"logits"})

    def forward(self, student, teacher, layer_mapping):
        return (student.logits - teacher.logits).square().mean(-1)


class StandardisedLogits(DistillationLoss):
    """The cross-entropy of logits with mean 0 and standard deviation 1 / 2 in each row (Sun et al., 2024)."""

    name, reads = "standardised_logits", frozenset({"logits"})

    def forward(self, student, teacher, layer_mapping):
        pair = (student.logits, teacher.logits)
        ours, theirs = ((z - z.mean(-1, keepdim=True)) / (2 * z.std(-1, keepdim=True) + 1e-7) for z in pair)
        return -(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1)


NONE, LAYERS = {"num_train_epochs": 0}, ["attention", "hidden", "embedding"]
# arguments of task_distillation; "transfer" and "labelled" say which rows there are
METHODS = {
    "labels": {"prediction": NONE},
    "random_labels": {"init": "random", "prediction": NONE},
    "logits": {"intermediate": None, "augmentation": None, "labels": NONE},
    "default": {},
    "transfer": {"transfer": True},
    "text_alone": {"transfer": True, "labelled": False},
    "without_augmentation": {"transfer": True, "augmentation": None},
    "without_labels_phase": {"transfer": True, "labels": NONE},
    "without_start": {"transfer": True, "init": "random"},
    "with_dropout": {"transfer": True, "dropout": 0.1},
    "without_layers": {"transfer": True, "intermediate": None},
    "with_layers": {"transfer": True, "intermediate": {}},
    "with_relations": {"transfer": True, "intermediate": {"loss_type": ["attention", "relation"]}},
    "at_once": {"transfer": True, "prediction": {"loss_type": [*LAYERS, "prediction"], "balance_losses": True}},
    "labels_at_last": {"transfer": True, "labels": {"loss_type": ["task"]}},
    "temperature_2": {"transfer": True, "prediction": {"temperature": 2.0}},
    "logit_error": {"transfer": True, "prediction": {"losses": [LogitError()]}},
    "standardised_logits": {"transfer": True, "prediction": {"losses": [StandardisedLogits()]}},
}
DEVICE = torch.accelerator.current_accelerator() or torch.device("cpu")
LABEL_SETTINGS = [{"num_train_epochs": n, "learning_rate": rate} for n, rate in product((2, 4, 8), (5e-5, 1e-4))]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
verbs = parser.add_subparsers(dest="verb", required=True)
add = verbs.add_parser("table").add_argument
add("results", type=Path)
add = verbs.add_parser("curve").add_argument
add("results", type=Path, help="the figure is written there too, as transfer_rows.png")
add("--tasks", nargs="+", required=True, help="names of runs without the number of rows; one part of the figure each")
add("--titles", nargs="+", help="of the parts; default these names")
add = verbs.add_parser("run").add_argument
add("--name", required=True, help="begins the name of every run")
add("--data", required=True, help="folder of GLUE's tasks, or a file or Hub id with text and label")
add("--task", choices=GLUE, help="of GLUE; default: that of the file")
add("--teacher", required=True, help="Hub id or folder; fine-tuned first without a prediction head")
add("--size", type=int, nargs=4, default=[4, 312, 1200, 12], help="layers, width, feed-forward, heads")
add("--student", type=Path, help="folder of the student to go on with; default: one initialised from the teacher")
add("--labelled", type=int, help="number of rows that keep their labels; default all")
add("--transfer", type=int, help="number of the other rows that are transfer rows; default all")
add("--half", choices=["entropy", "disagreement"], help="keep the half of these rows for which it is highest")
add("--copies", type=int, help="random variants of each row; default those of the recipe")
add("--methods", nargs="+", choices=METHODS, default=["labels", "default"])
add("--seeds", type=int, nargs="+", default=[0])
add("--dev", action="store_true", help="score on a tenth of the training rows")
add("--intermediate", type=json.loads, default='"auto"', help="arguments of the intermediate phase, as JSON")
add("--prediction", type=json.loads, default={}, help="arguments of the prediction phase, as JSON")
add("--labels", type=json.loads, default={}, help="arguments of the labels phase, as JSON")
add("--output_dir", type=Path, default=Path("runs/quality"))
add("--results", type=Path, default=Path("runs/quality/results"), help="folder of the small files")
options = parser.parse_args()


def print_table() -> None:
    scores, teachers = defaultdict(lambda: defaultdict(list)), {}
    for file in sorted(options.results.glob("*.json")):
        record = json.loads(file.read_text())
        scores[record["name"]][record["method"]].append(100 * record["scores"]["student"])
        teachers[record["name"]] = 100 * record["scores"]["teacher"]
    methods = [method for method in METHODS if any(method in by_method for by_method in scores.values())]
    print("| run | teacher |", " | ".join(methods), "|\n|---|---|" + "---|" * len(methods))
    for name, by_method in scores.items():
        cells = [summary(by_method[method]) for method in methods]
        print(f"| {name} | {teachers[name]:.1f} |", " | ".join(cells), "|")


def summary(values: list[float]) -> str:
    """The mean and its standard error."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{mean(values):.1f} ± {stdev(values) / len(values) ** 0.5:.1f}"


def draw_curve() -> None:
    """One part for each task: means of seeds with labels and before them, lines for the teacher and labels alone."""
    from matplotlib.figure import Figure  # of the extra `report`

    figure = Figure((2 + 4 * len(options.tasks), 3.2), layout="constrained")
    parts = figure.subplots(1, len(options.tasks), squeeze=False)[0]
    for axes, task, title in zip(parts, options.tasks, options.titles or options.tasks, strict=True):
        with_labels, before = defaultdict(list), defaultdict(list)
        for file in [
            *options.results.glob(f"{task}_[0-9]*.json"),
            *options.results.glob(f"{task}_transfer_s[0-9]*.json"),
        ]:
            record = json.loads(file.read_text())
            rows = record["results"].get("transfer", {}).get("rows", 0)
            evaluated = [entry["eval_score"] for entry in record["logs"]["prediction"] if "eval_score" in entry]
            with_labels[rows].append(100 * record["scores"]["student"])
            before[rows].append(100 * evaluated[-1])
        for scores, style, label in ((with_labels, "o-", "answers, then labels"), (before, "s--", "answers alone")):
            means = [mean(scores[rows]) for rows in sorted(scores)]
            axes.plot(sorted(scores), means, style, label=f"teacher's {label}")
        alone = [json.loads(file.read_text())["scores"] for file in options.results.glob(f"{task}_labels_s*.json")]
        for name, label, colour in (("teacher", "teacher", "black"), ("student", "labels alone", "grey")):
            axes.axhline(100 * mean(scores[name] for scores in alone), color=colour, linestyle=":", label=label)
        axes.set_xscale("symlog", linthresh=1000)
        ticks = sorted(with_labels)
        axes.set(xticks=ticks, xticklabels=[f"{rows:,}" for rows in ticks], xlim=(-200, 1.3 * ticks[-1]))
        axes.minorticks_off()
        axes.set(title=title, xlabel="transfer rows", ylabel="score")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(options.results / "transfer_rows.png", dpi=100)


class Runs:
    """The data of the flags, and the runs on it."""

    def __init__(self):
        if options.task:
            self.task = GLUE[options.task]
            data = self.task.load(options.data)
        else:
            self.task, data = load_task(options.data)
        if options.dev:
            data = hold_out(datasets.DatasetDict(train=data["train"]), "label")
        train = data["train"]
        order = random.Random(0).sample(range(len(train)), len(train))
        labelled = options.labelled or len(order)
        others = order[labelled : None if options.transfer is None else labelled + options.transfer]
        self.transfer = train.select(others).select_columns([*self.task.text]) if others else None
        self.unlabelled = datasets.DatasetDict({name: rows for name, rows in data.items() if name != "train"})
        self.data = datasets.DatasetDict(self.unlabelled, train=train.select(order[:labelled]))
        if options.half:
            self.transfer = self.half(self.transfer)

    def half(self, rows: datasets.Dataset) -> datasets.Dataset:
        """The rows of the highest entropy of the teacher, or where the start disagrees with it most."""
        tokenizer = AutoTokenizer.from_pretrained(options.teacher)
        tokens = self.task.tokenize(rows, tokenizer)
        models = [options.teacher] + ([self.start(options.seeds[0])] if options.half == "disagreement" else [])
        logits = [cache_logits(self.task.load_model(model)[0].to(DEVICE), tokens, tokenizer) for model in models]
        teacher, *start = (torch.tensor(each["teacher_logits"][:]).log_softmax(-1) for each in logits)
        value = (teacher.exp() * (teacher - start[0])).sum(-1) if start else -(teacher.exp() * teacher).sum(-1)
        return rows.select(sorted(value.argsort(descending=True)[: len(rows) // 2].tolist()))

    def start(self, seed: int) -> Path:
        """The folder of the student before it is trained, as `task_distillation` makes it from the labelled rows."""
        folder = options.output_dir / f"{options.name}_start_s{seed}"
        if not (folder / "config.json").exists():
            set_seed(seed)
            rows = self.data["train"].select(range(min(2000, len(self.data["train"]))))
            tokenizer = AutoTokenizer.from_pretrained(options.teacher)
            student = create_student(
                self.task.load_model(options.teacher)[0].to(DEVICE),
                *options.size,
                dropout=0.0,
                merge_layers=True,
                calibration_dataset=self.task.tokenize(rows, tokenizer),
                processing_class=tokenizer,
            )
            student.save_pretrained(folder)
        return folder

    def score(self, method: str, seed: int, labels: dict, suffix: str = "", start: Path | None = None) -> float:
        """The student's score after one run, whose record is written."""
        chosen = {"transfer": False, "labelled": True, "dropout": 0.0, "intermediate": options.intermediate}
        if options.copies is not None:
            chosen["augmentation"] = RandomWords(options.copies, seed=seed) if options.copies else None
        chosen |= METHODS[method]
        sizes = dict(zip(TINYBERT4, options.size, strict=True)) | {"dropout": chosen.pop("dropout")}
        folder = options.output_dir / f"{options.name}_{method}{suffix}_s{seed}"
        results = task_distillation(
            self.task,
            self.data if chosen.pop("labelled") else self.unlabelled,
            options.teacher,
            folder,
            student=start or options.student or sizes,
            transfer=self.transfer if chosen.pop("transfer") else None,
            prediction={**options.prediction, **chosen.pop("prediction", {})},
            labels={**labels, **chosen.pop("labels", {})},
            seed=seed,
            use_cpu=DEVICE.type == "cpu",
            report_to=[],
            disable_tqdm=True,
            **chosen,
        )
        split = self.task.validation[0]
        scores = {name: results[name][split]["score"] for name in ("teacher", "student", "student_last")}
        print(folder.name, {name: round(100 * value, 1) for name, value in scores.items()}, results["seconds"])
        record = {"name": options.name, "method": method + suffix, "seed": seed, "scores": scores, "results": results}
        settings = json.loads((folder / "settings.json").read_text())
        # not paths of this machine
        record["settings"] = settings | {
            "teacher": Path(options.teacher).name,
            "student": "/".join(options.student.parts[-2:]) if options.student else sizes,
        }
        states = {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/trainer_state.json")}
        record["logs"] = {phase: state["log_history"] for phase, state in states.items()}
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / f"{folder.name}.json").write_text(json.dumps(record) + "\n")
        return scores["student"]

    def labels(self) -> None:
        """The labels alone: every setting on the first seed, and the one whose student scores best there on all."""
        first, *others = options.seeds
        suffixes = [f"_{s['num_train_epochs']}x{s['learning_rate']:g}" for s in LABEL_SETTINGS]
        scores = [
            self.score("labels", first, setting, suffix, self.start(first))
            for setting, suffix in zip(LABEL_SETTINGS, suffixes, strict=True)
        ]
        best = scores.index(max(scores))
        record = json.loads((options.results / f"{options.name}_labels{suffixes[best]}_s{first}.json").read_text())
        text = json.dumps(record | {"method": "labels"}) + "\n"
        (options.results / f"{options.name}_labels_s{first}.json").write_text(text)
        for seed in others:
            self.score("labels", seed, LABEL_SETTINGS[best], start=self.start(seed))


if options.verb == "table":
    print_table()
elif options.verb == "curve":
    draw_curve()
else:
    runs = Runs()
    for method in options.methods:
        if method == "labels":
            runs.labels()
        else:
            for seed in options.seeds:
                runs.score(method, seed, options.labels)
