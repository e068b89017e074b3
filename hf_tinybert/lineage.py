"""Where a student comes from, as dataclasses that are stored in its configuration, `config.distillation`.

The configuration holds plain dictionaries, which saving and loading keep. A model is named by its Hub id and commit,
or by "./folder" without the path to it; its name is None if it was made in memory. A record never stops a run: a
lineage that cannot be read counts as none, and a value that JSON cannot hold is stored as text. So that older records
stay readable, a field that is added to a dataclass needs a default.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import ResolvedRevision, constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PretrainedConfig
from transformers.trainer_utils import has_length
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import resolve_revision

from .json_records import from_json, to_json
from .native_dtypes import AUTO

logger = logging.get_logger(__name__)

ATTRIBUTE = "distillation"


@dataclass(frozen=True)
class ModelRecord:
    """A model.

    Args:
        name: Its Hub id, or "./folder"; None for a model that was made in memory.
        revision: Its commit on the Hub; None if it is unknown.
        finetuned_from: The model that it was fine-tuned from.
    """

    name: str | None = None
    revision: str | None = None
    finetuned_from: "ModelRecord | None" = None

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "ModelRecord":
        """The model that `config` belongs to.

        The commit is that of `stamp`, which transformers 5 leaves out, or else the only one in the cache.
        """
        name, revision = config.name_or_path or None, None
        if name and is_hub_id(name):
            snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
            cached = [folder.name for folder in snapshots.glob("*")]
            revision = vars(config).get("_commit_hash") or (cached[0] if len(cached) == 1 else None)
        elif name:
            name = f"./{Path(name).name}"
        lineage = Lineage.from_config(config)
        return cls(name, revision, lineage and lineage.finetuned_from)

    @property
    def hub_id(self) -> str | None:
        """The nearest model on the Hub: this one, or the one that it was fine-tuned from."""
        if self.name and not self.name.startswith("./"):
            return self.name
        return self.finetuned_from and self.finetuned_from.hub_id


@dataclass(frozen=True)
class LossRecord:
    """A loss of a stage.

    Args:
        name: The name of the loss.
        weight: λ.
        settings: What its value depends on beside λ.
        citation: Where the method comes from.
        schedule: The schedule of λ over the steps.
        factor: What λ was multiplied by to balance the losses; None if they were not balanced.
    """

    name: str
    weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    citation: str | None = None
    schedule: str = "constant"
    factor: float | None = None


@dataclass(frozen=True)
class TeacherRecord:
    """A teacher of a stage.

    Args:
        model: The teacher.
        weight: Its share among the teachers.
        layer_mapping: The pairs (student layer, teacher layer) that the losses read; 0 is the embedding output.
    """

    model: ModelRecord
    weight: float
    layer_mapping: list[list[int]]


@dataclass(frozen=True)
class DataRecord:
    """A data set; a field that the data set does not tell is None.

    Args:
        name: Its name, for example "nyu-mll/glue".
        config: The name of its configuration, for example "sst2".
        split: Its split, for example "train".
        rows: The number of rows.
        fingerprint: What `fingerprint` returns.
    """

    name: str | None = None
    config: str | None = None
    split: str | None = None
    rows: int | None = None
    fingerprint: str | None = None

    @classmethod
    def from_rows(cls, rows: Any, name: str | None = None) -> "DataRecord":
        """The record of a data set.

        Args:
            rows: The data set; of several, as a dictionary, nothing but `name` is recorded.
            name: Its name; a `datasets.Dataset` from bare files has none of its own.
        """
        if isinstance(rows, Mapping):
            return cls(name)
        config = split = digest = None
        if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
            if name is None and rows.info.dataset_name != rows.info.builder_name:
                name, config = rows.info.dataset_name, rows.info.config_name
            split = rows.split and str(rows.split)
        if isinstance(rows, datasets.Dataset):
            digest = fingerprint(rows)
        return cls(name, config, split, len(rows) if has_length(rows) else None, digest)


@dataclass(frozen=True)
class Stage:
    """One training of a student.

    Args:
        losses: The losses.
        teachers: The teachers; empty if there were none.
        teacher_logits: How the logits of several teachers were combined.
        data: The training data.
        augmentation: The settings that the data was augmented with; None if it was not.
        epochs: The number of epochs; None if `max_steps` decides.
        max_steps: The number of optimizer steps; None if `epochs` decides.
        learning_rate: The peak learning rate.
        batch_size: Examples an optimizer step, over all processes.
        seed: The seed.
        precision: "fp32", "fp16" or "bf16".
        teacher_dtype: The data type that the teachers were to be brought to; None if they stayed as they were loaded.
            "auto" becomes one of these in the first step.
    """

    losses: list[LossRecord]
    teachers: list[TeacherRecord]
    teacher_logits: str
    data: DataRecord
    augmentation: Mapping[str, Any] | None
    epochs: float | None
    max_steps: int | None
    learning_rate: float
    batch_size: int
    seed: int
    precision: str
    teacher_dtype: str | None = None

    def balanced(self, factors: Mapping[str, float]) -> "Stage":
        """The stage with the factors that balanced its losses; a loss that is not among them keeps its factor."""
        losses = [replace(loss, factor=factors.get(loss.name, loss.factor)) for loss in self.losses]
        return replace(self, losses=losses)

    @property
    def factors(self) -> dict[str, float]:
        """The factors that balanced the losses; empty if none did."""
        return {loss.name: loss.factor for loss in self.losses if loss.factor is not None}


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    Args:
        teacher: The teacher that `create_student` made it from.
        start: The model that its training started from, if `create_student` did not make it.
        finetuned_from: The model that a teacher was fine-tuned from.
        init: The `init` of `create_student`.
        layers: The teacher layer that each layer started from, counted from 1.
        calibration_rows: The number of calibration rows that it was fitted on.
        stages: What each training taught it.
    """

    teacher: ModelRecord | None = None
    start: ModelRecord | None = None
    finetuned_from: ModelRecord | None = None
    init: str | None = None
    layers: list[int] | None = None
    calibration_rows: int | None = None
    stages: list[Stage] = field(default_factory=list)

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> "Lineage | None":
        """The lineage that a configuration holds.

        Returns:
            None if it holds none or, with a warning, one that this version of the package cannot read.
        """
        return cls.from_values(vars(config).get(ATTRIBUTE))

    @classmethod
    def from_values(cls, values: Any) -> "Lineage | None":
        """The lineage that `config.distillation` holds, as `from_config` returns it."""
        if not values:
            return None
        try:
            return from_json(cls, values)
        except TypeError as error:
            logger.warning_once(
                f"config.{ATTRIBUTE} is not a lineage that this version of hf_tinybert can read ({error}): it counts "
                "as none, and training replaces it."
            )
            return None

    def write(self, config: PretrainedConfig) -> None:
        """Store the lineage in a configuration."""
        setattr(config, ATTRIBUTE, to_json(self))

    @property
    def hub_ids(self) -> list[str]:
        """The Hub ids of all teachers, each once; of a local one the model that it was fine-tuned from."""
        taught = chain.from_iterable(stage.teachers for stage in self.stages)
        models = [self.teacher, *(teacher.model for teacher in taught)]
        return list(dict.fromkeys(model.hub_id for model in models if model and model.hub_id))


