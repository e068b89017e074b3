"""The verbs, a function each: from flags to a result."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import TrainingArguments

from ..evaluation.measurement import Measurement, distinct_metrics
from ..evaluation.plots import plot_attention, plot_similarity
from ..evaluation.report import StudentReport
from ..evaluation.rows import EvaluationRows
from ..models.loading import load_tokenizer
from ..pipelines.doctor import Check, diagnose
from ..pipelines.doctor import to_table as to_check_list
from ..pipelines.scoring import evaluate_task
from ..pipelines.task import task_distillation
from ..publishing.hub import push_folder
from .flags import phase_arguments
from .inputs import (
    Options,
    augmentation_of,
    early_stopping_of,
    fine_tuned_model,
    first_teacher,
    head_labels,
    held_out_note,
    student_of,
    task_and_data,
    trainer_arguments,
    transfer_of,
)
from .terminal import Outcome, terminal_columns, to_duration, to_table

MODELS = {
    "teacher": "teacher",
    "student": "student, best epoch",
    "student_last": "student, last epoch",
    "baseline": "student, labels alone",
}


def distill(options: Options) -> Outcome:
    """Distil a teacher into a student: fine-tune the teacher if it has no prediction head for the task, initialise the
    student from it, then train it on the teacher's answers for the rows, the transfer rows and variants of both, and
    on the labels. Prints the scores and the folder of the student."""
    start = perf_counter()
    task, data = task_and_data(options, head_labels(options, first_teacher(options)))
    arguments = trainer_arguments(options)
    output_dir = arguments.pop("output_dir")
    results = task_distillation(
        task,
        data,
        options.teacher,
        output_dir,
        student=student_of(options),
        init=options.init,
        calibration_rows=options.calibration_rows,
        transfer=transfer_of(options, task),
        augmentation=augmentation_of(options),
        fine_tuning=phase_arguments(options.fine_tuning, distils=False),
        intermediate="auto" if options.intermediate is None else phase_arguments(options.intermediate),
        prediction=phase_arguments(options.prediction),
        labels=phase_arguments(options.labels),
        early_stopping=early_stopping_of(options),
        compare=options.compare,
        **arguments,
    )
    phases = ", ".join(
        f"{name.replace('_', '-')} {to_duration(seconds)}" for name, seconds in results["seconds"].items()
    )
    if "agreement" in results["student"][task.validation[0]]:
        phases += "; scored by agreement with the teacher on held-out rows without labels"
    text = (
        f"{to_table(_score_rows(results))}\n\n"
        f"{results['rows']:,} training rows; {phases}; in all {to_duration(perf_counter() - start)}.\n"
        f"Student: {Path(output_dir, 'student')} (the whole run: {output_dir})"
    )
    return Outcome(text, {"output_dir": str(output_dir), **results})


def _score_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model and validation split."""
    splits = results["student"]
    names = [name for name in next(iter(splits.values())) if name != "score" or len(next(iter(splits.values()))) > 2]
    rows = [["", *(["split"] if len(splits) > 1 else []), "parameters", "MB", *names]]
    for key, model in MODELS.items():
        size = "teacher" if key == "teacher" else "student"
        for split, scores in results.get(key, {}).items():
            place = [split] if len(splits) > 1 else []
            sizes = [f"{results['parameters'][size] / 1e6:.1f} M", f"{results['megabytes'][size]:.1f}"]
            rows.append([model, *place, *sizes, *(f"{scores[name]:.4f}" for name in names)])
    return rows


def doctor(options: Options) -> Outcome:
    """Check a distillation before any training and print a table of what works and what to change. The exit code is 1
    if something cannot work."""
    try:
        labels = head_labels(options, first_teacher(options))
    except (ValueError, OSError):
        labels = None  # the check of the teacher says what is wrong
    try:
        task, data = task_and_data(options, labels)
        transfer = transfer_of(options, task)
    except (ValueError, OSError) as error:
        checks = [Check("data", False, str(error))]
    else:
        student, arguments = student_of(options), trainer_arguments(options)
        checks = [
            check
            for teacher in options.teacher
            for check in diagnose(task, data, teacher, student, options.init, transfer, **arguments)
        ] or [Check("teacher", False, "There is no teacher: pass --teacher. Soft labels alone need no check of one.")]
    failed = [check for check in checks if not check.passed]
    verdict = f"{len(failed)} of {len(checks)} checks failed." if failed else "This can be distilled."
    values = {"passed": not failed, "checks": [vars(check) for check in checks]}
    return Outcome(f"{to_check_list(checks, terminal_columns())}\n\n{verdict}", values, int(bool(failed)))


