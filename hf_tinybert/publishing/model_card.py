"""The model card of a student: Trainer's own, with what it is, how to use it and where it comes from."""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PretrainedConfig, PreTrainedModel, TrainerState
from transformers.modelcard import METRIC_TAGS, TASK_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
)

from ..evaluation.report import StudentReport
from ..lineage import DataRecord, Lineage, ModelRecord, Stage, is_hub_id
from ..models.architectures import architecture_of
from ..version import __version__
from .files_section import ARGUMENTS, INPUTS

TAGS = ["hf_tinybert", "tinybert", "knowledge-distillation"]
METRIC_TYPES = {name: name for name in METRIC_TAGS} | {"pearson": "pearsonr", "spearman": "spearmanr"}
UNKNOWN = "–"
# Tasks of the Hub that transformers 5 has no pipeline for: the class that loads a model, and the classes of models.
WITHOUT_PIPELINE = {
    "question-answering": ("AutoModelForQuestionAnswering", MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    "multiple-choice": ("AutoModelForMultipleChoice", MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES),
}
PROCEDURE, CITATION = "## Training procedure", "## Citation"
BIBTEX = """\
```bibtex
@inproceedings{jiao-etal-2020-tinybert,
  title = {{TinyBERT}: Distilling {BERT} for Natural Language Understanding},
  author = {Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and Li, Linlin and Wang, Fang
            and Liu, Qun},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2020},
  year = {2020},
  pages = {4163--4174},
  eprint = {1909.10351},
  archivePrefix = {arXiv}
}

@software{hf_tinybert,
  title = {hf\\_tinybert: layer-wise distillation of Transformer encoders},
  version = {VERSION}
}
```"""


def extend_card(
    card: ModelCard,
    model: PreTrainedModel,
    report: StudentReport | None = None,
    metrics: Mapping[str, float] | None = None,
    evaluated_on: DataRecord | None = None,
    repo_id: str | None = None,
) -> ModelCard:
    """Extend the model card of a student with its lineage, and cite the losses that it was trained with.

    A teacher on the Hub becomes `base_model`, with the relation "finetune": the Hub knows adapter, merge, quantized
    and finetune only, and new weights of the same kind come from the teacher's. Trainer's hyper-parameters, results
    by epoch and versions stay.

    Args:
        card: The card that Trainer wrote, or one that was extended before.
        model: The student.
        report: Teacher and student measured side by side.
        metrics: Scores of the student on `evaluated_on`. Those of `report` take their place if there is one; default
            those in the card.
        evaluated_on: The evaluation data. Results in the card on data of another name are replaced.
        repo_id: The name to load the student by; default the card's title.

    Returns:
        A new card.

    Raises:
        ValueError: For a model without lineage.
    """
    lineage = Lineage.from_config(model.config)
    if lineage is None:
        raise ValueError("The model has no config.distillation: make it with create_student or distil it first.")
    if report is not None:
        metrics = report.summary
    elif metrics is None:
        metrics = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    evaluated_on = evaluated_on or DataRecord()
    title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    task = pipeline_tag(model)
    extended = ModelCard(str(card))
    _extend_metadata(extended.data, title[1], task, lineage, metrics, evaluated_on)
    sections = [
        f"{card.text[: title.start()]}# {title[1]}",
        _introduction(model, lineage),
        _results(metrics, evaluated_on),
        f"## Teacher and student\n\n{report.to_markdown().strip()}" if report is not None else "",
        usage(task, repo_id or title[1]),
        _lineage(lineage),
        (PROCEDURE + card.text.partition(PROCEDURE)[2].partition(CITATION)[0]).strip(),
        _citation(lineage),
    ]
    extended.text = "\n\n".join(filter(None, sections)) + "\n"
    return extended


def final_evaluation(state: TrainerState, best_step: int | None = None) -> dict[str, float]:
    """The newest metrics of the student as training left it.

    Trainer's own card has those of the last epoch, also if training ended with the weights of the best step.

    Args:
        state: The state of the trainer.
        best_step: The step whose weights were loaded at the end of training; None for the last step.

    Returns:
        The metrics by name, without their prefix, and without times.
    """
    ended = max((i for i, log in enumerate(state.log_history) if "train_runtime" in log), default=-1)
    metrics: dict[str, float] = {}
    for i, log in enumerate(state.log_history):
        if i > ended or best_step in (None, log["step"]):
            metrics |= {name.removeprefix("eval_"): log[name] for name in log if name.startswith("eval_")}
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "_per_second", "_time"))}


