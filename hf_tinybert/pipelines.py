"""Whole runs, each in a folder that a killed run goes on from: text → general student, task and teacher → TinyBERT."""

import json
import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from .arguments import DistillationArguments
from .augmentation import Augmentation
from .lineage import finetuned_from, origin
from .loading import from_pretrained, load_tokenizer
from .students import TINYBERT4, create_student
from .tasks import Task
from .teachers import cache_logits
from .trainer import DistillationTrainer

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
    teacher: str | Path,
    output_dir: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    sample: int = 2000,
    augmentation: Augmentation | None = None,
    fine_tuning: Mapping[str, Any] | None = None,
    intermediate: Mapping[str, Any] | None = None,
    prediction: Mapping[str, Any] | None = None,
    **arguments,
) -> dict[str, Any]:
    """TinyBERT's second stage; scores and seconds, also in `output_dir/results.json`, the student in its `student`.

    `teacher` is fine-tuned first where it has no head for the task. Training rows are augmented if asked. The student,
    created in these sizes (`create_student`) or loaded (a generally distilled one), learns the intermediate layers,
    then the predictions, from cached logits; what the intermediate step reads of the teacher is kept too where it
    fits (`teacher_cache_gb`, 5 there). `student` is the best epoch by the task's score on the validation split,
    `student_last` the last one. `arguments` are `DistillationArguments` of all three steps, those of the Hub of the
    last alone (`hub_model_id`: default the name of `output_dir`); `fine_tuning`, `intermediate` and `prediction` those
    of one, where `num_train_epochs=0` leaves it out. The same call goes on where it was stopped; another one in the
    same folder, or a teacher with other labels, raises ValueError.
    """
    task.check_labels(teacher)
    output_dir = Path(output_dir)
    own = {"fine_tuning": fine_tuning, "intermediate": intermediate, "prediction": prediction}
    hub = {name: arguments.pop(name) for name in [*arguments] if name.startswith(HUB)}
    steps = {name: {**COMMON, **STEPS[name], **arguments, **(own[name] or {})} for name in STEPS}
    if hub:
        steps["prediction"] = {"hub_model_id": output_dir.name, **hub, **steps["prediction"]}
    settings = {"task": task.name, "teacher": str(teacher), "init": init, "sample": sample, "steps": steps}
    settings["student"] = dict(student) if isinstance(student, Mapping) else str(student)
    settings["augmentation"] = augmentation.settings if augmentation else None
    settings["rows"] = {split: [len(rows), rows[0], rows[-1]] for split, rows in data.items()}
    _claim(output_dir, settings)
    finished = output_dir / "results.json"
    if finished.exists():
        return json.loads(finished.read_text())

    tokenizer = load_tokenizer(teacher)
    with PartialState().main_process_first():
        tokens = {split: task.tokenize(rows, tokenizer) for split, rows in data.items()}
    validation = {split: tokens[split] for split in task.validation}
    common = {"processing_class": tokenizer, "compute_metrics": task.compute_metrics}
    common["eval_dataset"] = validation[task.validation[0]]
    seed, states = steps["prediction"].get("seed", 42), {}

    def scores(model: PreTrainedModel) -> dict[str, dict[str, float]]:
        trainer = Trainer(model, DistillationArguments(str(output_dir), **steps["prediction"]), **common)
        scores = {split: task.compute_metrics(trainer.predict(rows)) for split, rows in validation.items()}
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # or bf16 stays around its forward
        return scores

    set_seed(seed)
    teacher_model, untrained = task.load_model(teacher)
    if untrained:
        teacher_model.config.distillation = finetuned_from(teacher_model.config)
        teacher_model, states["fine_tuning"] = _train(
            output_dir / "teacher", teacher_model, steps["fine_tuning"], train_dataset=tokens["train"], **common
        )
    results = {"teacher": scores(teacher_model)}

    set_seed(seed)
    if isinstance(student, Mapping):
        rows = tokens["train"].select(range(min(sample, len(tokens["train"]))))
        init = _start(init, output_dir / "intermediate", output_dir / "student")
        model = create_student(teacher_model, **student, init=init, sample=rows, processing_class=tokenizer)
    else:
        model, _ = task.load_model(student)
    train_dataset, facts = tokens["train"], {"data_name": task.name}
    if augmentation:
        facts["augmentation"] = origin(augmentation.model.config, "masked_lm") | augmentation.settings
        augmented = augmentation(data["train"], task.text)
        with PartialState().main_process_first():
            train_dataset = task.tokenize(augmented, tokenizer)
    for name, folder in (("intermediate", "intermediate"), ("prediction", "student")):
        rows, losses = train_dataset, steps[name]["loss_type"]
        if not steps[name]["num_train_epochs"]:
            continue
        if "prediction" in losses:
            rows = cache_logits(teacher_model, rows, tokenizer)
        taught_by = teacher_model if set(losses) != {"task"} else None
        options = {"train_dataset": rows, "teacher_model": taught_by, **common}
        model, states[name] = _train(output_dir / folder, model, steps[name], **facts, **options)
    last = AutoModelForSequenceClassification.from_pretrained(output_dir / "student_last")
    results |= {
        "student": scores(model),
        "student_last": scores(last),
        "parameters": {"teacher": teacher_model.num_parameters(), "student": model.num_parameters()},
        "rows": len(train_dataset),
        "seconds": {name: state.log_history[-1]["train_runtime"] for name, state in states.items()},
    }
    if PartialState().is_main_process:
        finished.write_text(json.dumps(results, indent=1))
    return results


