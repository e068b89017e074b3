"""Small students of a teacher's own architecture: shrink the config, start the weights from the teacher."""

import copy
import inspect
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .factorised_embeddings import as_albert
from .layer_mapping import map_layers
from .lineage import origin
from .model_reduction import reduce_model
from .teachers import check_weights

logger = logging.getLogger(__name__)

TINYBERT4 = {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200, "num_attention_heads": 12}
TINYBERT6 = {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}

INITS = ("teacher", "layers", "random")
REDUCIBLE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "albert")
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
    sample=None,
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
    made_from = origin(teacher.config, "teacher")
    if teacher.config.model_type == "bert" and embedding_size is not None:
        if embedding_size == (hidden_size or teacher.config.hidden_size):
            sizes["embedding_size"] = None
        else:
            teacher = as_albert(teacher)
    config, layers, changed = _student_config(teacher.config, sizes, layer_mapping)
    if dropout is not None:
        _set_dropout(config, dropout)
    start = {"init": init, "layers": None if init == "random" else layers, "sample": None}
    config.distillation = {**made_from, **start, "stages": []}
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
        if narrower and sample is None:
            raise ValueError(
                f"init='teacher' with another {narrower} cuts the teacher down on data: pass sample=, a few hundred "
                "tokenised rows of the task (labels are not used), or use init='random'."
            )
    check_weights(teacher)
    # What nothing of the teacher fits is drawn from a fixed seed: the global random state plays no part.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluation_mode(teacher):
        torch.manual_seed(0)
        student = type(teacher)(config).float().to(teacher.device).eval()
        if not narrower:
            _copy_layers(student, teacher, layers)
        if init == "teacher" and sample is not None:
            inputs = list(_padded_batches(sample, processing_class, teacher, batch_size))
            reduce_model(student, teacher, layers, inputs)
            student.config.distillation["sample"] = sum(len(batch["input_ids"]) for batch in inputs)
    return student.train()


def _student_config(
    teacher_config: PretrainedConfig, sizes: dict, layer_mapping
) -> tuple[PretrainedConfig, list[int], list[str]]:
    """The shrunk config, the teacher layer of each student layer (from 1) and the names of the sizes that change."""
    config = copy.deepcopy(teacher_config)
    # DistilBERT's attribute_map covers the other three names.
    attributes = {name: name for name in sizes} | (
        {"intermediate_size": "hidden_dim"} if config.model_type == "distilbert" else {}
    )
    changed = []
    for name, size in sizes.items():
        if size is None:
            continue
        try:
            teacher_size = getattr(teacher_config, attributes[name])
        except AttributeError:
            raise ValueError(f"{type(config).__name__} has no {attributes[name]}: leave {name} at None.") from None
        if not 1 <= size <= teacher_size:
            raise ValueError(f"{name}={size} must lie between 1 and the teacher's {teacher_size}.")
        if size != teacher_size:
            setattr(config, attributes[name], size)
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
    if narrow is None and values.get("embedding_size") == teacher_config.hidden_size:
        config.embedding_size = config.hidden_size
    if values.get("num_hidden_groups") == teacher_config.num_hidden_layers:  # ALBERT whose layers share nothing
        config.num_hidden_groups = config.num_hidden_layers
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
    values = config.to_dict()
    shared = values.get("num_hidden_groups", config.num_hidden_layers) != config.num_hidden_layers
    if config.model_type not in REDUCIBLE or values.get("is_decoder") or shared:
        raise ValueError(
            f"init='teacher' knows the encoders {', '.join(REDUCIBLE)} (with a group for each layer), not this "
            f"{config.model_type}: use init='layers' (same width, fewer layers) or init='random'."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(layers)):
        raise ValueError(f"init='teacher' needs teacher layers that increase, layer_mapping gives {layers}.")


@contextmanager
def evaluation_mode(model: nn.Module):
    """Eval mode, without the autocast that Accelerate leaves around `forward` after bf16 training or evaluation."""
    modes = [(module, module.training) for module in model.modules()]
    wrapped = model.__dict__.get("forward")
    if "_original_forward" in model.__dict__:
        model.forward = model._original_forward
    model.eval()
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
        for module, mode in modes:
            module.training = mode


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
    """The name of the list of Transformer layers; None where all layers share their weights."""
    count = model.config.num_hidden_layers
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    if model.config.model_type == "albert" and model.config.num_hidden_groups < count:
        logger.info("ALBERT's layers share their weights: the student takes them all, whatever the layer mapping.")
        return None
    if not lists:
        raise ValueError(f"Found no list of {count} layers in {type(model).__name__}: use init='random'.")
    return max(lists, key=lists.get)


def _padded_batches(sample, processing_class, model: PreTrainedModel, batch_size: int) -> Iterator[dict]:
    """Model inputs of similar length, with `check`: True for the rows that only choose ridge penalties."""
    accepted = inspect.signature(model.base_model.forward).parameters
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]
    rows = [{name: list(row[name]) for name in names if name in row} for row in sample]
    if rows and np.ndim(rows[0].get("input_ids", [])[:1]) == 2:  # multiple choice: every choice is a row
        rows = [dict(zip(row, choice, strict=True)) for row in rows for choice in zip(*row.values(), strict=True)]
    if not rows or not all(row.get("input_ids") for row in rows):
        raise ValueError("sample holds no tokens: pass tokenised rows, each with a non-empty input_ids.")
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