def _extend_metadata(
    data: ModelCardData,
    name: str,
    task: str,
    lineage: Lineage,
    metrics: Mapping[str, float],
    evaluated_on: DataRecord,
) -> None:
    ids = [data.base_model] if isinstance(data.base_model, str) else data.base_model or []
    ids = list(dict.fromkeys([*filter(is_hub_id, ids), *lineage.hub_ids]))
    data.base_model = None
    if ids:
        data.base_model = ids[0] if len(ids) == 1 else ids
        data["base_model_relation"] = "finetune"
    data.tags = list(dict.fromkeys([*TAGS, *(data.tags or ())]))
    data["library_name"], data["pipeline_tag"] = "transformers", task
    scores = {METRIC_TYPES[name]: value for name, value in metrics.items() if name in METRIC_TYPES}
    results = data.eval_results or []
    if results and (evaluated_on.name is None or evaluated_on.name in [result.dataset_name for result in results]):
        for result in results:
            result.metric_value = scores.get(result.metric_type, result.metric_value)
    elif scores and evaluated_on.name:
        data.model_name, data.metrics = name, list(scores)
        data.eval_results = [
            EvalResult(
                task_type=task,
                task_name=task.replace("-", " ").title(),
                dataset_type=evaluated_on.name,
                dataset_name=evaluated_on.name,
                dataset_config=evaluated_on.config,
                dataset_split=evaluated_on.split,
                metric_type=metric,
                metric_name=metric,
                metric_value=value,
            )
            for metric, value in scores.items()
        ]


def pipeline_tag(model: PreTrainedModel) -> str:
    """The Hub's pipeline tag."""
    others = {task: names for task, (_, names) in WITHOUT_PIPELINE.items()}
    classes = ((task, names.values()) for task, names in (TASK_MAPPING | others).items())
    return next((task for task, names in classes if type(model).__name__ in names), "feature-extraction")


def _introduction(model: PreTrainedModel, lineage: Lineage) -> str:
    teachers = [[teacher.model for teacher in stage.teachers] for stage in reversed(lineage.stages)]
    named = [models for models in teachers if any(model.name for model in models)]
    newest = " and ".join(_model(model, "teacher") for model in (named[0] if named else [lineage.teacher]))
    return (
        f"A small `{type(model).__name__}` with {_parameters(model.num_parameters())} parameters "
        f"({_size(model.config)}). It is the student of {newest}. It was distilled with hf_tinybert {__version__} and "
        "runs with transformers alone."
    )


def _parameters(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _size(config: PretrainedConfig) -> str:
    feed_forward = architecture_of(config).size(config, "intermediate_size")
    return (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, feed-forward {feed_forward}, "
        f"{config.num_attention_heads} heads"
    )


def _model(model: ModelRecord | None, what: str) -> str:
    """A model in words; `what` it is, if it has no name."""
    if model is None or not model.name:
        return f"a {what} without a name"
    where = "a local folder" if model.name.startswith("./") else model.revision and f"revision `{model.revision}`"
    text = f"`{model.name}`" + (f" ({where})" if where else "")
    return text + (f", fine-tuned from {_model(model.finetuned_from, 'model')}" if model.finetuned_from else "")


def _results(metrics: Mapping[str, float], evaluated_on: DataRecord) -> str:
    if not metrics:
        return ""
    where = ", ".join(filter(None, (evaluated_on.name, evaluated_on.config, evaluated_on.split)))
    rows = f", {evaluated_on.rows:,} rows" if evaluated_on.rows else ""
    table = _table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in metrics.items()])
    note = "The rows have no labels: `agreement` is that with the teacher.\n\n" if "agreement" in metrics else ""
    return f"## Results\n\n{note}On {where or 'the evaluation set'}{rows}:\n\n{table}"


