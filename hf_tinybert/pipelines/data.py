"""A user's data as a task and its splits: files, folders and data sets of the Hub, with held-out rows."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from ..tasks import (
    MultipleChoice,
    QuestionAnswering,
    Task,
    TextClassification,
    TokenClassification,
    read_conll,
    read_squad,
)
from ..tasks.column_checks import check_column

logger = logging.get_logger(__name__)

KINDS: dict[str, type[Task]] = {
    "text": TextClassification,
    "tokens": TokenClassification,
    "qa": QuestionAnswering,
    "choice": MultipleChoice,
}
TEXTS = {"text": ["text"], "tokens": ["tokens"], "qa": ["question", "context"], "choice": ["context"]}
LABELS = {"text": "label", "tokens": "ner_tags", "qa": "answers", "choice": "label"}
FORMATS = ("csv", "tsv", "txt", "json", "jsonl", "ndjson", "parquet", "arrow", "conll")
HELD_OUT_SHARE, FEWEST_HELD_OUT, MOST_HELD_OUT = 10, 50, 2000  # one row in ten
FEWEST_ROWS = 20


def load_task(
    source: str | Path,
    kind: str = "text",
    text: Sequence[str] | None = None,
    label: str | None = None,
    choices: Sequence[str] | None = None,
    validation: str | Path | None = None,
    subset: str | None = None,
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[Task, datasets.DatasetDict]:
    """The task of a user's data, and its rows in the splits `train` and validation.

    Args:
        source: A file (CSV, TSV, JSON, JSON lines, Parquet, Arrow, also compressed with gzip; CoNLL as *.conll), a
            folder of files whose names or folders say `train`, `validation` and so on, a folder of `save_to_disk`,
            or a Hub id.
        kind: "text", "tokens", "qa" or "choice".
        text: The columns of text; default "text", "tokens", "question" and "context", or "context".
        label: The column of labels; default "label", for tokens "ner_tags", for qa "answers".
        choices: For kind "choice": columns of one choice each, or one column of lists; default "choices".
        validation: The name of the validation split, or a file of its rows. By default it is "validation", and if
            there is none, `hold_out` makes it of training rows.
        subset: The configuration of a data set of the Hub.
        max_length: Tokens of a row, at most; default that of the kind of task.
        labels: The labels of a trained prediction head in the order of their ids, to which those of the rows are
            matched.

    Returns:
        The task, with the name of the source, and its splits.

    Raises:
        ValueError, OSError: If the data cannot be read, or not as this kind of task; the message names file, split,
            row or column.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown: give one of {', '.join(KINDS)}.")
    file = Path(validation) if validation is not None and Path(validation).is_file() else None
    data = read_splits(source, subset, file)
    split = "validation" if validation is None or file is not None else str(validation)
    text, label = text or TEXTS[kind], label or LABELS[kind]
    classes = [] if kind == "qa" else [label]
    present = next(iter(data.values())).column_names
    if missing := [column for column in (*text, label) if column not in present]:
        raise ValueError(
            f"'{source}' has no column {missing}, only {present}: name the columns of text (--text) and of the labels "
            "(--label)."
        )
    for part, rows in data.items():
        for column in {*text, *classes} & {*rows.column_names} if part in ("train", split) else ():
            check_column(rows, column, f"'{source}', split {part}")  # its row numbers: holding out makes other ones
    if validation is None and split not in data:
        data = hold_out(data, *classes)
    lengths = {} if max_length is None else {"max_length": max_length}
    match kind:
        case "text":
            task, data = TextClassification.from_dataset(data, text, label, split, max_length, labels)
        case "tokens":
            task, data = TokenClassification.from_dataset(data, text[0], label, split, labels=labels, **lengths)
        case "qa":
            task, data = QuestionAnswering.from_dataset(data, text, label, split, **lengths)
        case "choice":
            task, data = MultipleChoice.from_dataset(data, text, choices or ["choices"], label, split, **lengths)
    name = Path(source).name.split(".")[0] if Path(source).exists() else str(source)
    return replace(task, name=name), data


def read_splits(
    source: str | Path, subset: str | None = None, validation_file: Path | None = None
) -> datasets.DatasetDict:
    """The splits of a file, a folder or a data set of the Hub, as `datasets` recognises them.

    A single file is the split `train`. SQuAD's JSON files are read as `read_squad` does, files *.conll as `read_conll`
    does. In CSV files only an empty cell is a missing value, not the words NA, None or null.

    Args:
        source: A file, a folder or a Hub id.
        subset: The configuration of a data set of the Hub.
        validation_file: A file with the rows of the split `validation`, beside a file `source`.

    Raises:
        OSError: If there is no such file, folder or data set.
        ValueError: If it cannot be read; the message says why.
    """
    path = Path(source).expanduser()
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or _format(path)):
        raise FileNotFoundError(f"There is no file or folder '{source}'.")
    if validation_file is not None and not path.is_file():
        raise ValueError(f"'{source}' is no file: name its validation split instead of the file '{validation_file}'.")
    try:
        if path.is_file():
            return _read_files(path, validation_file)
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
        return _build(str(path.resolve()) if path.is_dir() else str(source), name=subset)
    except DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"'{source}' cannot be read: {reason}") from error


