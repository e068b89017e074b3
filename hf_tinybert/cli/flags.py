"""The flags of all verbs, in groups, and the file that holds flags."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from transformers.hf_argparser import string_to_bool

from ..pipelines.data import KINDS
from ..pipelines.task import COMPARISONS
from ..students import INITS, TINYBERT4
from ..tasks import TASKS
from ..training.arguments import flag_parser

SWITCHES = ("quiet", "json", "traceback", "no_calibration")  # flags without a value


def data_flags() -> argparse.ArgumentParser:
    """What the data is and how it is read."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("data").add_argument
    add("--task", choices=TASKS, help="a task whose columns, labels and metrics are known")
    files = "CSV, TSV, JSON lines, Parquet, Arrow or CoNLL (.conll) file, a folder of them, or a Hub id; with --task, "
    add("--data", help=files + "a folder with one folder for each task (default: the Hub's)")
    kinds = "without --task: text is classification or regression, qa has answers as SQuAD does (default: text)"
    add("--kind", choices=KINDS, default="text", help=kinds)
    texts = "columns of text (default: text; tokens; question context; for kind choice: context)"
    add("--text", nargs="+", metavar="COLUMN", help=texts)
    labels = "column of labels (default: label; ner_tags; answers); floating-point labels are regression"
    add("--label", metavar="COLUMN", help=labels)
    choices = "for kind choice: columns of one choice each, or one of lists (default: choices)"
    add("--choices", nargs="+", metavar="COLUMN", help=choices)
    splits = "split, or file, that scores and selects the model (default: validation, or a tenth of the training rows)"
    add("--validation", metavar="SPLIT", help=splits)
    add("--subset", help="configuration of a data set of the Hub")
    add("--max_length", type=int, help="tokens that a row is truncated to (default: 256 for classification)")
    add("--rows", type=int, help="number of training rows, drawn with seed 0 (default: all)")
    scores = "score that selects the model, or several for their mean: accuracy, f1, macro_f1, matthews_correlation, "
    add("--metric", nargs="+", metavar="NAME", help=scores + "micro_f1, pearson, spearman, exact_match")
    return parser


def student_flags() -> argparse.ArgumentParser:
    """Teacher, student, and the arguments of single phases."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("models").add_argument
    teachers = "Hub ids or folders; fine-tuned first without a prediction head (none: --transfer has soft labels)"
    add("--teacher", nargs="+", default=[], metavar="MODEL", help=teachers)
    add("--student", help="Hub id or folder of a student, instead of a new one of --size")
    sizes = "layers, hidden size, feed-forward size and attention heads of a new student (default: those of TinyBERT4)"
    add("--size", type=int, nargs=4, default=[*TINYBERT4.values()], metavar="N", help=sizes)
    add("--embedding_size", type=int, help="factorise the token embeddings of a new student at this size, e.g. 128")
    add("--dropout", type=float, help="dropout of a new student (default: 0)")
    inits = "how a new student starts: initialised from the teacher (default), with copied layers, or at random"
    add("--init", choices=INITS, default="teacher", help=inits)
    rows = "rows that --init teacher fits the student on (default: 2000)"
    add("--calibration_rows", type=int, default=2000, metavar="N", help=rows)
    keys = "DistillationArguments of one phase, as KEY=VALUE; augmented=false leaves the variants of the rows out"
    phases = parser.add_argument_group("phases", keys).add_argument
    phases("--fine_tuning", nargs="+", default=[], metavar="KEY=VALUE", help="fine-tuning of the teacher")
    layers = (
        "distillation of the layers, before the others (default: of a student of less than half its teacher's width; "
        "num_train_epochs=0 leaves it out)"
    )
    phases("--intermediate", nargs="*", metavar="KEY=VALUE", help=layers)
    phases("--prediction", nargs="+", default=[], metavar="KEY=VALUE", help="distillation of the predictions")
    labels = "training on the labels and the predictions, after the others"
    phases("--labels", nargs="+", default=[], metavar="KEY=VALUE", help=labels)
    baseline = "also train a second student from the same start on the labels alone"
    phases("--compare", choices=COMPARISONS, help=baseline)
    patience = "evaluations of the last phase without a better score after which it stops (default: never)"
    phases("--early_stopping_patience", type=int, metavar="N", help=patience)
    better = "what a better score must exceed the best one by (default: 0)"
    phases("--early_stopping_threshold", type=float, default=0.0, metavar="X", help=better)
    return parser


def transfer_flags() -> argparse.ArgumentParser:
    """Rows without labels."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("transfer data").add_argument
    files = "rows without labels, which the teacher labels: a text file of one text a line, or what --data takes"
    soft = "; soft labels in a column teacher_probabilities or teacher_logits are read instead"
    add("--transfer", metavar="SOURCE", help=files + soft)
    add("--transfer_rows", type=int, metavar="N", help="number of transfer rows, drawn with seed 0 (default: all)")
    return parser


def augmentation_flags(methods: Sequence[str]) -> argparse.ArgumentParser:
    """How rows are augmented: by one of these methods, of which the first is the default."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("augmentation").add_argument
    makes = (
        f"what makes variants of rows: random operations on words, or a masked language model (default: {methods[0]})"
    )
    add("--augmentation", choices=methods, default=methods[0], help=makes)
    copies = "variants of each row (default: 20 of masked_words, 10 of random_words, by the number of rows for auto)"
    add("--copies", type=int, help=copies)
    masked_lm = "Hub id or folder of the masked language model that proposes words (default: bert-base-uncased)"
    add("--masked_lm", default="bert-base-uncased", help=masked_lm)
    add("--vectors", nargs="+", type=Path, help="word vectors: a text file of GloVe, or a .npy file and its words")
    return parser


def phase_arguments(pairs: list[str], distils: bool = True) -> dict:
    """The arguments of a phase from KEY=VALUE flags, read as the flags --KEY VALUE are; a list is [a, b]."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"{wrong[0]!r} is not of the form KEY=VALUE, such as num_train_epochs=3.")
    flags: list[str] = []
    for key, value in (pair.split("=", 1) for pair in pairs):
        parsed = yaml.safe_load(value)
        flags += [f"--{key}", *(map(str, parsed) if isinstance(parsed, list) else [value])]
    parser = flag_parser()
    parser.allow_abbrev = parser.exit_on_error = False
    if distils:
        parser.add_argument("--augmented", type=string_to_bool, default=argparse.SUPPRESS)
    try:
        arguments, unknown = parser.parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        raise ValueError(f"DistillationArguments has no {unknown[0].removeprefix('--')!r}: correct the name.")
    return vars(arguments)


def with_config(flags: list[str]) -> list[str]:
    """The flags, with those of the file of --config before them, so that flags on the command line win."""
    if "--config" not in flags[:-1]:
        return flags
    path = flags[flags.index("--config") + 1]
    settings = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold flags as 'name: value' lines.")
    from_file: list[str] = []
    for name, value in settings.items():
        if name in SWITCHES:
            from_file += [f"--{name}"] if value else []
            continue
        if isinstance(value, dict):
            value = [f"{key}={inner if isinstance(inner, str) else json.dumps(inner)}" for key, inner in value.items()]
        from_file += [] if name == "model" else [f"--{name}"]
        from_file += map(str, value if isinstance(value, list) else [value])
    return [flags[0], *from_file, *flags[1:]]