def usage(task: str, name: str) -> str:
    """The section "How to use" of a model of this pipeline tag, loaded by `name`."""
    arguments = ARGUMENTS.get(task, '"A sentence."')
    if task in WITHOUT_PIPELINE:
        model, _ = WITHOUT_PIPELINE[task]
        code = (
            f"from transformers import {model}, AutoTokenizer\n\n"
            f'tokenizer, student = AutoTokenizer.from_pretrained("{name}"), {model}.from_pretrained("{name}")\n'
            f'inputs = tokenizer({arguments}, return_tensors="pt")\n'
            f"outputs = student(**{INPUTS.get(task, 'inputs')})"
        )
    else:
        code = f'from transformers import pipeline\n\nstudent = pipeline("{task}", model="{name}")\n'
        code += f"student({arguments})"
    return f"## How to use\n\n```python\n{code}\n```"


def _lineage(lineage: Lineage) -> str:
    """How it started, then one column for each stage."""
    columns = [_stage(stage) for stage in lineage.stages]
    rows = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    rows = [row for row in rows if set(row[1:]) != {UNKNOWN}]
    header = ["", *(f"phase {number}" for number in range(1, len(columns) + 1))]
    table = _table(header, rows) if columns else "It has not been trained since."
    table += "\n\nThe hyper-parameters below are those of the last phase." if len(columns) > 1 else ""
    return f"## Lineage\n\n{_start(lineage)}\n\n{table}"


def _start(lineage: Lineage) -> str:
    if lineage.init is None:
        named = lineage.start is not None and lineage.start.name
        return f"It started from {_model(lineage.start, 'model')}." if named else "Its start is not recorded."
    teacher = _model(lineage.teacher, "teacher")
    if lineage.init == "random":
        return f"It started from random weights, in the architecture of {teacher}."
    layers = ", ".join(map(str, lineage.layers or ()))
    if lineage.init == "layers":
        return f"It started from layers {layers} of {teacher}, copied."
    rows = lineage.calibration_rows
    fitted = f", by least squares on {rows:,} calibration rows without labels" if rows else ""
    return f"It was initialised from layers {layers} of {teacher}{fitted}."


def _stage(stage: Stage) -> dict[str, str]:
    """One column of the table: row → cell."""
    pairs = [", ".join(" ← ".join(map(str, pair)) for pair in teacher.layer_mapping) for teacher in stage.teachers]
    models = [_model(teacher.model, "teacher") for teacher in stage.teachers]
    if len(models) > 1:
        weights = [teacher.weight for teacher in stage.teachers]
        models = [f"{model} (weight {weight:.3g})" for model, weight in zip(models, weights, strict=True)]
    data, losses = stage.data, stage.losses
    facts = {
        "losses (weight)": ", ".join(f"{loss.name} ({loss.weight:g})" for loss in losses),
        "settings of losses": "; ".join(f"{loss.name}: {text}" for loss in losses if (text := _listed(loss.settings))),
        "balancing factors of weights": _listed(stage.factors),
        "schedules of weights": _listed({loss.name: loss.schedule for loss in losses if loss.schedule != "constant"}),
        "layers, student ← teacher (0: embeddings)": "; ".join(filter(None, pairs)),
        "teacher": ", ".join(models),
        "teachers' logits": stage.teacher_logits if len(models) > 1 else None,
        "data": ", ".join(filter(None, (data.name, data.config, data.split))),
        "rows": data.rows and f"{data.rows:,}",
        "fingerprint of tokens and labels": data.fingerprint and f"`{data.fingerprint}`",
        "augmentation": _listed(stage.augmentation) or "none",
        "epochs": stage.epochs,
        "optimizer steps": stage.max_steps,
        "learning rate": f"{stage.learning_rate:g}",
        "batch size": stage.batch_size,
        "precision": stage.precision,
        "seed": stage.seed,
    }
    return {name: UNKNOWN if value in (None, "") else str(value) for name, value in facts.items()}


def _citation(lineage: Lineage) -> str:
    """The papers that the losses come from, and BibTeX of the main paper and the package."""
    names: dict[str, list[str]] = {}
    for loss in chain.from_iterable(stage.losses for stage in lineage.stages):
        if loss.citation and loss.name not in names.setdefault(loss.citation, []):
            names[loss.citation].append(loss.name)
    sources = "\n".join(f"- {', '.join(losses)}: {_on_one_line(citation)}" for citation, losses in names.items())
    bibtex = BIBTEX.replace("VERSION", __version__)
    return "\n\n".join(filter(None, (CITATION, sources and f"The losses come from:\n\n{sources}", bibtex)))


def _listed(settings: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (settings or {}).items() if value is not None)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return _on_one_line(text).replace("|", r"\|")


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
