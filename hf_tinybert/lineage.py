"""Where a student comes from: a plain dict in its config, `config.distillation`, which saving and loading keep.

- Of `create_student`: `teacher`, `teacher_revision`, `init`, `layers` (the teacher's, for each of the student's),
  `sample` (rows); of a student that comes from elsewhere: `start`, `start_revision`.
- `stages`: what each training taught it (`describe_stage`), several teachers as a list `teachers`.

A model is named by its Hub id and commit, or "./folder" without the path to it; None where it was made in memory.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from huggingface_hub import ResolvedRevision, constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PretrainedConfig
from transformers.trainer_utils import has_length
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import resolve_revision

from .losses import DistillationLoss, PredictionLoss


def lineage_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """`config.distillation`; None where there is none."""
    return vars(config).get("distillation")


def origin(config: PretrainedConfig, what: str) -> dict[str, Any]:
    """{what: name, what_revision: commit} of the model that `config` belongs to, and what it was fine-tuned from.

    The commit is `config._commit_hash` (`stamp`), which transformers 5 leaves out, or else the only one in the cache.
    """
    name, commit = config._name_or_path or None, None
    if name and is_hub_id(name):
        snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
        cached = [folder.name for folder in snapshots.glob("*")]
        commit = vars(config).get("_commit_hash") or (cached[0] if len(cached) == 1 else None)
    elif name:
        name = f"./{Path(name).name}"
    source = {key: value for key, value in (lineage_of(config) or {}).items() if key.startswith("finetuned_from")}
    return {what: name, f"{what}_revision": commit} | {f"{what}_{key}": value for key, value in source.items()}


def finetuned_from(config: PretrainedConfig) -> dict[str, Any]:
    """The `distillation` of a teacher that is about to be fine-tuned: its origin is then the student's too."""
    return origin(config, "finetuned_from") | {"stages": []}


def stamp(config: PretrainedConfig, name_or_path: str | Path, revision: str | None = None) -> None:
    """Say in `config`, not in its file, which commit a Hub id was just loaded from."""
    loaded = resolve_revision(name_or_path, revision, local_files_only=True)
    config._commit_hash = loaded.resolved if isinstance(loaded, ResolvedRevision) else None


def is_hub_id(name: str) -> bool:
    """Whether a name can be one on the Hub: its form fits, and there is no such folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.isdir(name)


def hub_ids(lineage: Mapping[str, Any]) -> list[str]:
    """The Hub ids of all teachers, each once; of a local one what it was fine-tuned from."""
    steps = [lineage, *chain.from_iterable(map(teachers_of, lineage["stages"]))]
    names = [step.get(key) for step in steps for key in ("teacher", "teacher_finetuned_from")]
    return list(dict.fromkeys(name for name in names if name and not name.startswith("./")))


def describe_data(rows, name: str | None = None) -> dict[str, Any]:
    """Name, config, split, number of rows and fingerprint, each None where the data set does not say it.

    A `datasets.Dataset` loaded from bare files has no name of its own: pass `name`.
    """
    facts = {"name": name, "config": None, "split": None, "rows": len(rows) if has_length(rows) else None}
    facts["fingerprint"] = None
    if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        if name is None and rows.info.dataset_name != rows.info.builder_name:
            facts |= {"name": rows.info.dataset_name, "config": rows.info.config_name}
        facts["split"] = rows.split and str(rows.split)
    if isinstance(rows, datasets.Dataset):
        facts["fingerprint"] = fingerprint(rows)
    return facts


def fingerprint(rows: datasets.Dataset) -> str | None:
    """16 hex digits of the SHA-256 of all tokens and labels in their order, whatever their integer type or cache.

    None without a column `input_ids`. `datasets`' own fingerprint depends on paths and times of files.
    """
    names = ("input_ids", "labels", "label", "start_positions", "end_positions")
    columns = [name for name in names if name in rows.column_names]
    if "input_ids" not in columns:
        return None
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        for column in batch.columns:
            values = column.combine_chunks()
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                digest.update(np.asarray(values.value_lengths(), "f8"))
                values = values.flatten()
            digest.update(np.asarray(values, "f8"))
    return digest.hexdigest()[:16]


def describe_teacher(
    config: PretrainedConfig | None, layers: Iterable[tuple[int, int]], weight: float = 1.0
) -> dict[str, Any]:
    """A teacher of a stage, None where there is none: `layers` are the pairs that the losses read."""
    facts = {"teacher": None, "teacher_revision": None} if config is None else origin(config, "teacher")
    return {"layer_mapping": [list(pair) for pair in sorted(set(layers))], **facts, "weight": weight}


def teachers_of(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each teacher of a stage: its name and origin, `layer_mapping` and, of several, its `weight`."""
    return stage.get("teachers", [stage])


def describe_stage(
    losses: Iterable[DistillationLoss],
    teachers: Sequence[Mapping[str, Any]],
    args,
    data: Mapping[str, Any],
    augmentation: Mapping[str, Any] | None,
    batch_size: int,
) -> dict[str, Any]:
    """One training: `teachers` are described by `describe_teacher`, `args` its `DistillationArguments`."""
    losses = list(losses)
    temperatures = [loss.temperature for loss in losses if isinstance(loss, PredictionLoss)]
    schedules = dict(zip([loss.name for loss in losses], args.loss_schedules or [], strict=False))
    one = {name: value for name, value in teachers[0].items() if name != "weight"}
    several = {"teachers": [*map(dict, teachers)], "teacher_logits": args.teacher_logits}
    return {
        "losses": {loss.name: loss.weight for loss in losses},
        **({"loss_schedules": schedules} if schedules else {}),
        **(one if len(teachers) == 1 else several),
        **({"temperature": temperatures[0]} if temperatures else {}),
        "data": dict(data),
        "augmentation": augmentation and dict(augmentation),
        **({"max_steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}),
        "learning_rate": args.learning_rate,
        "batch_size": batch_size,
        "seed": args.seed,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
    }


@contextmanager
def recorded(config: PretrainedConfig, stage: Mapping[str, Any]) -> Iterator[None]:
    """The stage is in `config.distillation` from now on; an exception takes it out again."""
    before = lineage_of(config)
    lineage = before or {**origin(config, "start"), "stages": []}
    config.distillation = {**lineage, "stages": [*lineage["stages"], dict(stage)]}
    try:
        yield
    except BaseException:
        if before is None:
            del config.distillation
        else:
            config.distillation = before
        raise


def resume(config: PretrainedConfig, checkpoint: str | Path) -> dict[str, Any]:
    """Take the lineage from where the weights come from; the stage that goes on, returned, replaces its last one.

    What balanced that stage's losses goes on with it.
    """
    path, stage = Path(checkpoint, CONFIG_NAME), config.distillation["stages"][-1]
    saved = json.loads(path.read_text()).get("distillation") if path.is_file() else None
    if saved and saved["stages"]:
        *before, last = saved["stages"]
        stage |= {name: last[name] for name in ("loss_factors",) if name in last}
        config.distillation = {**saved, "stages": [*before, stage]}
    return stage
