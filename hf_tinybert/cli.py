"""The command line: hf-tinybert distill | augment | evaluate | report | export | push | doctor.

Without a verb it prints this help. `accelerate launch -m hf_tinybert.cli distill …` runs in several processes. Exit
codes: 0 done, or help or version printed; 1 failed, with one line that says what to change; 2 flags not understood.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate import PartialState
from transformers import AutoModelForMaskedLM, PreTrainedModel, TrainingArguments
from transformers.hf_argparser import string_to_bool

from .evaluation.plots import plot_attention, plot_similarity
from .evaluation.report import StudentReport
from .evaluation.rows import EvaluationRows
from .models.export import export_onnx, quantize_onnx, save_half
from .models.loading import from_pretrained, load_tokenizer
from .pipelines.doctor import Check, diagnose, to_table
from .pipelines.scoring import evaluate_task
from .pipelines.task import task_distillation
from .publishing.hub import push_folder
from .students import INITS, TINYBERT4
from .tasks import TASKS, Task, TextClassification
from .tasks.augmentation import Augmentation, WordVectors
from .teachers import load_teacher
from .training.arguments import DistillationArguments, flag_parser
from .version import __version__

EXAMPLES = """examples:
  hf-tinybert doctor  --task sst2 --teacher bert-base-uncased
  hf-tinybert distill --task sst2 --teacher bert-base-uncased --output_dir runs/sst2 --bf16
  hf-tinybert distill --data user/reviews --text review --teacher user/classifier --output_dir runs/reviews \\
      --intermediate num_train_epochs=3 --prediction num_train_epochs=3 learning_rate=3e-5
  hf-tinybert report  --task sst2 --teacher runs/sst2/teacher --student runs/sst2/student --output_dir runs/report
  hf-tinybert export  runs/sst2/student --output_dir runs/onnx
  hf-tinybert push    runs/sst2/student --to user/tinybert-sst2 --private

