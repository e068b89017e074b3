"""The model card of a student: Trainer's own, with what it is, how to use it and where it comes from."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard
from transformers import PretrainedConfig, PreTrainedModel, TrainerState
from transformers.modelcard import METRIC_TAGS, TASK_MAPPING

from .lineage import hub_ids, is_hub_id, lineage_of, teachers_of

if TYPE_CHECKING:
    from .report import StudentReport

TAGS = ["hf_tinybert", "tinybert", "knowledge-distillation"]
METRIC_TYPES = {name: name for name in METRIC_TAGS} | {"pearson": "pearsonr", "spearman": "spearmanr"}
UNKNOWN = "–"
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
    report: "StudentReport | None" = None,
    metrics: Mapping[str, float] | None = None,
    evaluated_on: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> ModelCard:
    """Trainer's card of the student `model`, or one that was extended before, with its lineage (`lineage`).

    - `metrics`: scores of the student on `evaluated_on` (`describe_data`); those of `report` where there is one.
    - `repo_id`: what to load it by; default the card's title.

    The teacher is `base_model`, where it is on the Hub, and the relation "finetune": the Hub knows adapter, merge,
    quantized and finetune only, and new weights of the same kind come from the teacher's. Trainer's hyper-parameters,
    results by epoch and versions stay. Raises ValueError for a model without `config.distillation`.
    """
    lineage = lineage_of(model.config)
    if lineage is None:
        raise ValueError("The model has no config.distillation: make it with create_student or distil it first.")
    if report is not None:
        metrics = report.summary
    elif metrics is None:
        metrics = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    task = _task(model)
    extended = ModelCard(str(card))
    _extend_metadata(extended.data, title[1], task, lineage, metrics, evaluated_on or {})
    sections = [
        f"{card.text[: title.start()]}# {title[1]}",
        _introduction(model, lineage),
        _results(metrics, evaluated_on or {}),
        f"## Teacher and student\n\n{report.to_markdown().strip()}" if report is not None else "",
        _usage(task, repo_id or title[1]),
        _lineage(lineage),
        (PROCEDURE + card.text.partition(PROCEDURE)[2].partition(CITATION)[0]).strip(),
        f"{CITATION}\n\n{BIBTEX.replace('VERSION', _version())}",
    ]
    extended.text = "\n\n".join(filter(None, sections)) + "\n"
    return extended


def final_evaluation(state: TrainerState, best_step: int | None = None) -> dict[str, float]:
    """The newest metrics of the weights that training left: of `best_step` if those were loaded, or measured since.

    Trainer's own card has the last epoch's, also where it loaded the best one.
    """
    ended = max((i for i, log in enumerate(state.log_history) if "train_runtime" in log), default=-1)
    metrics: dict[str, float] = {}
    for i, log in enumerate(state.log_history):
        if i > ended or best_step in (None, log["step"]):
            metrics |= {name.removeprefix("eval_"): log[name] for name in log if name.startswith("eval_")}
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "_per_second", "_time"))}


def _extend_metadata(data, name: str, task: str, lineage, metrics, evaluated_on) -> None:
    ids = [data.base_model] if isinstance(data.base_model, str) else data.base_model or []
    ids = list(dict.fromkeys([*filter(is_hub_id, ids), *hub_ids(lineage)]))
    data.base_model = None
    if ids:
        data.base_model = ids[0] if len(ids) == 1 else ids
        data["base_model_relation"] = "finetune"
    data.tags = list(dict.fromkeys([*TAGS, *(data.tags or ())]))
    data["library_name"], data["pipeline_tag"] = "transformers", task
    scores = {METRIC_TYPES[name]: value for name, value in metrics.items() if name in METRIC_TYPES}
    if data.eval_results:  # of the data set that the user named, with Trainer's values
        for result in data.eval_results:
            result.metric_value = scores.get(result.metric_type, result.metric_value)
    elif scores and evaluated_on.get("name"):
        data.model_name, data.metrics = name, list(scores)
        where = {f"dataset_{key}": evaluated_on.get(key) for key in ("name", "config", "split")}
        about = {"task_type": task, "task_name": task.replace("-", " ").title(), "dataset_type": evaluated_on["name"]}
        data.eval_results = [
            EvalResult(**about, **where, metric_type=metric, metric_name=metric, metric_value=value)
            for metric, value in scores.items()
        ]


def _task(model: PreTrainedModel) -> str:
    """The Hub's pipeline tag."""
    classes = ((task, names.values()) for task, names in TASK_MAPPING.items())
    return next((task for task, names in classes if type(model).__name__ in names), "feature-extraction")


