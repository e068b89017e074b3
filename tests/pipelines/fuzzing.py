"""Random data sets and arguments, and what may come of them: a finite student, or an error that says what is wrong.

`python tests/pipelines/fuzzing.py --first 0 --cases 300` tries three hundred, numbered by their seeds.
"""

import argparse
import contextlib
import io
import json
import linecache
import random
import re
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from conftest import bert_config, build, word_tokenizer
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, DataCollatorWithPadding
from transformers.utils import logging

import hf_tinybert
from hf_tinybert import (
    DistillationArguments,
    DistillationTrainer,
    TextClassification,
    cache_logits,
    create_student,
    general_distillation,
    task_distillation,
)

LONGEST, LONGEST_WAIT = 20, 120  # seconds of one case: of computing, and by the clock on a machine with other work
TIMERS = [(signal.ITIMER_PROF, signal.SIGPROF, LONGEST), (signal.ITIMER_REAL, signal.SIGALRM, LONGEST_WAIT)]
VALIDATION = ("training_args.py", "generic.py")  # of transformers, which checks its own arguments there
PACKAGE = Path(hf_tinybert.__file__).parent
SIZE = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}
QUICK = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}

WORDS = ["good", "bad", "film", "the", "is", "not", "unknown", "Übung", "12", "."]
TEXTS = [
    "",
    " ",
    "\n\t\r",
    "\x00\x01\x7f",
    "👍🏽👨‍👩‍👧‍👦 film",
    "שלום good עולם",
    "\u202egood film\u202c",
    "go\u200bod \ufeff\u200d\u2060",
    "e\u0301\u0301\u0301" * 20,
    "\ufffd\U0010ffff\U000e0001",
    "漢字仮名交じり文",
    "[SEP] [MASK] [PAD]",
    "good " * 300,
    "x" * 2000,
    "<html>&amp;'\"\\",
    "NaN",
]
# kinds of the column of labels → a value by row number
LABELS: dict[str, Callable[[int], Any]] = {
    "integers": lambda i: i % 2,
    "three integers": lambda i: i % 3,
    "strings": lambda i: ["no", "yes"][i % 2],
    "emoji": lambda i: ["👍", "👎🏽"][i % 2],
    "booleans": lambda i: i % 2 == 0,
    "floats": lambda i: i / 7,
    "not a number": lambda i: [0.5, float("nan")][i % 2],
    "infinite": lambda i: [0.5, float("inf")][i % 2],
    "large floats": lambda i: i * 1e30,
    "negative": lambda i: i % 3 - 1,
    "large": lambda i: [0, 10**6][i % 2],
    "constant": lambda i: 0,
    "lists": lambda i: [i % 2],
    "none": lambda i: None,
    "some none": lambda i: None if i % 4 == 3 else i % 2,
    "empty strings": lambda i: ["", "a"][i % 2],
    "bytes": lambda i: b"\xff\x00"[i % 2 : i % 2 + 1],
    "structs": lambda i: {"a": i % 2},
    "all different": lambda i: f"label {i}",
}
TEXT_KINDS = ["words"] * 5 + [
    "odd",
    "some none",
    "all none",
    "numbers",
    "lists",
    "large_string",
    "dictionary",
    "bytes",
]
# argument → values, of which some are wrong
ARGUMENTS: dict[str, list[Any]] = {
    "temperature": [1.0, 4.0, 0.0, -1.0, float("nan"), float("inf"), 1e-30, "warm"],
    "loss_type": [["attention"], ["hidden"], ["prediction", "task"], ["relation"], ["cosine"], ["patience"], ["x"], [],
                  ["attention_kl"], ["minilm"], ["embedding", "embedding"], "attention"],
    "loss_weights": [[1.0], [0.0], [-1.0], [1.0, 2.0], [float("nan")], [1e38], []],
    "layer_mapping": ["uniform", "last", "skip", "nonsense", [[1, 1]], [[1, 4], [2, 9]], [[0, 0]], [],
                      [[2, 1], [1, 2]]],
    "loss_schedules": [["linear"], ["constant"], ["nonsense"], ["cosine", "linear"], []],
    "balance_losses": [True],
    "teacher_weights": [[1.0], [0.0], [1.0, 1.0], [-1.0], []],
    "teacher_logits": ["mean", "confidence", "max"],
    "attention_heads": ["equal", "mean", "some"],
    "relation_heads": [1, 2, 0, -1, 3, 5, 10**6],
    "teacher_dtype": ["float32", "bfloat16", "int8"],
    "teacher_cache_gb": [0.0, 1.0, -1.0, 1e-9, float("nan")],
    "padding_free": [True],
    "learning_rate": [1e-3, 0.0, -1.0, 1e30, float("nan")],
    "per_device_train_batch_size": [1, 3, 64, 0, -2],
    "gradient_accumulation_steps": [1, 3, 0],
    "num_train_epochs": [1, 0.3, 0, -1],
    "max_steps": [1, 2],
    "weight_decay": [0.1],
    "max_grad_norm": [0.0, 1.0],
    "label_smoothing_factor": [0.1],
    "optim": ["sgd", "adamw_torch", "nonsense"],
    "seed": [0, 2**31, -1],
    "warmup_steps": [0, 1, 0.5, 100],
    "train_sampling_strategy": ["random", "group_by_length", "sequential", "x"],
    "save_strategy": ["no", "steps", "epoch", "x"],
    "dataloader_drop_last": [True],
    "metric_for_best_model": ["score", "loss", "bleu"],
    "unknown_argument": [1],
}  # fmt: skip
SIZES: dict[str, list[Any]] = {
    "num_hidden_layers": [1, 2, 4, 0, -1, 5],
    "hidden_size": [16, 32, 8, 0, 7, 64, -4],
    "intermediate_size": [32, 1, 0, 128],
    "num_attention_heads": [4, 2, 1, 0, 3, 16],
    "hidden_dropout_prob": [0.1, 1.5],
    "num_labels": [3],
    "vocab_size": [10],
    "nonsense": [1],
}