def general_distillation(
    data: datasets.Dataset | datasets.IterableDataset,
    teacher: str | Path,
    output_dir: str | Path,
    student: Mapping[str, int] | str | Path = TINYBERT4,
    init: str = "teacher",
    sample: int = 500,
    text: str = "text",
    max_length: int = 128,
    packed: bool = True,
    **arguments,
) -> PreTrainedModel:
    """TinyBERT's first stage: intermediate layers of a pre-trained teacher on plain text, without masking or heads.

    `data` has a column `text`; a stream needs `max_steps`, and as many shards as there are processes for each to read
    its own. `packed` joins the texts, separated, and cuts them into sequences of `max_length` tokens; otherwise a text
    is a sequence, cut there. `sample`: sequences that `init="teacher"` reads. `arguments` are `DistillationArguments`.
    The headless student is saved in `output_dir`; the same call goes on where it was stopped.
    """
    output_dir = Path(output_dir)
    order = {"train_sampling_strategy": "random"} if packed else {}  # equally long already
    arguments = {**COMMON, **order, "save_strategy": "steps", "loss_type": INTERMEDIATE_LOSSES, **arguments}
    settings = {"teacher": str(teacher), "init": init, "sample": sample, "text": text, "max_length": max_length}
    settings |= {"student": dict(student) if isinstance(student, Mapping) else str(student), "packed": packed}
    _claim(output_dir, settings | {"arguments": arguments})
    tokenizer, teacher_model = load_tokenizer(teacher), from_pretrained(AutoModel, teacher)
    with PartialState().main_process_first():
        rows = tokenize_text(data, tokenizer, text, max_length, packed)
    if isinstance(data, datasets.IterableDataset):
        # each process reads shards of its own, for as long as the others do
        rows, arguments = rows.repeat(None), {**arguments, "accelerator_config": {"dispatch_batches": False}}
    set_seed(arguments.get("seed", 42))
    if isinstance(student, Mapping):
        first, init = list(rows.take(sample)), _start(init, output_dir)
        model = create_student(teacher_model, **student, init=init, sample=first, processing_class=tokenizer)
    else:
        model = from_pretrained(AutoModel, student)
    options = {"train_dataset": rows, "processing_class": tokenizer, "teacher_model": teacher_model}
    return _train(output_dir, model, arguments, data_collator=DataCollatorWithPadding(tokenizer), **options)[0]


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


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if `folder` holds a run with other settings: it would go on from another student."""
    path, text = folder / "settings.json", json.dumps(settings, indent=1, default=str)
    if path.exists() and (before := json.loads(path.read_text())) != (now := json.loads(text)):
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        raise ValueError(f"{folder} holds a run with other {differing}: choose another output_dir or remove it.")
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _train(
    folder: Path,
    model: PreTrainedModel,
    arguments: Mapping[str, Any],
    data_name: str | None = None,
    augmentation: Mapping[str, Any] | None = None,
    **options,
) -> tuple[PreTrainedModel, TrainerState]:
    """Train and save `model`, unless that is done; go on from the newest checkpoint that is whole."""
    state = folder / "trainer_state.json"
    if not state.exists():
        args = DistillationArguments(str(folder), **arguments)
        if args.load_best_model_at_end and args.save_total_limit == 1:
            args.save_total_limit = 2  # or Trainer removes the last checkpoint in the end, where another is the best
        trainer = DistillationTrainer(model, args, **options)
        trainer.data_name, trainer.augmentation = data_name, augmentation
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
        trainer.save_model()
        if not args.push_to_hub:  # save_model has
            trainer.create_model_card()
        if args.should_save:
            checkpoint = get_last_checkpoint(folder)
            if args.load_best_model_at_end:
                type(model).from_pretrained(checkpoint).save_pretrained(f"{folder}_last")
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        trainer.save_state()  # after all else: it says that this is done
        PartialState().wait_for_everyone()
    return type(model).from_pretrained(folder), TrainerState.load_from_json(str(state))


def _start(init: str, *folders: Path) -> str:
    """`init`, or "random" where one of the runs has begun: it has the weights, and a cut would be thrown away."""
    begun = any((folder / "trainer_state.json").exists() or _last_checkpoint(folder) for folder in folders)
    return "random" if begun else init


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint; one that was being written when its process was killed is removed."""
    while folder.is_dir() and (checkpoint := get_last_checkpoint(folder)):
        try:
            TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))  # Trainer writes it last
        except (OSError, ValueError):
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            return checkpoint
    return None