def _introduction(model: PreTrainedModel, lineage: Mapping[str, Any]) -> str:
    taught = [stage for stage in lineage["stages"] if any(each["teacher"] for each in teachers_of(stage))] or [lineage]
    teachers = " and ".join(_model(each, "teacher") for each in teachers_of(taught[-1]))
    return (
        f"A small `{type(model).__name__}` with {_parameters(model.num_parameters())} parameters "
        f"({_size(model.config)}). It is the student of {teachers}; it was distilled with hf_tinybert "
        f"{_version()} and runs with transformers alone."
    )


def _parameters(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _size(config: PretrainedConfig) -> str:
    feed_forward = config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size
    return (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, feed-forward {feed_forward}, "
        f"{config.num_attention_heads} heads"
    )


def _model(facts: Mapping[str, Any], what: str) -> str:
    if not facts.get(what):
        return f"a {what} without a name"
    revision, source = facts.get(f"{what}_revision"), facts.get(f"{what}_finetuned_from")
    where = "a local folder" if facts[what].startswith("./") else revision and f"revision `{revision}`"
    text = f"`{facts[what]}`" + (f" ({where})" if where else "")
    return text + (f", fine-tuned from {_model(facts, f'{what}_finetuned_from')}" if source else "")


def _results(metrics: Mapping[str, float], evaluated_on: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    where = ", ".join(str(evaluated_on[key]) for key in ("name", "config", "split") if evaluated_on.get(key))
    rows = f", {evaluated_on['rows']:,} rows" if evaluated_on.get("rows") else ""
    table = _table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in metrics.items()])
    return f"## Results\n\nOn {where or 'the evaluation set'}{rows}:\n\n{table}"


def _usage(task: str, name: str) -> str:
    text = "A sentence of [MASK]." if task == "fill-mask" else "A sentence."
    call = 'question="Who?", context="A text."' if task == "question-answering" else f'"{text}"'
    return (
        "## How to use\n\n```python\nfrom transformers import pipeline\n\n"
        f'student = pipeline("{task}", model="{name}")\nstudent({call})\n```'
    )


def _lineage(lineage: Mapping[str, Any]) -> str:
    """How it started, then one column a stage."""
    columns = [_stage(stage) for stage in lineage["stages"]]
    rows = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    rows = [row for row in rows if set(row[1:]) != {UNKNOWN}]
    header = ["", *(f"step {number}" for number in range(1, len(columns) + 1))]
    table = _table(header, rows) if columns else "It has not been trained since."
    table += "\n\nThe hyper-parameters below are those of the last step." if len(columns) > 1 else ""
    return f"## Lineage\n\n{_start(lineage)}\n\n{table}"


def _start(lineage: Mapping[str, Any]) -> str:
    if "init" not in lineage:
        return f"It started from {_model(lineage, 'start')}." if lineage.get("start") else "Its start is not recorded."
    teacher = _model(lineage, "teacher")
    if lineage["init"] == "random":
        return f"It started from random weights, in the architecture of {teacher}."
    layers = ", ".join(map(str, lineage["layers"]))
    if lineage["init"] == "layers":
        return f"It started from layers {layers} of {teacher}, copied."
    sample = f", refitted by least squares on {lineage['sample']:,} rows without labels" if lineage["sample"] else ""
    return f"It was cut from layers {layers} of {teacher}{sample}."


def _stage(stage: Mapping[str, Any]) -> dict[str, str]:
    data, augmentation, teachers = stage["data"], stage["augmentation"] or {}, teachers_of(stage)
    pairs = [", ".join(f"{ours} ← {theirs}" for ours, theirs in each["layer_mapping"]) for each in teachers]
    models = [_model(each, "teacher") for each in teachers]
    if len(teachers) > 1:
        models = [f"{model} (weight {each['weight']:.3g})" for model, each in zip(models, teachers, strict=True)]
    facts = {
        "losses (weight)": ", ".join(f"{name} ({weight:g})" for name, weight in stage["losses"].items()),
        "weights balanced by": _listed(stage.get("loss_factors")),
        "weight schedules": _listed(stage.get("loss_schedules")),
        "temperature": stage.get("temperature"),
        "layers, student ← teacher (0: embeddings)": "; ".join(filter(None, pairs)),
        "teacher": ", ".join(models),
        "teachers' logits": stage.get("teacher_logits"),
        "data": ", ".join(str(data[key]) for key in ("name", "config", "split") if data[key]),
        "rows": data["rows"] and f"{data['rows']:,}",
        "fingerprint of tokens and labels": data["fingerprint"] and f"`{data['fingerprint']}`",
        "augmentation": _listed(augmentation) or "none",
        "epochs": stage.get("epochs"),
        "steps": stage.get("max_steps"),
        "learning rate": f"{stage['learning_rate']:g}",
        "batch size": stage["batch_size"],
        "precision": stage["precision"],
        "seed": stage["seed"],
    }
    return {name: UNKNOWN if value in (None, "") else str(value) for name, value in facts.items()}


def _listed(settings: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (settings or {}).items())


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _version() -> str:
    from . import __version__  # set once the package is imported

    return __version__
