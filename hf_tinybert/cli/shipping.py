"""The verbs that write a student for other runtimes: ship and export."""

import tempfile
from pathlib import Path

import datasets

from ..formats.half_weights import save_half
from ..formats.layout import WEIGHTS, size_of
from ..formats.onnx_export import export_onnx
from ..formats.onnx_int8 import quantize_onnx
from ..models.loading import load_tokenizer
from ..pipelines.ship import CONVERTERS, ship_student
from ..publishing.files_section import HEADER
from ..publishing.hub import push_folder
from ..tasks import Task
from ..teachers import load_teacher
from .inputs import Options, head_labels, task_and_data
from .terminal import Outcome, to_table

HUB = "hf://"
HALF = "safetensors_fp16"


def ship(options: Options) -> Outcome:
    """Write a student as others serve it, into one folder or a repository of the Hub: safetensors, ONNX in float32,
    int8 and fp16, OpenVINO, and a card with lines to run. Each format has to give the student's answers and score on
    the rows of the validation split if there is data, otherwise its answers on random tokens; one that does not is
    left out."""
    task, rows = _task_and_rows(options)
    hub_id = options.to.removeprefix(HUB) if options.to.startswith(HUB) else None
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
        )
        address = str(push_folder(folder, hub_id, private=options.private)) if hub_id else str(folder)
    table = [[*HEADER[:-1]], *(file.cells[:-1] for file in shipment.files)]
    notes = [f"{file.format} was not written: {file.note}" for file in shipment.files if file.note]
    if calibration := shipment.calibration:
        notes.append(
            f"Calibration error: {calibration.error:.3f}, {calibration.error_after:.3f} with the temperature "
            f"{calibration.temperature:.2f}, which is part of the last layer now."
        )
    text = "\n".join([to_table(table), "", *notes, f"Student: {address}"])
    values = {"address": address, "rows": shipment.rows, "calibration": calibration and vars(calibration)}
    values |= {"files": [vars(file) for file in shipment.files]}
    return Outcome(text, values, int(bool(shipment.refused)))


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


def _task_and_rows(options: Options) -> tuple[Task, datasets.Dataset] | tuple[None, None]:
    """The task and its first validation split, if there is data."""
    if not (options.task or options.data):
        return None, None
    task, data = task_and_data(options, head_labels(options, options.model))
    return task, data[task.validation[0]]