@dataclass(frozen=True)
class Case:
    """One try.

    Args:
        seed: Its number.
        entry: What is called.
        data: The data set, by how it is made.
        arguments: The arguments of training.
        size: The student's size.
        options: The other arguments.
    """

    seed: int
    entry: str
    data: dict[str, Any]
    arguments: dict[str, Any]
    size: dict[str, Any]
    options: dict[str, Any]


def draw(seed: int) -> Case:
    """The case of a number: of data, arguments and size about half are plain."""
    rng = random.Random(seed)
    entry = rng.choice(["task"] * 3 + ["trainer"] * 3 + ["create_student"] * 2 + ["general", "cached"])
    odd = rng.random() < 0.6
    data = {
        "rows": rng.choice([0, 1, 2, 3, 9]) if rng.random() < 0.3 else 9,
        "text": rng.choice(TEXT_KINDS) if odd else "words",
        "label": rng.choice(list(LABELS)) if odd else rng.choice(["integers", "strings", "floats"]),
        "missing": rng.choice(["text", "label"]) if rng.random() < 0.05 else None,
        "features": rng.random() < 0.1,
        "columns": rng.choice([{}] * 4 + [{"extra": 1}, {"input_ids": 2}, {"labels": 3}, {"teacher_logits": 4}]),
    }
    names = rng.sample(list(ARGUMENTS), rng.choice([0, 0, 1, 1, 2, 3]))
    sizes = rng.sample(list(SIZES), rng.choice([0, 0, 0, 1, 2]))
    options = {
        "init": rng.choice(["teacher"] * 3 + ["random"] * 3 + ["nonsense"]),
        "calibration_rows": rng.choice([2000, 4, 1, 0, -1]),
        "max_length": rng.choice([None, 16, 16, 64, 2, 1, 0, 1000]),
        "packed": rng.random() < 0.5,
    }
    return Case(
        seed,
        entry,
        data,
        {name: rng.choice(ARGUMENTS[name]) for name in names},
        {name: rng.choice(SIZES[name]) for name in sizes},
        options,
    )


