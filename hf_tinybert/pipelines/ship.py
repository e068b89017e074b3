"""A student in one folder from which transformers, ONNX Runtime, OpenVINO, Node and browsers load it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.calibration import Calibration, softmax
from ..evaluation.comparison import Agreement
from ..evaluation.engines import Run, RunOutputs, predict, torch_forward
from ..evaluation.rows import EvaluationRows
from ..formats.layout import ONNX, WEIGHTS, files_of, size_of
from ..formats.onnx_export import export_onnx, halve_onnx, load_onnx
from ..formats.onnx_int8 import Int8Graph, quantize_onnx
from ..formats.openvino_export import export_openvino, load_openvino, quantize_openvino
from ..formats.temperature import fold_temperature
from ..lineage import is_hub_id
from ..models.forward import evaluation_mode
from ..models.loading import load_tokenizer
from ..models.prediction_heads import prediction_head_of
from ..publishing.files_section import ShippedFile, with_files
from ..publishing.licences import licences_of
from ..publishing.model_card import pipeline_tag, usage
from ..tasks import Task, UnlabelledText
from ..tasks.transfer import TransferData
from ..teachers import load_teacher
from ..teachers.logit_cache import cache_logits
from ..teachers.teacher import TEACHER_LOGITS

FORMATS = ("onnx", "int8", "fp16", "openvino", "openvino_int8")
CONVERTERS = {"fp16": halve_onnx, "openvino": export_openvino, "openvino_int8": quantize_openvino}
CARD = "README.md"
BATCH_SIZE = 32
MIN_DECISIONS = 100  # that a temperature is fitted on


@dataclass(frozen=True)
class Shipment:
    """What `ship_student` wrote.

    Attributes:
        folder: The folder.
        files: The file of transformers, and that of each format or why it was refused.
        int8: The int8 graph, with what was tried; None without one.
        rows: The number of held-out rows that files were scored on.
        calibration: That of the student as it was; its temperature was folded into the files. None if none was.
        soft_labels: Whether the rows have a teacher's probabilities in place of labels.
    """

    folder: Path
    files: tuple[ShippedFile, ...]
    int8: Int8Graph | None
    rows: int
    calibration: Calibration | None
    soft_labels: bool = False

    @property
    def refused(self) -> list[str]:
        """The formats that were not written."""
        return [file.format for file in self.files if file.path is None]


@dataclass
class HeldOutRows:
    """Labelled rows on which formats are scored.

    Attributes:
        model: The student.
        rows: The rows.
        scorer: The scores of predictions; `score` counts.
        max_loss: The score that a format may lose.
        teacher_logits: The teacher's logits, (N, C), if they stand for labels.
    """

    model: PreTrainedModel
    rows: EvaluationRows
    scorer: Callable[[EvalPrediction], Mapping[str, float]]
    max_loss: float
    teacher_logits: np.ndarray | None = None

    def calibration(self) -> Calibration | None:
        """The calibration of the student; None if a temperature does not help, or cannot be fitted."""
        outputs = self._predict(self._torch())
        (calibration,) = outputs.calibrations
        if calibration is None or calibration.decisions < MIN_DECISIONS:
            return None
        if self.teacher_logits is not None:
            (prediction,), head = outputs.predictions, prediction_head_of(self.model)
            student, teacher = (
                head.decisions(logits, prediction.label_ids)[0]
                for logits in (prediction.predictions, self.teacher_logits)
            )
            calibration = Calibration.measure(student, softmax(teacher))
        return calibration if calibration.error_after < calibration.error else None

    def accepts(self, path: Path) -> bool:
        """Whether a file scores as the student does, but for `max_loss`."""
        exact, score = self._scores(self._predict(self._torch(), _run(path.name, path)))
        return exact - score <= self.max_loss

    def score(self, files: Sequence[ShippedFile], folder: Path) -> list[ShippedFile]:
        """The files with their agreement and score; those that lose more than `max_loss` are removed."""
        written = [file for file in files if file.path and file.format != "transformers"]
        runs = [_run(file.format, folder / file.path) for file in written]
        outputs = self._predict(self._torch(), *runs)
        exact, *scores = self._scores(outputs)
        measured = {"transformers": replace(files[0], score=exact, agreement=1.0)}
        for file, score, value in zip(written, scores, outputs.engine_agreement[1:], strict=True):
            measured[file.format] = replace(file, score=score, agreement=value)
            if exact - score > self.max_loss:
                for part in files_of(folder / file.path):
                    part.unlink()
                note = f"its score of {score:.4f} is more than max_loss={self.max_loss:g} below {exact:.4f}"
                measured[file.format] = ShippedFile(file.format, None, file.megabytes, value, score, note)
        return [measured.get(file.format, file) for file in files]

    def _torch(self) -> Run:
        return Run("student", "transformers", torch_forward(self.model), 0)

    def _predict(self, *runs: Run) -> RunOutputs:
        agreement = Agreement(prediction_head_of(self.model), self.model.config.id2label, len(runs))
        with evaluation_mode(self.model):
            return predict(runs, self.rows, BATCH_SIZE, agreement)

    def _scores(self, outputs: RunOutputs) -> list[float]:
        return [self.scorer(prediction)["score"] for prediction in outputs.predictions]


def _run(name: str, path: Path) -> Run:
    return Run("student", name, (load_openvino if path.suffix == ".xml" else load_onnx)(path), size_of(path))


def ship_student(
    student: str | os.PathLike,
    folder: str | os.PathLike,
    task: Task | None = None,
    rows: datasets.Dataset | None = None,
    formats: Sequence[str] | None = None,
    min_agreement: float | None = None,
    max_loss: float = 0.005,
    hub_id: str | None = None,
    calibrate: bool = True,
    teacher: str | os.PathLike | None = None,
) -> Shipment:
    """Write a student in the layout that other runtimes look for (`formats.layout`).

    A format passes its quality gate if it gives the answers of the model on 256 of the rows, and if its score on all
    rows is at most `max_loss` lower. One that does not pass is left out, which the card and the result say.

    Args:
        student: A folder or an id of the Hub. Its card is extended by a section about the files.
        folder: The folder to write to; it may be the student's.
        task: The task of the rows. Without it formats are compared on random tokens, and not scored.
        rows: Held-out rows with labels, not tokenised. Those of the task `UnlabelledText` have no labels, but a column
            `teacher_probabilities` or `teacher_logits` as transfer data has, or `teacher` labels them. Their score is
            the agreement with the teacher.
        formats: Some of "onnx", "int8", "fp16", "openvino" and "openvino_int8"; default all for which packages are
            installed and, for the last one, rows are passed. The float32 ONNX graph is always written: all others
            are made from it.
        min_agreement: The lowest agreement that is allowed, as in `export_onnx`.
        max_loss: The score that a format may lose, default half a point.
        hub_id: The id that the folder will be pushed to, for the card.
        calibrate: Whether the temperature with the highest likelihood on the rows is folded into the last layer, so
            that softmax of the logits of every format is calibrated; answers stay the same. It needs 100 decisions,
            and has to lower the calibration error (`Calibration.error_after`). Without labels, likelihood and error
            are those under the teacher's probabilities.
        teacher: A folder or an id of the Hub: the teacher of rows without labels. The card names its licence.

    Returns:
        What was written.

    Raises:
        ValueError: If formats are unknown, if the student does not fit the task, if there are rows without a task,
            if rows have neither labels nor a teacher's answers, or if the ONNX graph, from which all others are made,
            is refused.
        OSError: If there is no such student.
        ImportError: Without the extra `export`, or `openvino` for these formats.
    """
    formats = _possible_formats(rows is not None) if formats is None else formats
    if unknown := set(formats) - {*FORMATS}:
        raise ValueError(f"formats={sorted(unknown)} is not understood: give some of {FORMATS}.")
    if (task is None) != (rows is None):
        raise ValueError("task and rows belong together: pass both, or none.")
    folder, model, tokenizer = Path(folder), load_teacher(student), load_tokenizer(student)
    tag, name, on_hub = pipeline_tag(model), hub_id or str(folder), hub_id is not None
    card = _card(student, tag, name)
    licences = licences_of(model.config, rows, teacher)
    if isinstance(task, UnlabelledText):
        rows = soft_labelled(task, rows, teacher)
    tokens = None if task is None else task.tokenize(rows, tokenizer)
    held_out = _held_out(model, tokenizer, task, rows, tokens, max_loss) if task else None
    calibration = held_out.calibration() if calibrate and held_out else None
    if calibration:
        model = fold_temperature(model, calibration.temperature)
    export_onnx(model, tokenizer, folder, calibration_dataset=tokens, min_agreement=min_agreement)
    if calibration or not (Path(student).exists() and folder.samefile(student)):
        model.save_pretrained(folder)
    files = [_file(folder, "transformers", folder / WEIGHTS), _file(folder, "onnx", folder / ONNX)]
    accept = held_out.accepts if held_out else None
    converted, int8 = _convert(folder, [kind for kind in FORMATS if kind in formats], tokens, min_agreement, accept)
    files += converted
    if held_out:
        files = held_out.score(files, folder)
    soft = held_out is not None and held_out.teacher_logits is not None
    shipment = Shipment(folder, tuple(files), int8, 0 if rows is None else len(rows), calibration, soft)
    notes = [*_notes(shipment), *licences]
    with_files(card, files, tag, name, on_hub, shipment.rows, notes).save(folder / CARD)
    return shipment


def soft_labelled(
    task: UnlabelledText, rows: datasets.Dataset, teacher: str | os.PathLike | None = None
) -> datasets.Dataset:
    """Rows without labels, with the column `teacher_logits`, and a column `label` of the answers that these give.

    Args:
        task: The task.
        rows: The rows, perhaps with soft labels, as `TransferData.build` takes them.
        teacher: A folder or an id of the Hub, for rows without soft labels.

    Raises:
        ValueError: If there is neither, or if the teacher's labels are not those of the task.
    """
    transfer = TransferData.build(rows, task)
    if transfer.has_logits:
        return task.with_answers(transfer.rows)
    if teacher is None:
        raise ValueError(
            "The rows have neither labels nor soft labels: pass a teacher, or a column teacher_probabilities or "
            "teacher_logits."
        )
    answered = UnlabelledText.from_teacher(teacher, task.text)
    if answered.labels != task.labels:
        raise ValueError(f"The labels of '{teacher}' are {answered.labels}, those of the student {task.labels}.")
    tokenizer = load_tokenizer(teacher)
    logits = cache_logits(load_teacher(teacher), task.tokenize(transfer.rows, tokenizer), tokenizer)
    return task.with_answers(transfer.rows.add_column(TEACHER_LOGITS, logits[TEACHER_LOGITS][:]))


def _held_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: datasets.Dataset,
    tokens: datasets.Dataset,
    max_loss: float,
) -> HeldOutRows:
    logits = np.asarray(rows[TEACHER_LOGITS][:]) if TEACHER_LOGITS in rows.column_names else None
    evaluated = EvaluationRows(tokens, [model], tokenizer)
    return HeldOutRows(model, evaluated, task.scorer(rows, tokens), max_loss, logits)


def _convert(
    folder: Path,
    formats: Sequence[str],
    tokens: datasets.Dataset | None,
    min_agreement: float | None,
    accept: Callable[[Path], bool] | None,
) -> tuple[list[ShippedFile], Int8Graph | None]:
    """The files that are made from the float32 graph, and the int8 graph."""
    files, int8 = [], None
    for kind in formats:
        try:
            if kind == "int8":
                int8 = quantize_onnx(folder, tokens, min_agreement, accept)
                files.append(_file(folder, kind, int8.path))
            elif kind in CONVERTERS:
                files.append(_file(folder, kind, CONVERTERS[kind](folder, tokens, min_agreement)))
        except ValueError as refusal:
            files.append(ShippedFile(kind, None, note=str(refusal)))
    return files, int8


def _notes(shipment: Shipment) -> list[str]:
    """What the card says below the table of files."""
    notes = []
    if shipment.soft_labels:
        notes.append("The rows have no labels: the score is the agreement with the teacher.")
    if shipment.int8:
        notes.append(f"The int8 choices that were tried:\n\n{shipment.int8.to_markdown()}")
    if calibration := shipment.calibration:
        notes.append(
            f"Probabilities are calibrated: the temperature {calibration.temperature:.2f} is part of the last layer. "
            f"Their expected calibration error{' against the teacher' if shipment.soft_labels else ''} is "
            f"{calibration.error_after:.3f}; it was {calibration.error:.3f}."
        )
    return notes


def _possible_formats(with_rows: bool) -> list[str]:
    """The formats that can be written here."""
    packages = {"openvino": ["openvino"], "openvino_int8": ["openvino", "nncf"]}
    installed = [name for name in FORMATS if all(map(find_spec, packages.get(name, [])))]
    return [name for name in installed if with_rows or name != "openvino_int8"]


def _card(student: str | os.PathLike, task: str, name: str) -> ModelCard:
    """The student's own card, or a new one."""
    if (path := Path(student, CARD)).exists() or is_hub_id(str(student)):
        try:
            return ModelCard.load(path if path.exists() else str(student))
        except (OSError, HfHubHTTPError):  # a repository without one
            pass
    metadata = ModelCardData(library_name="transformers").to_yaml()
    return ModelCard(f"---\n{metadata}\n---\n\n# {Path(name).name}\n\n{usage(task, name)}\n")


def _file(folder: Path, name: str, path: Path) -> ShippedFile:
    return ShippedFile(name, path.relative_to(folder).as_posix(), size_of(path) / 1e6)
