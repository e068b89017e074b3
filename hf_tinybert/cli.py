"""The command line: hf-tinybert distill | augment | evaluate | report | export | push | doctor.

`accelerate launch -m hf_tinybert.cli distill …` runs it in many processes. Exit codes: 0 done, 1 cannot work (one line
says what to change), 2 flags not understood.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate import PartialState
from transformers import AutoModelForMaskedLM, HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from .evaluation.plots import plot_attention, plot_similarity
from .evaluation.report import StudentReport
from .models.export import export_onnx, quantize_onnx, save_half
from .models.loading import from_pretrained, load_tokenizer
from .pipelines.doctor import Check, diagnose, to_table
from .pipelines.task import evaluate as evaluate_task
from .pipelines.task import task_distillation
from .publishing.hub import push_folder
from .students import INITS, TINYBERT4
from .tasks import TASKS, Task, TextClassification
from .tasks.augmentation import Augmentation, WordVectors
from .teachers import load_teacher
from .training.arguments import DistillationArguments

STEPS = ("fine_tuning", "intermediate", "prediction")
EXAMPLES = """examples:
  hf-tinybert doctor  --task sst2 --teacher bert-base-uncased
  hf-tinybert distill --task sst2 --teacher bert-base-uncased --output_dir runs/sst2 --bf16
  hf-tinybert distill --data user/reviews --text review --teacher user/classifier --output_dir runs/reviews \\
      --intermediate num_train_epochs=3 --prediction num_train_epochs=3 learning_rate=3e-5
  hf-tinybert report  --task sst2 --teacher runs/sst2/teacher --student runs/sst2/student --output_dir runs/report
  hf-tinybert export  runs/sst2/student --output_dir runs/onnx
  hf-tinybert push    runs/sst2/student --to user/tinybert-sst2 --private

Each verb takes --config FILE.yaml too: its keys are the flags, and flags given beside it win.
hf-tinybert VERB --help explains a verb."""
SIZES = "layers, width, feed-forward width, heads (default: TinyBERT4's)"
TRAINER = (
    "Every other argument of TrainingArguments is a flag too: --num_train_epochs, --learning_rate, --push_to_hub…"
)
Options = argparse.Namespace


# ---- Verbs ----


def distill(options: Options) -> None:
    """Fine-tune the teacher if it has no head, cut the student out of it, distil layers, then predictions."""
    task, data = _task(options)
    steps = {step: _settings(getattr(options, step)) for step in STEPS}
    augmentation = _augmentation(options) if options.copies else None
    student = {"init": options.init, "calibration_rows": options.calibration_rows, "student": _student(options)}
    arguments = _trainer_arguments(options)
    folder = arguments.pop("output_dir")
    results = task_distillation(
        task, data, options.teacher, folder, **student, **steps, augmentation=augmentation, **arguments
    )
    if PartialState().is_main_process:
        print(json.dumps(results, indent=1))


def doctor(options: Options) -> int:
    """Say in a table what a distillation would meet, before any training; exit code 1 where something cannot work."""
    try:
        task, data = _task(options)
    except (ValueError, OSError) as error:
        checks = [Check("data", False, str(error))]
    else:
        student, arguments = _student(options), _trainer_arguments(options)
        checks = [
            check
            for teacher in options.teacher
            for check in diagnose(task, data, teacher, student, options.init, **arguments)
        ]
    print(to_table(checks))
    return int(not all(check.passed for check in checks))


def augment(options: Options) -> None:
    """Write the training rows and variants of them (TinyBERT, Algorithm 1) to a parquet file."""
    task, data = _task(options)
    augmented = _augmentation(options)(data["train"], task.augmented)
    augmented.to_parquet(options.output)
    print(f"{len(data['train'])} rows became {len(augmented)}: {options.output}")


def evaluate(options: Options) -> None:
    """Score a model on the validation splits and print the metrics as JSON."""
    task, data = _task(options)
    model, tokenizer = _model(task, options.model), load_tokenizer(options.model)
    with tempfile.TemporaryDirectory() as folder:
        size = {"per_device_eval_batch_size": options.batch_size}
        args = TrainingArguments(folder, report_to=[], **size, **task.evaluation_arguments)
        scores = evaluate_task(task, data, tokenizer, args, model)
    print(json.dumps(scores, indent=1))


def report(options: Options) -> None:
    """Compare teacher and student on the same rows: scores, agreement, size, speed; a table, JSON and plots."""
    task, data = _task(options)
    tokenizer = load_tokenizer(options.student)
    teacher, student = _model(task, options.teacher), _model(task, options.student)
    rows = task.tokenize(data[task.validation[0]], tokenizer)
    several = tokenizer.pad(rows.remove_columns("labels")[:256], return_tensors="pt")
    one = {name: values[:1, several["attention_mask"][0].bool()] for name, values in several.items()}
    figures = {
        "similarity": plot_similarity(teacher, student, several),
        "attention": plot_attention(teacher, student, one, tokenizer.convert_ids_to_tokens(one["input_ids"][0])),
    }
    measured = StudentReport.measure(
        teacher, student, rows, tokenizer, task.compute_metrics, options.batch_size, options.engines
    )
    measured.save(options.output_dir, **figures)
    print(measured.to_markdown())


def export(options: Options) -> None:
    """Write a model as ONNX, int8 ONNX and fp16 safetensors, each checked against it."""
    model, tokenizer = load_teacher(options.model), load_tokenizer(options.model)
    written = []
    if {"onnx", "int8"} & set(options.formats):
        written.append(export_onnx(model, tokenizer, options.output_dir))
    if "int8" in options.formats:
        written.append(quantize_onnx(options.output_dir))
    if "fp16" in options.formats:
        written.append(save_half(model, tokenizer, options.output_dir / "fp16"))
    print("\n".join(map(str, written)))


def push(options: Options) -> None:
    """Push a student's folder to the Hub, without its checkpoints."""
    print(push_folder(options.model, options.to, private=options.private, revision=options.revision))