def augment(options: Options) -> Outcome:
    """Augment the training rows (TinyBERT, algorithm 1) and write them with their variants to a parquet file."""
    task, data = task_and_data(options)
    augmented = augmentation_of(options)(data["train"], task.augmented)
    augmented.to_parquet(options.output)
    rows, more = len(data["train"]), len(augmented)
    return Outcome(
        f"{rows:,} rows became {more:,}: {options.output}",
        {"rows": rows, "augmented_rows": more, "file": options.output},
    )


def evaluate(options: Options) -> Outcome:
    """Score a model on the validation splits and print the metrics."""
    task, data = task_and_data(options, head_labels(options, options.model))
    model, tokenizer = fine_tuned_model(task, options.model), load_tokenizer(options.model)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            report_to=[],
            per_device_eval_batch_size=options.batch_size,
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=False,
            **task.evaluation_arguments,
        )
        scores = evaluate_task(model, task, data, tokenizer, args)
    names = [*scores[task.validation[0]]]
    rows = [["split", "rows", *names]]
    rows += [
        [split, f"{len(data[split]):,}", *(f"{values[n]:.4f}" for n in names)] for split, values in scores.items()
    ]
    return Outcome(f"{to_table(rows)}\n\n{held_out_note(options)}Model: {options.model}", scores)


def report(options: Options) -> Outcome:
    """Compare teacher and student on the same rows by scores, agreement, size and speed. Writes a table, JSON and
    plots, and prints the table."""
    task, data = task_and_data(options, head_labels(options, options.teacher))
    tokenizer = load_tokenizer(options.student)
    teacher, student = fine_tuned_model(task, options.teacher), fine_tuned_model(task, options.student)
    rows = data[task.validation[0]]
    tokens = task.tokenize(rows, tokenizer)
    batch = EvaluationRows(tokens, [teacher, student], tokenizer).sequences(256)
    first = {name: values[:1, batch["attention_mask"][0].bool()] for name, values in batch.items()}
    words = tokenizer.convert_ids_to_tokens(first["input_ids"][0])
    similarity, attention = plot_similarity(teacher, student, batch), plot_attention(teacher, student, first, words)
    scorer = task.scorer(rows, tokens)
    measured = StudentReport.measure(teacher, student, tokens, tokenizer, scorer, options.batch_size, options.engines)
    measured.save(options.output_dir, similarity=similarity, attention=attention)
    table = to_table(_measurement_rows(measured.measurements))
    report_file = options.output_dir / "report.md"
    text = f"{table}\n\n{held_out_note(options)}{len(rows):,} rows. Report: {report_file} (with intervals and plots)"
    return Outcome(text, {"output_dir": str(options.output_dir), **json.loads(measured.to_json())})


def _measurement_rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """What fits into a terminal of 80 columns: the metric that comes first, size and speed."""
    metric = distinct_metrics(measurements)[0]
    rows = [["", "engine", metric, "retained", "MB", "ms", "rows/s"]]
    for m in measurements:
        retained = "–" if m.retained[metric] is None else f"{m.retained[metric]:.1%}"
        cells = [f"{m.metrics[metric][0]:.3f}", retained, f"{m.megabytes:.1f}"]
        rows.append([m.model, m.engine_name, *cells, f"{m.latency_ms['p50']:.1f}", f"{m.throughput:.0f}"])
    return rows


def push(options: Options) -> Outcome:
    """Push the folder of a student to the Hub, without its checkpoints, and print the address."""
    address = push_folder(options.model, options.to, private=options.private, revision=options.revision)
    return Outcome(str(address), {"url": str(address)})