def _read_files(path: Path, validation_file: Path | None) -> datasets.DatasetDict:
    files = {"train": path} | ({"validation": validation_file} if validation_file else {})
    for file in files.values():
        if not _format(file):
            raise ValueError(f"'{file}' is of no known format: save it as {', '.join(FORMATS)}.")
    for belongs, read in ((_is_squad, read_squad), (_is_conll, read_conll)):
        if all(map(belongs, files.values())):
            return datasets.DatasetDict({split: read(file) for split, file in files.items()})
    return _build(str(path.resolve().parent), data_files={split: str(f.resolve()) for split, f in files.items()})


def _format(path: Path) -> str | None:
    return next((suffix for suffix in path.name.lower().split(".")[1:] if suffix in FORMATS), None)


def _is_conll(file: Path) -> bool:
    return file.suffix.lower() == ".conll"


def _is_squad(file: Path) -> bool:
    if file.suffix != ".json":
        return False
    try:
        articles = json.loads(file.read_text(encoding="utf8"))["data"]
        return "paragraphs" in articles[0]
    except (ValueError, TypeError, LookupError):
        return False


def _build(path: str, **how) -> datasets.DatasetDict:
    builder = datasets.load_dataset_builder(path, **how)
    if hasattr(builder.config, "keep_default_na"):  # pandas' CSV reader takes texts such as "None" for missing
        builder = datasets.load_dataset_builder(path, **how, keep_default_na=False, na_values=[""])
    builder.download_and_prepare()
    return builder.as_dataset()


def hold_out(data: datasets.DatasetDict, label: str | None = None, seed: int = 0) -> datasets.DatasetDict:
    """Splits with a tenth of the training rows as `validation`: 50 to 2,000 rows, and at most half of them.

    Every class has its share of them, and at least one row left to train on.

    Args:
        data: The splits, of which `train` is divided.
        label: A column of classes, or of lists of them; default none.
        seed: The seed of the choice, default 0.

    Raises:
        ValueError: If there are fewer than 20 rows, or if every row has a class of its own.
    """
    if "train" not in data:
        raise ValueError(f"The data has no split 'train', only {list(data)}: name its files train and validation.")
    rows = data["train"]
    if len(rows) < FEWEST_ROWS:
        raise ValueError(
            f"There is no validation split, and {len(rows)} training rows are too few to hold some out: give "
            f"{FEWEST_ROWS} rows or more, or a validation split."
        )
    classes = [()] * len(rows)
    if label in rows.column_names:
        classes = [_classes(value) for value in rows[label][:]]
    chosen = held_out_rows(classes, held_out_count(len(rows)), seed)
    if not chosen:
        raise ValueError(f"Every row has another '{label}': name the column of the labels.")
    logger.info(f"No validation split: {len(chosen)} of {len(rows)} training rows are held out (seed {seed}).")
    training = sorted({*range(len(rows))} - {*chosen})
    return datasets.DatasetDict({**data, "train": rows.select(training), "validation": rows.select(chosen)})


def held_out_count(rows: int) -> int:
    """How many of so many rows are held out: a tenth, but 50 to 2,000 and at most half of them."""
    return min(max(rows // HELD_OUT_SHARE, FEWEST_HELD_OUT), MOST_HELD_OUT, rows // 2)


def held_out_rows(classes: Sequence[Sequence[Hashable]], count: int, seed: int = 0) -> list[int]:
    """Row numbers, in order, to hold out: of each class its share, but never the only row of a class.

    Args:
        classes: The classes of each row; rows with the same ones form a group.
        count: The number of rows; fewer if too many rows are the only one of a class.
        seed: The seed of the choice.
    """
    seen: set[Hashable] = set()
    free = []
    for row in np.random.default_rng(seed).permutation(len(classes)).tolist():
        if new := set(classes[row]) - seen:
            seen |= new
        else:
            free.append(row)
    free.sort(key=lambda row: str(classes[row]))  # every n-th of them has of each group its share
    count = min(count, len(free))
    return sorted(free[(2 * index + 1) * len(free) // (2 * count)] for index in range(count))


def _classes(value) -> tuple[Hashable, ...]:
    """The classes of a label; a real number is none."""
    if isinstance(value, float):
        return ()
    return tuple(sorted(set(value), key=str)) if isinstance(value, list) else (value,)
