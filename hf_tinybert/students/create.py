"""Small students of a teacher's own architecture: shrink the config, start the weights from the teacher."""

import copy
import inspect
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..layer_mapping import map_layers
from ..lineage import Lineage, ModelRecord
from ..models.architectures import architecture_of, model_types
from ..models.forward import evaluation_mode
from ..models.weights import check_weights
from .fit_model import reduce_model

logger = logging.getLogger(__name__)

TINYBERT4 = {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200, "num_attention_heads": 12}
TINYBERT6 = {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}

INITS = ("teacher", "layers", "random")
# Every fourth row of the sample only chooses ridge penalties.
CHECK_EVERY = 4


def create_student(
    teacher: PreTrainedModel,
    num_hidden_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    init: str = "teacher",
    layer_mapping: str | Sequence = "uniform",
    calibration_dataset=None,
    processing_class=None,
    batch_size: int = 32,
    embedding_size: int | None = None,
    dropout: float | None = None,
) -> PreTrainedModel:
    """A smaller model of the teacher's class, labels and vocabulary; sizes and `dropout` at None are the teacher's.

    - `init="teacher"`: layer m starts from teacher layer g(m) of `layer_mapping`, cut to the new sizes and refitted by
      least squares on `sample`, a few hundred tokenised rows without labels (a `datasets.Dataset` or a list of dicts,
      padded by `processing_class.pad` or with `pad_token_id`). Optional where only layers are dropped.
    - `init="layers"`: teacher layers g(m) copied; only the number of layers may differ from the teacher.
    - `init="random"`: the architecture's own initialisation, drawn from the global random state.
    - `embedding_size` E below `hidden_size`: token embeddings in two factors, V×E and E×D (Lan et al., 2020, section
      3.1); the student of an ELECTRA stays one, that of a BERT is an ALBERT whose layers share nothing.

    It is float32, in training mode, on the teacher's device; its config says how it was made (`lineage`). Raises
    ValueError for sizes, an init or a sample that cannot work, naming what to change.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r} is unknown: choose one of {', '.join(map(repr, INITS))}.")
    sizes = {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "embedding_size": embedding_size,
    }
    made_from = ModelRecord.from_config(teacher.config)
    if embedding_size is not None and not hasattr(teacher.config, "embedding_size"):
        if embedding_size == (hidden_size or teacher.config.hidden_size):
            sizes["embedding_size"] = None
        else:
            teacher = architecture_of(teacher.config).with_embedding_projection(teacher)
    config, layers, changed = _student_config(teacher.config, sizes, layer_mapping)
    if dropout is not None:
        _set_dropout(config, dropout)
    lineage = Lineage(teacher=made_from, init=init, layers=None if init == "random" else layers)
    lineage.write(config)
    if init == "random":
        return type(teacher)(config).float().to(teacher.device).train()

    narrower = ", ".join(name for name in changed if name != "num_hidden_layers")
    if init == "layers" and narrower:
        raise ValueError(
            f"init='layers' copies whole layers, but {narrower} differs from the teacher: leave it at None, or use "
            "init='teacher' with a sample, or init='random'."
        )
    if init == "teacher":
        check_reducible(teacher.config, layers)
        if narrower and calibration_dataset is None:
            raise ValueError(
                f"init='teacher' with another {narrower} cuts the teacher down on data: pass calibration_dataset=, a few hundred "
                "tokenised rows of the task (labels are not used), or use init='random'."
            )
    check_weights(teacher)
    # What nothing of the teacher fits is drawn from a fixed seed: the global random state plays no part.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluation_mode(teacher):
        torch.manual_seed(0)
        student = type(teacher)(config).float().to(teacher.device).eval()
        if not narrower:
            _copy_layers(student, teacher, layers)
        if init == "teacher" and calibration_dataset is not None:
            inputs = list(_padded_batches(calibration_dataset, processing_class, teacher, batch_size))
            reduce_model(student, teacher, layers, inputs)
            replace(lineage, calibration_rows=sum(len(batch["input_ids"]) for batch in inputs)).write(student.config)
    return student.train()


def _student_config(
    teacher_config: PretrainedConfig, sizes: dict, layer_mapping
) -> tuple[PretrainedConfig, list[int], list[str]]:
    """The shrunk config, the teacher layer of each student layer (from 1) and the names of the sizes that change."""
    config = copy.deepcopy(teacher_config)
    architecture, changed = architecture_of(config), []
    for name, size in sizes.items():
        if size is None:
            continue
        teacher_size = architecture.size(teacher_config, name)
        if not 1 <= size <= teacher_size:
            raise ValueError(f"{name}={size} must lie between 1 and the teacher's {teacher_size}.")
        if size != teacher_size:
            architecture.set_size(config, name, size)
            changed.append(name)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads={config.num_attention_heads}: "
            "change one of them."
        )
    pairs = map_layers(layer_mapping, config.num_hidden_layers, teacher_config.num_hidden_layers)
    if [student for student, _ in pairs] != list(range(1, config.num_hidden_layers + 1)):
        raise ValueError(
            f"layer_mapping={layer_mapping!r} must name one teacher layer for each of the {config.num_hidden_layers} "
            "student layers, in order."
        )
    layers = [layer for _, layer in pairs]
    values = config.to_dict()
    narrow = sizes["embedding_size"]
    if narrow is not None and not 3 <= narrow <= config.hidden_size:
        raise ValueError(f"embedding_size={narrow} must lie between 3 and the student's hidden_size.")
    architecture.follow_sizes(config, teacher_config)
    for name, value in values.items():
        # Attributes with one entry a layer, such as layer_types.
        if isinstance(value, list) and len(value) == teacher_config.num_hidden_layers and "layer" in name:
            setattr(config, name, [value[layer - 1] for layer in layers])
    # The teacher's name would say that these are its weights; its dtype, that they are saved in it.
    config._name_or_path, config.dtype = "", torch.float32
    return config, layers, changed


def _set_dropout(config: PretrainedConfig, probability: float):
    if not 0 <= probability < 1:
        raise ValueError(f"dropout={probability} must lie in [0, 1).")
    for name, value in config.to_dict().items():
        if "dropout" in name and value is not None:  # None follows another one
            setattr(config, name, probability)


def check_reducible(config: PretrainedConfig, layers: list[int]):
    """Raise ValueError where `init="teacher"` cannot cut `layers` (from 1) out of a model of this config."""
    architecture = architecture_of(config)
    if not architecture.fits_students or config.to_dict().get("is_decoder") or architecture.shares_layers(config):
        raise ValueError(
            f"init='teacher' knows the encoders {', '.join(model_types('fits_students'))} (with a group for each layer), "
            f"not this {config.model_type}: use init='layers' (same width, fewer layers) or init='random'."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(layers)):
        raise ValueError(f"init='teacher' needs teacher layers that increase, layer_mapping gives {layers}.")


def _copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, layers: list[int]):
    """Copy the mapped layers, and everything outside the layers, by name."""
    state = teacher.state_dict()
    prefix = _layers_prefix(teacher)
    if prefix is not None:
        taken = {f"{prefix}.{layer - 1}.": f"{prefix}.{index}." for index, layer in enumerate(layers)}
        outside = {name: value for name, value in state.items() if not name.startswith(f"{prefix}.")}
        inside = {
            new + name.removeprefix(old): value
            for old, new in taken.items()
            for name, value in state.items()
            if name.startswith(old)
        }
        state = outside | inside
    missing, unexpected = student.load_state_dict(state, strict=False)
    if missing:
        logger.warning("No teacher weight fits, left at their initialisation: %s", ", ".join(missing))
    if unexpected:
        # ModernBERT's first layer has no attention norm, for one.
        logger.warning("The student has no place for these teacher weights: %s", ", ".join(unexpected))


def _layers_prefix(model: PreTrainedModel) -> str | None:
    """The name of the list of Transformer layers; None if all layers share their weights."""
    architecture = architecture_of(model.config)
    if architecture.shares_layers(model.config):
        logger.info("The layers share their weights: the student takes them all, whatever the layer mapping.")
        return None
    found = architecture.layer_list(model)
    if found is None:
        count = model.config.num_hidden_layers
        raise ValueError(f"Found no list of {count} layers in {type(model).__name__}: use init='random'.")
    parent, attribute = found
    layers = getattr(parent, attribute)
    return next(name for name, module in model.named_modules() if module is layers)


def _padded_batches(calibration_dataset, processing_class, model: PreTrainedModel, batch_size: int) -> Iterator[dict]:
    """Model inputs of similar length, with `check`: True for the rows that only choose ridge penalties."""
    accepted = inspect.signature(model.base_model.forward).parameters
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]
    rows = [{name: list(row[name]) for name in names if name in row} for row in calibration_dataset]
    if rows and np.ndim(rows[0].get("input_ids", [])[:1]) == 2:  # multiple choice: every choice is a row
        rows = [dict(zip(row, choice, strict=True)) for row in rows for choice in zip(*row.values(), strict=True)]
    if not rows or not all(row.get("input_ids") for row in rows):
        raise ValueError("calibration_dataset holds no tokens: pass tokenised rows, each with a non-empty input_ids.")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = _pad([rows[index] for index in chosen], processing_class, model.config.pad_token_id)
        batch["check"] = torch.tensor([index % CHECK_EVERY == CHECK_EVERY - 1 for index in chosen])
        yield {name: value.to(model.device) for name, value in batch.items()}


def _pad(rows: list[dict], processing_class, pad_token_id: int | None) -> dict[str, torch.Tensor]:
    if processing_class is not None:
        return dict(processing_class.pad(rows, return_tensors="pt"))
    padding = {"input_ids": pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
    rows = [{"attention_mask": [1] * len(row["input_ids"])} | row for row in rows]
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [padding[name]] * (length - len(row[name])) for row in rows])
        for name in rows[0]
    }