# ---- What the flags mean ----


def _task(options: Options) -> tuple[Task, datasets.DatasetDict]:
    if options.task:
        task = TASKS[options.task]
        data = task.load(options.data)
    elif options.data:
        loaded = datasets.load_dataset(options.data, options.subset)
        settings = {"label": options.label, "validation": options.validation, "max_length": options.max_length}
        task, data = TextClassification.from_dataset(loaded, options.text, **settings)
    else:
        raise ValueError("Say which data: --task, a known one, or --data, a Hub id or folder.")
    if options.rows:
        chosen = random.Random(0).sample(range(len(data["train"])), min(options.rows, len(data["train"])))
        data["train"] = data["train"].select(chosen)
    return task, data


def _model(task: Task, name: str):
    model, untrained = task.load_model(name)
    if untrained:
        raise ValueError(f"'{name}' has no trained head for {task.name}: fine-tune it first.")
    return model


def _student(options: Options) -> dict[str, float] | str:
    more = {name: x for name in ("embedding_size", "dropout") if (x := getattr(options, name)) is not None}
    return options.student or dict(zip(TINYBERT4, options.size, strict=True)) | more


def _augmentation(options: Options) -> Augmentation:
    model, tokenizer = from_pretrained(AutoModelForMaskedLM, options.masked_lm), load_tokenizer(options.masked_lm)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    return Augmentation(model, tokenizer, vectors, copies=options.copies, seed=vars(options).get("seed", 0))