def stamp(config: PretrainedConfig, name_or_path: str | Path, revision: str | None = None) -> None:
    """Remember in `config`, though not in its file, the commit that a Hub id was just loaded from."""
    loaded = resolve_revision(name_or_path, revision, local_files_only=True)
    config._commit_hash = loaded.resolved if isinstance(loaded, ResolvedRevision) else None


def is_hub_id(name: str) -> bool:
    """Whether a name can be one on the Hub: its form fits, and there is no such folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.isdir(name)


def fingerprint(rows: datasets.Dataset) -> str | None:
    """16 hexadecimal digits of the SHA-256 of all tokens and labels in order, whatever their integer type or cache.

    `datasets`' own fingerprint depends on paths and times of files.

    Returns:
        None without a column `input_ids`.
    """
    names = ("input_ids", "labels", "label", "start_positions", "end_positions")
    columns = [name for name in names if name in rows.column_names]
    if "input_ids" not in columns:
        return None
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        for column in batch.columns:
            values = column.combine_chunks()
            while _is_list(values.type):
                digest.update(np.asarray(pc.list_value_length(values), "f8"))
                values = values.flatten()
            if pa.types.is_primitive(values.type):
                digest.update(np.asarray(values, "f8"))
            else:  # labels may be text
                digest.update(repr(values.to_pylist()).encode())
    return digest.hexdigest()[:16]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@contextmanager
def recorded(config: PretrainedConfig, stage: Stage) -> Iterator[None]:
    """Add `stage` to the lineage in `config`; an exception inside removes it again."""
    before = vars(config).get(ATTRIBUTE)
    lineage = Lineage.from_config(config) or Lineage(start=ModelRecord.from_config(config))
    replace(lineage, stages=[*lineage.stages, stage]).write(config)
    try:
        yield
    except BaseException:
        if before is None:
            delattr(config, ATTRIBUTE)
        else:
            setattr(config, ATTRIBUTE, before)
        raise


def last_stage(config: PretrainedConfig) -> Stage:
    """The last stage in the lineage of `config`, inside `recorded`."""
    return Lineage.from_config(config).stages[-1]


def replace_last_stage(config: PretrainedConfig, stage: Stage) -> None:
    """Put `stage` in the place of the last one in the lineage of `config`, inside `recorded`."""
    lineage = Lineage.from_config(config)
    replace(lineage, stages=[*lineage.stages[:-1], stage]).write(config)


def resume(config: PretrainedConfig, checkpoint: str | Path) -> None:
    """Take the lineage from the checkpoint that training goes on from; the present stage replaces its last one.

    The factors that balanced the losses of the checkpoint's last stage stay, and what "auto" was decided to be.

    Args:
        config: The configuration of the student, inside `recorded`.
        checkpoint: The folder of the checkpoint.
    """
    if not Path(checkpoint, CONFIG_NAME).is_file():
        return
    values, _ = PretrainedConfig.get_config_dict(checkpoint)
    saved = Lineage.from_values(values.get(ATTRIBUTE))
    if saved and saved.stages:
        *before, interrupted = saved.stages
        stage = last_stage(config).balanced(interrupted.factors)
        if stage.teacher_dtype == AUTO:
            stage = replace(stage, teacher_dtype=interrupted.teacher_dtype)
        replace(saved, stages=[*before, stage]).write(config)