def rows_of(data: dict[str, Any], rng: random.Random) -> datasets.Dataset:
    count, kind = data["rows"], data["text"]

    def text(i: int) -> Any:
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
        choices = {
            "odd": rng.choice(TEXTS),
            "some none": None if i % 3 == 1 else words,
            "all none": None,
            "numbers": i,
            "lists": words.split(),
            "bytes": words.encode(),
        }
        return choices.get(kind, words)

    kind = kind if count else "words"  # there is no dictionary of no strings
    texts = pa.array([text(i) for i in range(count)], {"large_string": pa.large_string()}.get(kind))
    columns = {
        "text": texts.dictionary_encode() if kind == "dictionary" else texts,
        "label": pa.array([LABELS[data["label"]](i) for i in range(count)]),
    }
    for name, number in data["columns"].items():
        columns[name] = pa.array([[number]] * count if number in (2, 4) else [number] * count)
    columns.pop(data["missing"], None)
    rows = datasets.Dataset(pa.table(columns))
    if data["features"] and data["label"] in ("integers", "constant") and "label" in columns:
        rows = rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    return rows


def setting_up(folder: Path) -> None:
    """A teacher, of two classes, with its tokenizer."""
    folder.mkdir(exist_ok=True)
    tokenizer = word_tokenizer(folder)
    tokenizer.save_pretrained(folder / "teacher")
    config = bert_config(4, 32, vocab_size=len(tokenizer), id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    build(BertForSequenceClassification, config).save_pretrained(folder / "teacher")
    build(BertForSequenceClassification, config).base_model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def tried(case: Case, models: Path, out: Path) -> torch.nn.Module:
    """Do what the case says; returns the student."""
    rng = random.Random(case.seed)
    rows = rows_of(case.data, rng)
    arguments, size, options = QUICK | case.arguments, SIZE | case.size, case.options
    length = {"max_length": options["max_length"]} if options["max_length"] is not None else {}
    if case.entry == "task":
        task, data = TextClassification.from_dataset(datasets.DatasetDict(train=rows, validation=rows), **length)
        name = "teacher" if case.data["label"] in ("integers", "booleans") else "base"
        plain = {"init": options["init"], "calibration_rows": options["calibration_rows"], "student": size}
        task_distillation(task, data, str(models / name), out, **plain, **arguments)
        return AutoModelForSequenceClassification.from_pretrained(out / "student")
    tokenizer = word_tokenizer(models)
    if case.entry == "general":
        plain = {"init": options["init"], "calibration_rows": options["calibration_rows"], "student": size}
        return general_distillation(
            rows, str(models / "base"), out, packed=options["packed"], **length, **plain, **arguments
        )
    teacher = AutoModelForSequenceClassification.from_pretrained(models / "teacher")
    if case.entry == "create_student":
        calibration = [None, rows, rows["text"][:] if "text" in rows.column_names else [], [], [[1, 2, 3]], tokenizer]
        return create_student(
            teacher,
            **size,
            init=options["init"],
            calibration_dataset=rng.choice(calibration),
            processing_class=rng.choice([tokenizer, None]),
        )
    student = create_student(teacher, **SIZE, init="random")
    tokenised = tokenised_rows(rows, tokenizer, rng)
    if case.entry == "cached":
        tokenised = cache_logits(teacher, tokenised, tokenizer)
    none = None if case.entry == "cached" else teacher  # otherwise it would be Trainer, with Trainer's own errors
    trainer = DistillationTrainer(
        student,
        DistillationArguments(str(out), **arguments),
        DataCollatorWithPadding(tokenizer),
        tokenised,
        processing_class=tokenizer,
        teacher_model=rng.choice([teacher, teacher, teacher, str(models / "teacher"), [teacher], none]),
    )
    trainer.train()
    return student


def tokenised_rows(rows: datasets.Dataset, tokenizer, rng: random.Random) -> datasets.Dataset:
    """Rows of tokens as users make them, some with faults."""
    columns = {name: rows[name][:] for name in rows.column_names if name != "text"}
    count = len(rows)
    ids = [[rng.randint(0, 19) for _ in range(rng.randint(1, 20))] for _ in range(count)]
    fault = rng.choice(
        ["none"] * 8 + ["beyond the vocabulary", "negative", "empty", "long", "no mask", "None", "types"]
    )
    if count and fault in ("beyond the vocabulary", "negative", "empty", "long", "None"):
        ids[-1] = {"beyond the vocabulary": [5, 20], "negative": [-1, 3], "empty": [], "long": [7] * 65, "None": None}[
            fault
        ]
    columns["input_ids"] = ids
    if fault != "no mask":
        columns["attention_mask"] = [[1] * len(row or []) for row in ids]
    if fault == "types":
        columns["token_type_ids"] = [[7] * len(row) for row in ids]
    return datasets.Dataset.from_dict(columns)


class Hang(BaseException):
    """A case took too long."""


def outcome(case: Case, models: Path, out: Path) -> tuple[str, str]:
    """What came of a case: "trained", "refused", or a fault, and the message or the traceback of it."""

    def too_long(*_):
        raise Hang

    for timer, name, seconds in TIMERS:
        signal.signal(name, too_long)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            student = tried(case, models, out)
    except Hang:
        return "hangs", traceback.format_exc()
    except Exception as error:
        kind, text = ("refused", str(error)) if is_explained(error) else ("raw error", traceback.format_exc())
    else:
        finite = all(p.isfinite().all() for p in student.parameters() if p.is_floating_point())
        kind, text = ("trained", "") if finite else ("not finite", str(case))
    finally:
        for timer, _, _ in TIMERS:
            signal.setitimer(timer, 0)
    if left := half_written(out):
        return "half-written", f"{left} after {text}"
    return kind, text


def is_explained(error: Exception) -> bool:
    """Whether an error is one of this package, or transformers' about an argument, that says what is wrong.

    It is one of this package if its last frame stands at a `raise` statement of a file of the package: not at a call
    or an operation that failed. It has to name something: a row, a column, an argument or a value in quotes.
    """
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return True
    file = Path(last.filename)
    if isinstance(error, KeyError) and "metric_for_best_model" in str(error):
        return file.name == "trainer.py"  # only Trainer knows which metrics there are, and says so
    if not isinstance(error, ValueError | TypeError | RuntimeError | OSError):
        return False
    raised = linecache.getline(last.filename, last.lineno).strip().startswith("raise")
    from_here = PACKAGE in file.parents and raised
    of_arguments = file.name in VALIDATION and "transformers" in file.parts and raised
    words = r"[Rr]ow|[Cc]olumn|[Ss]plit|\w+_\w+|\w=|'[^']+'|[Tt]eacher|[Ss]tudent|[Tt]okenizer"
    named = re.search("|".join([words, *ARGUMENTS, *SIZES]), str(error))
    return (from_here or of_arguments) and named is not None


def half_written(out: Path) -> list[str]:
    """What a case left behind that is not whole."""
    left = list(out.rglob(".part-*"))
    left += [path for path in out.rglob("checkpoint-*") if not (path / "trainer_state.json").exists()]
    for path in out.rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            left.append(path)
    return [str(path.relative_to(out)) for path in left]


def fuzz(first: int, cases: int, report: Callable[[Case, str, str], None]) -> Counter:
    """Try cases one after the other.

    Args:
        first: The number of the first case.
        cases: The number of cases.
        report: Called with each case, its outcome and the text of it.
    """
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as folder:
        setting_up(Path(folder))
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        for seed in range(first, first + cases):
            case = draw(seed)
            kind, text = outcome(case, Path(folder), Path(folder, f"out-{seed}"))
            outcomes[kind] += 1
            report(case, kind, text)
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--quiet", action="store_true")
    flags = parser.parse_args()

    def show(case: Case, kind: str, text: str) -> None:
        if kind not in ("trained", "refused") or not flags.quiet:
            print(f"--- {case.seed} {kind}: {text if kind != 'refused' else text[:200]}", flush=True)
            if kind not in ("trained", "refused"):
                print(case, flush=True)

    print(fuzz(flags.first, flags.cases, show))