def _settings(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE flags, lists as [a, b], read as the flags --KEY VALUE are."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"{wrong[0]!r} is no KEY=VALUE, such as num_train_epochs=3.")
    flags: list[str] = []
    for key, value in (pair.split("=", 1) for pair in pairs):
        listed = yaml.safe_load(value)
        flags += [f"--{key}", *(map(str, listed) if isinstance(listed, list) else [value])]
    return vars(_trainer_flags().parse_args(flags))


def _trainer_arguments(options: Options) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(DistillationArguments)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return {"use_cpu": not torch.accelerator.is_available(), **given}


# ---- Flags ----


def _trainer_flags() -> argparse.ArgumentParser:
    """Every argument of DistillationArguments as a flag; only those that are given come out."""
    parser = HfArgumentParser(DistillationArguments, add_help=False)
    shown = {*DistillationArguments.__annotations__, "output_dir"}
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
        action.help = action.help if action.dest in shown else argparse.SUPPRESS
    return parser


def _data_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("data")
    group.add_argument("--task", choices=TASKS, help="a task whose columns, labels and metric are known")
    group.add_argument("--data", help="Hub id or folder; with --task a folder of folders by task (default: the Hub's)")
    group.add_argument("--subset", help="configuration of --data")
    group.add_argument("--text", nargs="+", default=["text"], help="one or two columns of text, without --task")
    group.add_argument("--label", default="label", help="column of the labels; floats make it a regression")
    group.add_argument("--validation", default="validation", help="split that scores and selects")
    group.add_argument("--max_length", type=int, help="tokens a row is cut to (default: 64 a text column)")
    group.add_argument("--rows", type=int, help="this many training rows only, drawn with seed 0")
    return parser


def _student_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("models")
    group.add_argument(
        "--teacher", nargs="+", required=True, help="Hub ids or folders; fine-tuned first if they have no head"
    )
    group.add_argument("--student", help="Hub id or folder, instead of making one of --size")
    group.add_argument("--size", type=int, nargs=4, default=[*TINYBERT4.values()], metavar="N", help=SIZES)
    group.add_argument("--embedding_size", type=int, help="factorise the token embeddings, e.g. 128")
    group.add_argument("--dropout", type=float, help="of the student, e.g. 0; default: the teacher's")
    group.add_argument(
        "--init", choices=INITS, default="teacher", help="teacher: cut out of it on --calibration_rows rows"
    )
    group.add_argument("--calibration_rows", type=int, default=2000)
    steps = parser.add_argument_group("steps: DistillationArguments of one of them, as KEY=VALUE")
    for step in STEPS:
        steps.add_argument(f"--{step}", nargs="+", default=[], metavar="KEY=VALUE")
    return parser


def _augmentation_flags(copies: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("augmentation")
    group.add_argument("--copies", type=int, default=copies, help="variants of each row (paper: 20)")
    group.add_argument("--masked_lm", default="bert-base-uncased", help="Hub id or folder")
    group.add_argument("--vectors", nargs="+", type=Path, help="GloVe text file; or .npy and the file of its words")
    return parser


def _parser() -> argparse.ArgumentParser:
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("hf-tinybert", description=__doc__, epilog=EXAMPLES, **raw)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(function, *parents: argparse.ArgumentParser, epilog: str | None = None) -> argparse.ArgumentParser:
        name, text = function.__name__, function.__doc__
        added = verbs.add_parser(name, parents=parents, help=text, description=text, epilog=epilog, **raw)
        added.add_argument("--config", metavar="FILE.yaml", help="flags from a file")
        added.add_argument("--traceback", action="store_true", help="show where an error comes from")
        added.set_defaults(run=function, verb=name)
        return added

    verb(distill, _data_flags(), _student_flags(), _augmentation_flags(0), _trainer_flags(), epilog=TRAINER)
    verb(doctor, _data_flags(), _student_flags(), _trainer_flags(), epilog=TRAINER)
    rows = verb(augment, _data_flags(), _augmentation_flags(20))
    rows.add_argument("--seed", type=int, default=0)
    rows.add_argument("--output", required=True, metavar="FILE.parquet")
    scored = verb(evaluate, _data_flags())
    compared = verb(report, _data_flags())
    for each in (scored, compared):
        each.add_argument("--batch_size", type=int, default=32)
    compared.add_argument("--teacher", required=True, help="Hub id or folder")
    compared.add_argument("--student", required=True, help="Hub id or folder")
    compared.add_argument("--engines", nargs="+", default=["torch", "onnx", "onnx_int8"])
    written, pushed = verb(export), verb(push)
    for each in (scored, written, pushed):
        each.add_argument("model", help="Hub id or folder")
    for each in (compared, written):
        each.add_argument("--output_dir", type=Path, required=True)
    written.add_argument("--formats", nargs="+", choices=["onnx", "int8", "fp16"], default=["onnx", "int8", "fp16"])
    pushed.add_argument("--to", required=True, metavar="USER/NAME")
    pushed.add_argument("--private", nargs="?", type=string_to_bool, const=True, help="make the repository private")
    pushed.add_argument("--revision", help="branch to push to")
    return parser


def _with_config(flags: list[str]) -> list[str]:
    """The flags with those of the file of --config before them, so that what is given by hand wins."""
    if "--config" not in flags[:-1]:
        return flags
    path = flags[flags.index("--config") + 1]
    settings = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold flags as 'name: value' lines.")
    given: list[str] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            value = [f"{key}={inner if isinstance(inner, str) else json.dumps(inner)}" for key, inner in value.items()]
        given += [] if name == "model" else [f"--{name}"]
        given += map(str, value if isinstance(value, list) else [value])
    return [flags[0], *given, *flags[1:]]


def main(flags: list[str] | None = None) -> int:
    """Run a verb; its exit code."""
    flags = sys.argv[1:] if flags is None else flags
    try:
        options = _parser().parse_args(_with_config(flags))
        return options.run(options) or 0
    except (ValueError, TypeError, OSError, RuntimeError, LookupError, ImportError) as error:
        if "--traceback" in flags:
            raise
        print(f"hf-tinybert {flags[0]}: {error} (--traceback shows where)", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
