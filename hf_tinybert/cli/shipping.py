"""The verbs that write a student for other runtimes: ship and export."""

import argparse
import shutil
import tempfile
from pathlib import Path

import datasets
from transformers.hf_argparser import string_to_bool

from ..evaluation.report import StudentReport
from ..formats.half_weights import save_half
from ..formats.layout import WEIGHTS, size_of
from ..formats.onnx_export import export_onnx
from ..formats.onnx_int8 import quantize_onnx
from ..models.loading import load_config, load_tokenizer
from ..pipelines.data import LABELS, TEXTS, read_splits
from ..pipelines.ship import CONVERTERS, FORMATS, ship_student
from ..publishing.demo import write_demo
from ..publishing.files_section import HEADER
from ..publishing.hub import push_command, push_folder
from ..tasks import Task, UnlabelledText
from ..tasks.transfer import TEACHER_PROBABILITIES
from ..teachers import load_teacher
from ..teachers.teacher import TEACHER_LOGITS
from .inputs import Options, head_labels, held_out_note, task_and_data
from .terminal import Outcome, to_table

HUB = "hf://"
AGREEMENT = "lowest share of equal answers (default: 0.98; correlation: 0.99)"
SAMPLES = 4  # rows of the data on the page
HALF = "safetensors_fp16"


def ship_flags() -> argparse.ArgumentParser:
    """Where a student is written, in which formats, and with which page."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("shipping").add_argument
    add("model", metavar="STUDENT", help="Hub id or folder")
    add("--to", required=True, metavar="FOLDER", help="folder to write, or hf://USER/NAME, a repository of the Hub")
    possible = "formats to write (default: all for which packages are installed, openvino_int8 with data alone)"
    add("--formats", nargs="+", choices=FORMATS, help=possible)
    add("--min_agreement", type=float, help=AGREEMENT)
    add("--max_loss", type=float, default=0.005, help="score that a format may lose (default: 0.005)")
    labels = "teacher of rows without labels (default: their column teacher_probabilities or teacher_logits)"
    add("--teacher", metavar="MODEL", help=labels)
    add("--no_calibration", action="store_true", help="leave the probabilities as they are")
    add("--private", nargs="?", type=string_to_bool, const=True, help="make a repository that is created private")
    add("--demo", type=Path, metavar="FOLDER", help="also write a page that runs the student in a browser (one text)")
    add("--report", type=Path, metavar="FILE", help="report.json whose figures the page shows")
    packages = "node_modules folder with @huggingface/transformers, for the page (default: npm fetches it)"
    add("--transformers_js", type=Path, metavar="FOLDER", help=packages)
    return parser


def export_flags() -> argparse.ArgumentParser:
    """Which formats of a model are written, and where."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("export").add_argument
    add("model", help="Hub id or folder")
    add("--output_dir", type=Path, required=True, help="folder to write")
    formats, some = [*FORMATS, HALF], ["onnx", "int8", "fp16"]
    add("--formats", nargs="+", choices=formats, default=some, help="formats to write (default: onnx int8 fp16)")
    add("--min_agreement", type=float, help=AGREEMENT)
    return parser


def ship(options: Options) -> Outcome:
    """Write a student as others serve it, into one folder or a repository of the Hub: safetensors, ONNX in float32,
    int8 and fp16, OpenVINO, and a card with lines to run. Each format has to give the student's answers and score on
    the rows of the validation split if there is data, otherwise its answers on random tokens; one that does not is
    left out. Rows without labels are scored by the agreement with the teacher that answers them."""
    unlabelled = _unlabelled(options)
    task, rows = unlabelled or _task_and_rows(options)
    hub_id = options.to.removeprefix(HUB) if options.to.startswith(HUB) else None
    if options.demo:
        _check_demo(options, task)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if hub_id else options.to)
        shipment = ship_student(
            options.model,
            folder,
            task,
            rows,
            options.formats,
            options.min_agreement,
            options.max_loss,
            hub_id,
            not options.no_calibration,
            options.teacher,
        )
        if options.demo:
            name = Path(hub_id or options.to).name
            samples = rows[:SAMPLES][task.text[0]] if task else []
            report = StudentReport.from_json(options.report.read_text(encoding="utf8")) if options.report else None
            write_demo(options.demo, folder, name, samples, report, options.transformers_js)
        address = _push(folder, hub_id, options.private) if hub_id else str(folder)
    table = [[*HEADER[:-1]], *(file.cells[:-1] for file in shipment.files)]
    notes = [f"Agreement and score are those on {shipment.rows:,} held-out rows."] if shipment.rows else []
    notes += [f"{file.format} was not written: {file.note}" for file in shipment.files if file.note]
    if options.demo:
        notes.append(f"Page: {options.demo} (python -m http.server --directory {options.demo})")
    if calibration := shipment.calibration:
        notes.append(
            f"Calibration error: {calibration.error:.3f}, {calibration.error_after:.3f} with the temperature "
            f"{calibration.temperature:.2f}, which is part of the last layer now."
        )
    rows_note = "" if unlabelled else held_out_note(options)
    text = "\n".join([to_table(table), "", *notes, f"{rows_note}Student: {address}"])
    values = {"address": address, "rows": shipment.rows, "calibration": calibration and vars(calibration)}
    values |= {"files": [vars(file) for file in shipment.files]}
    return Outcome(text, values, int(bool(shipment.refused)))


