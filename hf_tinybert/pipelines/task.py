"""Whole runs, each in a folder that a killed run goes on from: text → general student, task and teacher → TinyBERT."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..lineage import Lineage, ModelRecord
from ..models.loading import from_pretrained, load_tokenizer
from ..students import TINYBERT4, create_student
from ..tasks import Task
from ..tasks.augmentation import Augmentation
from ..teachers.logit_cache import cache_logits
from ..training.arguments import DistillationArguments
from .runs import claim, start_of, train_once

COMMON = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 3,
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "epoch",
    "save_total_limit": 1,
}
SELECTION = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score"}
INTERMEDIATE_LOSSES = ["attention", "hidden", "embedding"]
HUB = ("push_to_hub", "hub_")
STEPS = {
    "fine_tuning": {"learning_rate": 5e-5},
    "intermediate": {"loss_type": INTERMEDIATE_LOSSES, "teacher_cache_gb": 5.0},
    "prediction": {"loss_type": ["prediction"], **SELECTION},
}


def task_distillation(
    task: Task,
    data: datasets.DatasetDict,
    teacher: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    calibration_rows: int = 2000,
    augmentation: Augmentation | None = None,
    fine_tuning: Mapping[str, Any] | None = None,
    intermediate: Mapping[str, Any] | None = None,
    prediction: Mapping[str, Any] | None = None,
    **arguments,
) -> dict[str, Any]:
    """TinyBERT's second stage; scores and seconds, also in `output_dir/results.json`, the student in its `student`.

    `teacher`, or each of several, is fine-tuned first where it has no head for the task. Training rows are
    augmented if asked. The student, cut from the first teacher in these sizes (`create_student`) or loaded (a
    generally distilled one), learns the intermediate layers, then the predictions, from cached logits; what the
    intermediate step reads of a teacher is kept too where it fits (`teacher_cache_gb`, 5 there). `student` is the
    best epoch by the task's score on the validation split, `student_last` the last one. `arguments` are
    `DistillationArguments` of all three steps, those of the Hub of the last alone (`hub_model_id`: default the
    name of `output_dir`); `fine_tuning`, `intermediate` and `prediction` those of one: `num_train_epochs=0` leaves
    the intermediate step out, `teacher` is a step's own and `augmented=False` gives it the plain rows. The same
    call goes on where it was stopped; another one in the same folder, or a teacher with other labels, raises
    ValueError.
    """
    names = _names(teacher)
    for name in names:
        task.check_labels(name)
    words = task.augmented if augmentation else ()  # raises where a task has none, before anything is trained
    output_dir = Path(output_dir)
    own = {"fine_tuning": fine_tuning, "intermediate": intermediate, "prediction": prediction}
    hub = {name: arguments.pop(name) for name in [*arguments] if name.startswith(HUB)}
    common = {**COMMON, **task.evaluation_arguments}
    steps = {name: {**common, **STEPS[name], **arguments, **(own[name] or {})} for name in STEPS}
    if not steps["prediction"]["num_train_epochs"]:
        raise ValueError("The prediction step selects and saves the student: give it num_train_epochs above 0.")
    if hub:
        steps["prediction"] = {"hub_model_id": output_dir.name, **hub, **steps["prediction"]}
    settings = {"task": task.name, "init": init, "calibration_rows": calibration_rows, "steps": steps}
    settings["teacher"] = names if len(names) > 1 else str(names[0])
    settings["student"] = dict(student) if isinstance(student, Mapping) else str(student)
    settings["augmentation"] = augmentation.settings if augmentation else None
    settings["rows"] = {split: [len(rows), rows[0], rows[-1]] for split, rows in data.items()}
    claim(output_dir, settings)
    finished = output_dir / "results.json"
    if finished.exists():
        return json.loads(finished.read_text())

    taught_by = {name: _names(steps[name].pop("teacher", None)) for name in ("intermediate", "prediction")}
    augmented = {name: steps[name].pop("augmented", True) for name in taught_by}
    tokenizer = load_tokenizer(names[0])
    with PartialState().main_process_first():
        tokens = {split: task.tokenize(rows, tokenizer) for split, rows in data.items()}
    selects = task.validation[0]
    common = {"processing_class": tokenizer, "data_collator": task.collator(tokenizer)}
    common |= {"eval_dataset": tokens[selects], "compute_metrics": task.scorer(data[selects], tokens[selects])}
    seed, states = steps["prediction"].get("seed", 42), {}

    fine_tune = partial(_load_teachers, task, steps["fine_tuning"], {"train_dataset": tokens["train"], **common})
    score = partial(evaluate, task, data, tokenizer, DistillationArguments(str(output_dir), **steps["prediction"]))

    teachers, states["fine_tuning"] = fine_tune(names, output_dir / "teacher")
    found = [score(model) for model in teachers]
    results = {"teacher": found[0]} | ({"teachers": found} if len(found) > 1 else {})

    set_seed(seed)
    if isinstance(student, Mapping):
        rows = tokens["train"].select(range(min(calibration_rows, len(tokens["train"]))))
        init = start_of(init, output_dir / "intermediate", output_dir / "student")
        model = create_student(teachers[0], **student, init=init, calibration_dataset=rows, processing_class=tokenizer)
    else:
        model, _ = task.load_model(student)
    plain = {"data_name": task.name}
    train_dataset, facts = tokens["train"], plain
    if augmentation:
        masked_lm = ModelRecord.from_config(augmentation.model.config)
        about = {"masked_lm": masked_lm.name, "masked_lm_revision": masked_lm.revision}
        facts = plain | {"augmentation": about | augmentation.settings}
        variants = augmentation(data["train"], words)
        with PartialState().main_process_first():
            train_dataset = task.tokenize(variants, tokenizer)
    for name, folder in (("intermediate", "intermediate"), ("prediction", "student")):
        rows, about = (train_dataset, facts) if augmented[name] else (tokens["train"], plain)
        losses = steps[name]["loss_type"]
        if not steps[name]["num_train_epochs"]:
            continue
        of_step = teachers
        if taught_by[name]:
            of_step, states[f"fine_tuning_{name}"] = fine_tune(taught_by[name], output_dir / f"teacher_{name}")
        if "prediction" in losses:
            how = {"weights": steps[name].get("teacher_weights"), "how": steps[name].get("teacher_logits", "mean")}
            rows = cache_logits(of_step, rows, tokenizer, data_collator=common["data_collator"], **how)
        options = {"train_dataset": rows, "teacher_model": None if set(losses) == {"task"} else of_step, **common}
        model, *states[name] = train_once(output_dir / folder, model, steps[name], **about, **options)
    results |= {
        "student": score(model),
        "student_last": score(type(model).from_pretrained(output_dir / "student_last")),
        "parameters": {"teacher": teachers[0].num_parameters(), "student": model.num_parameters()},
        "rows": len(train_dataset),
        "seconds": {
            name: sum(state.log_history[-1]["train_runtime"] for state in trained)
            for name, trained in states.items()
            if trained
        },
    }
    if PartialState().is_main_process:
        finished.write_text(json.dumps(results, indent=1))
    return results


def _names(models: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    return [models] if isinstance(models, str | Path) else list(models or ())


def _load_teachers(
    task: Task, arguments: Mapping[str, Any], options: Mapping[str, Any], names: Sequence[str | Path], folder: Path
) -> tuple[list[PreTrainedModel], list[TrainerState]]:
    """The models, those without a head fine-tuned, the first in `folder`, and the states of these trainings."""
    models, states = [], []
    for number, name in enumerate(names, start=1):
        set_seed(arguments.get("seed", 42))
        model, untrained = task.load_model(name)
        if untrained:
            Lineage(finetuned_from=ModelRecord.from_config(model.config)).write(model.config)
            place = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
            model, state = train_once(place, model, arguments, **options)
            states.append(state)
        models.append(model)
    return models, states


def evaluate(
    task: Task,
    data: datasets.DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    model: PreTrainedModel,
) -> dict[str, dict[str, float]]:
    """The metrics of `model` on each validation split; `args` need the `evaluation_arguments` of the task."""
    found = {}
    for split in task.validation:
        rows = task.tokenize(data[split], tokenizer)
        score = task.scorer(data[split], rows)

        def keep(prediction: EvalPrediction, split=split, score=score) -> dict[str, float]:
            found[split] = score(prediction)
            return found[split]

        common = {"data_collator": task.collator(tokenizer), "processing_class": tokenizer, "compute_metrics": keep}
        trainer = Trainer(model, args, eval_dataset=rows, **common)
        trainer.evaluate()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # or bf16 stays around its forward
    return found


def general_distillation(
    data: datasets.Dataset | datasets.IterableDataset,
    teacher: str | Path,
    output_dir: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    calibration_rows: int = 500,
    text: str = "text",
    max_length: int = 128,
    packed: bool = True,
    mlm_probability: float = 0.15,
    **arguments,
) -> PreTrainedModel:
    """TinyBERT's first stage: intermediate layers of a pre-trained teacher on plain text, without masking or heads.

    `data` has a column `text`; a stream needs `max_steps`, and as many shards as there are processes for each to read
    its own. `packed` joins the texts, separated, and cuts them into sequences of `max_length` tokens; otherwise a text
    is a sequence, cut there. `calibration_rows`: sequences that `init="teacher"` reads. `arguments` are `DistillationArguments`.
    Where the losses read logits or labels, teacher and student are masked language models and `mlm_probability` of
    the tokens is masked (BERT's 80/10/10). The student, otherwise headless, is saved in `output_dir`; the same call
    goes on where it was stopped. Raises ValueError for a masked language model that lacks its head.
    """
    output_dir = Path(output_dir)
    order = {"train_sampling_strategy": "random"} if packed else {}  # equally long already
    arguments = {**COMMON, **order, "save_strategy": "steps", "loss_type": INTERMEDIATE_LOSSES, **arguments}
    settings = {
        "teacher": str(teacher),
        "init": init,
        "calibration_rows": calibration_rows,
        "text": text,
        "max_length": max_length,
    }
    settings |= {"student": dict(student) if isinstance(student, Mapping) else str(student), "packed": packed}
    settings["mlm_probability"] = mlm_probability
    claim(output_dir, settings | {"arguments": arguments})
    masks = bool({"prediction", "task"} & {*arguments["loss_type"]})
    model_class = AutoModelForMaskedLM if masks else AutoModel
    tokenizer = load_tokenizer(teacher)
    teacher_model, loading = from_pretrained(model_class, teacher, output_loading_info=True)
    if masks and (missing := loading["missing_keys"]):
        raise ValueError(
            f"Teacher '{teacher}' is no masked language model, it lacks {sorted(missing)}: take the pre-trained one, "
            "or leave 'prediction' and 'task' out of loss_type."
        )
    with PartialState().main_process_first():
        rows = tokenize_text(data, tokenizer, text, max_length, packed)
    if isinstance(data, datasets.IterableDataset):
        # each process reads shards of its own, for as long as the others do
        rows, arguments = rows.repeat(None), {**arguments, "accelerator_config": {"dispatch_batches": False}}
    set_seed(arguments.get("seed", 42))
    if isinstance(student, Mapping):
        first, init = list(rows.take(calibration_rows)), start_of(init, output_dir)
        model = create_student(
            teacher_model, **student, init=init, calibration_dataset=first, processing_class=tokenizer
        )
    else:
        model = from_pretrained(model_class, student)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
    options = {"train_dataset": rows, "processing_class": tokenizer, "teacher_model": teacher_model}
    options["data_collator"] = collator if masks else DataCollatorWithPadding(tokenizer)
    return train_once(output_dir, model, arguments, **options)[0]


def tokenize_text(
    data: datasets.Dataset | datasets.IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    text: str = "text",
    max_length: int = 128,
    packed: bool = True,
) -> datasets.Dataset | datasets.IterableDataset:
    """Sequences of at most `max_length` tokens with the tokenizer's special tokens; see `general_distillation`."""
    columns = list(data.column_names)
    if text not in columns:
        raise ValueError(f"The data set has no column '{text}', only {columns}: name the column of the text.")
    word, sentence = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = sentence.index(word[0])
    prefix, suffix = sentence[:start], sentence[start + len(word) :]
    size = max_length - len(prefix) - len(suffix)

    def cut(batch):
        if not packed:
            return tokenizer(batch[text], truncation=True, max_length=max_length)
        documents = tokenizer(batch[text], add_special_tokens=False, verbose=False)["input_ids"]
        joined = list(chain.from_iterable([*ids, *suffix] for ids in documents))[: -len(suffix) or None]
        return {"input_ids": [[*prefix, *joined[i : i + size], *suffix] for i in range(0, len(joined), size)]}

    options = {} if isinstance(data, datasets.IterableDataset) else {"desc": "Tokenising"}
    return data.map(cut, batched=True, remove_columns=columns, **options)