Every verb also takes --config FILE.yaml, whose keys are the flags; flags on the command line win over the file.
hf-tinybert VERB --help explains a verb."""
USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, LookupError, ImportError)
Options = argparse.Namespace
FORMATS = ("onnx", "int8", "fp16")


# ---- Verbs ----


def distill(options: Options) -> None:
    """Distil a teacher into a student: fine-tune the teacher if it has no prediction head for the task, initialise the
    student from it, then distil its layers and its predictions. Prints the scores as JSON."""
    task, data = _task(options)
    arguments = _trainer_arguments(options)
    results = task_distillation(
        task,
        data,
        options.teacher,
        arguments.pop("output_dir"),
        student=_student(options),
        init=options.init,
        calibration_rows=options.calibration_rows,
        augmentation=_augmentation(options) if options.copies else None,
        fine_tuning=_phase(options.fine_tuning),
        intermediate=_phase(options.intermediate),
        prediction=_phase(options.prediction),
        **arguments,
    )
    if PartialState().is_main_process:
        print(json.dumps(results, indent=1))


def doctor(options: Options) -> int:
    """Check a distillation before any training and print a table of what works and what to change. The exit code is 1
    if something cannot work."""
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
    """Augment the training rows (TinyBERT, algorithm 1) and write them with their variants to a parquet file."""
    task, data = _task(options)
    augmented = _augmentation(options)(data["train"], task.augmented)
    augmented.to_parquet(options.output)
    print(f"{len(data['train'])} rows became {len(augmented)}: {options.output}")


def evaluate(options: Options) -> None:
    """Score a model on the validation splits and print the metrics as JSON."""
    task, data = _task(options)
    model, tokenizer = _model(task, options.model), load_tokenizer(options.model)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, report_to=[], per_device_eval_batch_size=options.batch_size, **task.evaluation_arguments
        )
        scores = evaluate_task(model, task, data, tokenizer, args)
    print(json.dumps(scores, indent=1))


def report(options: Options) -> None:
    """Compare teacher and student on the same rows by scores, agreement, size and speed. Writes a table, JSON and
    plots, and prints the table."""
    task, data = _task(options)
    tokenizer = load_tokenizer(options.student)
    teacher, student = _model(task, options.teacher), _model(task, options.student)
    rows = data[task.validation[0]]
    tokens = task.tokenize(rows, tokenizer)
    batch = EvaluationRows(tokens, [teacher, student], tokenizer).sequences(256)
    first = {name: values[:1, batch["attention_mask"][0].bool()] for name, values in batch.items()}
    words = tokenizer.convert_ids_to_tokens(first["input_ids"][0])
    similarity, attention = plot_similarity(teacher, student, batch), plot_attention(teacher, student, first, words)
    scorer = task.scorer(rows, tokens)
    measured = StudentReport.measure(teacher, student, tokens, tokenizer, scorer, options.batch_size, options.engines)
    measured.save(options.output_dir, similarity=similarity, attention=attention)
    print(measured.to_markdown())


def export(options: Options) -> None:
    """Write a model as ONNX, int8 ONNX and fp16 safetensors whose answers have to be the model's, on rows of the
    validation split if there is data, otherwise on random tokens."""
    model, tokenizer = load_teacher(options.model), load_tokenizer(options.model)
    folder, least, rows, written = options.output_dir, options.min_agreement, None, []
    if options.task or options.data:
        task, data = _task(options)
        rows = task.tokenize(data[task.validation[0]], tokenizer)
    if {"onnx", "int8"} & set(options.formats):
        written.append(export_onnx(model, tokenizer, folder, calibration_dataset=rows, min_agreement=least))
    if "int8" in options.formats:
        written.append(quantize_onnx(folder, rows, least))
    if "fp16" in options.formats:
        written.append(save_half(model, tokenizer, folder / "fp16", rows, least))
    print("\n".join(map(str, written)))


def push(options: Options) -> None:
    """Push the folder of a student to the Hub, without its checkpoints, and print the address."""
    print(push_folder(options.model, options.to, private=options.private, revision=options.revision))


# ---- What the flags mean ----


def _task(options: Options) -> tuple[Task, datasets.DatasetDict]:
    if options.task:
        task = TASKS[options.task]
        data = task.load(options.data)
    elif options.data:
        loaded = datasets.load_dataset(options.data, options.subset)
        task, data = TextClassification.from_dataset(
            loaded, options.text, label=options.label, validation=options.validation, max_length=options.max_length
        )
    else:
        raise ValueError("There is no data: pass --task, the name of a task, or --data, a Hub id or folder.")
    if options.rows:
        chosen = random.Random(0).sample(range(len(data["train"])), min(options.rows, len(data["train"])))
        data["train"] = data["train"].select(chosen)
    return task, data


def _model(task: Task, name: str) -> PreTrainedModel:
    model, untrained = task.load_model(name)
    if untrained:
        raise ValueError(f"'{name}' has no trained prediction head for {task.name}: fine-tune it first.")
    return model


def _student(options: Options) -> dict[str, float] | str:
    if options.student:
        return options.student
    sizes = dict(zip(TINYBERT4, options.size, strict=True))
    optional = {"embedding_size": options.embedding_size, "dropout": options.dropout}
    return sizes | {name: value for name, value in optional.items() if value is not None}


def _augmentation(options: Options) -> Augmentation:
    model, tokenizer = from_pretrained(AutoModelForMaskedLM, options.masked_lm), load_tokenizer(options.masked_lm)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    return Augmentation(model, tokenizer, vectors, copies=options.copies, seed=getattr(options, "seed", 0))


def _phase(pairs: list[str]) -> dict[str, Any]:
    """The arguments of a phase from KEY=VALUE flags, read as the flags --KEY VALUE are; a list is [a, b]."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"{wrong[0]!r} is not of the form KEY=VALUE, such as num_train_epochs=3.")
    flags: list[str] = []
    for key, value in (pair.split("=", 1) for pair in pairs):
        parsed = yaml.safe_load(value)
        flags += [f"--{key}", *(map(str, parsed) if isinstance(parsed, list) else [value])]
    return vars(flag_parser().parse_args(flags))


def _trainer_arguments(options: Options) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(DistillationArguments)}
    passed = {name: value for name, value in vars(options).items() if name in names}
    return {"use_cpu": not torch.accelerator.is_available(), **passed}


# ---- Flags ----


def _data_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("data").add_argument
    add("--task", choices=TASKS, help="a task whose columns, labels and metrics are known")
    add("--data", help="Hub id or folder; with --task, a folder with one folder for each task (default: the Hub's)")
    add("--subset", help="configuration of --data")
    add("--text", nargs="+", default=["text"], help="one or two columns of text, without --task (default: text)")
    add("--label", default="label", help="column of the labels (default: label); floating-point labels are regression")
    add("--validation", default="validation", help="split that scores and selects the model (default: validation)")
    add("--max_length", type=int, help="tokens that a row is truncated to (default: 64 for each column of text)")
    add("--rows", type=int, help="number of training rows, drawn with seed 0 (default: all)")
    return parser