def _push(folder: Path, hub_id: str, private: bool | None) -> str:
    """Push a temporary folder, which is kept if that fails.

    Returns:
        The address of the commit.

    Raises:
        RuntimeError: If the push fails, with the command that pushes the folder that is kept.
    """
    try:
        return str(push_folder(folder, hub_id, private=private))
    except RuntimeError as error:
        kept = shutil.copytree(folder, Path(tempfile.mkdtemp(), folder.name))
        command = push_command(kept, hub_id, private)
        raise RuntimeError(f"{error} The student is in {kept}; push it later with: {command}") from error


def export(options: Options) -> Outcome:
    """Write a model in single formats: ONNX, int8 and fp16 ONNX, OpenVINO, and fp16 safetensors. The answers of each
    are compared with the model's, on 256 rows of the validation split if there is data, otherwise on random tokens."""
    task, data = _task_and_rows(options)
    model, tokenizer = load_teacher(options.model), load_tokenizer(options.model)
    folder, least, written = options.output_dir, options.min_agreement, []
    rows = None if task is None else task.tokenize(data, tokenizer)
    if set(options.formats) != {HALF}:
        written.append(export_onnx(model, tokenizer, folder, calibration_dataset=rows, min_agreement=least))
    if "int8" in options.formats:
        written.append(quantize_onnx(folder, rows, least).path)
    written += [CONVERTERS[name](folder, rows, least) for name in options.formats if name in CONVERTERS]
    if HALF in options.formats:
        written.append(save_half(model, tokenizer, folder / "fp16", rows, least) / WEIGHTS)
    sizes = [size_of(path) / 1e6 for path in written]
    table = [["file", "MB"], *([str(path), f"{size:.1f}"] for path, size in zip(written, sizes, strict=True))]
    files = [{"file": str(path), "megabytes": round(size, 1)} for path, size in zip(written, sizes, strict=True)]
    return Outcome(f"{to_table(table)}\n\nFolder: {folder}", {"files": files})


def _check_demo(options: Options, task: Task | None) -> None:
    """Check that the page can show the student, before anything is written."""
    architecture = (load_config(options.model).architectures or [""])[0]
    if not architecture.endswith("ForSequenceClassification") or (task and len(task.text) != 1):
        raise ValueError(f"--demo shows the classes of one text, which {options.model} does not give: leave it out.")
    if options.report and not options.report.is_file():
        raise ValueError(f"There is no {options.report}: --report is the report.json of hf-tinybert report.")


def _task_and_rows(options: Options) -> tuple[Task, datasets.Dataset] | tuple[None, None]:
    """The task and its first validation split, if there is data."""
    if not (options.task or options.data):
        return None, None
    task, data = task_and_data(options, head_labels(options, options.model))
    return task, data[task.validation[0]]


def _unlabelled(options: Options) -> tuple[UnlabelledText, datasets.Dataset] | None:
    """The task and the rows if these have no column of labels; of several splits the validation split."""
    if options.task or not options.data or options.label or options.kind != "text":
        return None
    file = Path(options.validation) if options.validation and Path(options.validation).is_file() else None
    splits = read_splits(options.data, options.subset, file)
    split = "validation" if file or not options.validation else options.validation
    rows = splits.get(split, next(iter(splits.values())))
    if LABELS["text"] in rows.column_names or (options.validation and split not in splits):
        return None
    if not (options.teacher or {TEACHER_LOGITS, TEACHER_PROBABILITIES} & {*rows.column_names}):
        raise ValueError(
            f"'{options.data}' has no column 'label', only {rows.column_names}: name its labels (--label), pass a "
            f"teacher (--teacher), or give it a column {TEACHER_PROBABILITIES} or {TEACHER_LOGITS}."
        )
    return UnlabelledText.from_teacher(options.model, options.text or TEXTS["text"], options.max_length), rows