def _student_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("models").add_argument
    add("--teacher", nargs="+", required=True, help="Hub ids or folders; fine-tuned first without a prediction head")
    add("--student", help="Hub id or folder of a student, instead of a new one of --size")
    sizes = "layers, hidden size, feed-forward size and attention heads of a new student (default: those of TinyBERT4)"
    add("--size", type=int, nargs=4, default=[*TINYBERT4.values()], metavar="N", help=sizes)
    add("--embedding_size", type=int, help="factorise the token embeddings of a new student at this size, e.g. 128")
    add("--dropout", type=float, help="dropout of a new student, e.g. 0 (default: the teacher's)")
    inits = "how a new student starts: initialised from the teacher (default), with copied layers, or at random"
    add("--init", choices=INITS, default="teacher", help=inits)
    rows = "training rows that --init teacher fits the student on (default: 2000)"
    add("--calibration_rows", type=int, default=2000, metavar="N", help=rows)
    phases = parser.add_argument_group("phases", "DistillationArguments of one phase, as KEY=VALUE").add_argument
    phases("--fine_tuning", nargs="+", default=[], metavar="KEY=VALUE", help="fine-tuning of the teacher")
    phases("--intermediate", nargs="+", default=[], metavar="KEY=VALUE", help="distillation of the layers")
    phases("--prediction", nargs="+", default=[], metavar="KEY=VALUE", help="distillation of the predictions")
    return parser


def _augmentation_flags(copies: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("augmentation").add_argument
    add("--copies", type=int, default=copies, help=f"variants of each row (default: {copies}; TinyBERT: 20)")
    masked_lm = "Hub id or folder of the masked language model that proposes words (default: bert-base-uncased)"
    add("--masked_lm", default="bert-base-uncased", help=masked_lm)
    add("--vectors", nargs="+", type=Path, help="word vectors: a text file of GloVe, or a .npy file and its words")
    return parser


def _parser() -> argparse.ArgumentParser:
    """The flags of every verb."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("hf-tinybert", description=__doc__, epilog=EXAMPLES, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"hf_tinybert {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_verb(verbs, distill, _data_flags(), _student_flags(), _augmentation_flags(0), flag_parser())
    _add_verb(verbs, doctor, _data_flags(), _student_flags(), flag_parser())
    add = _add_verb(verbs, augment, _data_flags(), _augmentation_flags(20)).add_argument
    add("--seed", type=int, default=0, help="seed of the augmentation (default: 0)")
    add("--output", required=True, metavar="FILE.parquet", help="file to write")
    add = _add_verb(verbs, evaluate, _data_flags()).add_argument
    add("model", help="Hub id or folder")
    add("--batch_size", type=int, default=32, help="rows of a forward pass (default: 32)")
    add = _add_verb(verbs, report, _data_flags()).add_argument
    add("--teacher", required=True, help="Hub id or folder")
    add("--student", required=True, help="Hub id or folder")
    add("--output_dir", type=Path, required=True, help="folder to write")
    add("--batch_size", type=int, default=32, help="rows of a forward pass (default: 32)")
    engines = ["torch", "onnx", "onnx_int8"]
    add("--engines", nargs="+", default=engines, help="of torch, onnx, onnx_int8 (default: all)")
    add = _add_verb(verbs, export, _data_flags()).add_argument
    add("model", help="Hub id or folder")
    add("--output_dir", type=Path, required=True, help="folder to write")
    add("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="formats to write (default: all)")
    add("--min_agreement", type=float, help="lowest share of equal answers (default: 0.98; correlation: 0.99)")
    add = _add_verb(verbs, push).add_argument
    add("model", help="folder of the student")
    add("--to", required=True, metavar="USER/NAME", help="repository on the Hub, created if it does not exist")
    add("--private", nargs="?", type=string_to_bool, const=True, help="make the repository private")
    add("--revision", help="branch to push to (default: main)")
    return parser


def _add_verb(verbs, function: Callable[[Options], int | None], *flags: argparse.ArgumentParser):
    """A parser for a verb, which its function names and explains."""
    text, epilog = " ".join(function.__doc__.split()), flags[-1].epilog if flags else None
    parser = verbs.add_parser(
        function.__name__, parents=flags, help=text, description=text, epilog=epilog, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="file whose keys are flags")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.set_defaults(run=function)
    return parser


def _with_config(flags: list[str]) -> list[str]:
    """The flags, with those of the file of --config before them, so that flags on the command line win."""
    if "--config" not in flags[:-1]:
        return flags
    path = flags[flags.index("--config") + 1]
    settings = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold flags as 'name: value' lines.")
    from_file: list[str] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            value = [f"{key}={inner if isinstance(inner, str) else json.dumps(inner)}" for key, inner in value.items()]
        from_file += [] if name == "model" else [f"--{name}"]
        from_file += map(str, value if isinstance(value, list) else [value])
    return [flags[0], *from_file, *flags[1:]]


def main(flags: list[str] | None = None) -> int:
    """Run the verb of these flags, by default those of the command line, and return the exit code."""
    flags = sys.argv[1:] if flags is None else flags
    parser = _parser()
    if not flags:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(_with_config(flags))
        return options.run(options) or 0
    except USER_ERRORS as error:
        if "--traceback" in flags:
            raise
        print(f"hf-tinybert {flags[0]}: {error} (--traceback shows where)", file=sys.stderr)
        return 1
    finally:
        PartialState().destroy_process_group()  # or a thread of it may abort the process while it ends


if __name__ == "__main__":
    sys.exit(main())
