"""The configuration of a student: the teacher's with smaller sizes."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PretrainedConfig

from ..layer_mapping import map_layers
from ..models.architectures import architecture_of, model_types

TINYBERT4 = {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200, "num_attention_heads": 12}
"""The sizes of TinyBERT4: 4 layers × 312, 12 attention heads, intermediate size 1,200."""
TINYBERT6 = {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
"""The sizes of TinyBERT6: 6 layers × 768, 12 attention heads, intermediate size 3,072."""


@dataclass(frozen=True)
class StudentSize:
    """The sizes of a student.

    Args:
        num_hidden_layers: The number of layers. The default of this and every other size is None, the teacher's size.
        hidden_size: The width D of the hidden states.
        intermediate_size: The number of feed-forward units of a layer.
        num_attention_heads: The number of attention heads of a layer.
        embedding_size: The number of columns of the embedding tables.
    """

    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    embedding_size: int | None = None

    def write(self, config: PretrainedConfig, teacher_config: PretrainedConfig) -> list[str]:
        """Set the sizes in a copy of the teacher's configuration.

        Args:
            config: The copy, which is changed.
            teacher_config: The teacher's configuration.

        Returns:
            The names of the sizes that differ from the teacher's.

        Raises:
            ValueError: If a size is larger than the teacher's or smaller than 1, if the architecture has no such size,
                or if two sizes do not fit together.
        """
        architecture, changed = architecture_of(teacher_config), []
        for name, size in asdict(self).items():
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
                f"hidden_size={config.hidden_size} is not a multiple of "
                f"num_attention_heads={config.num_attention_heads}: change one of them."
            )
        if self.embedding_size is not None and not 3 <= self.embedding_size <= config.hidden_size:
            raise ValueError(f"embedding_size={self.embedding_size} must lie between 3 and the student's hidden_size.")
        architecture.follow_sizes(config, teacher_config)
        return changed


@dataclass(frozen=True)
class StudentPlan:
    """A student before it has weights.

    Attributes:
        config: Its configuration.
        layers: The teacher layer that each student layer is initialised from, counted from 1.
        changed_widths: The names of the sizes that differ from the teacher's, apart from the number of layers.
    """

    config: PretrainedConfig
    layers: list[int]
    changed_widths: list[str]


def plan_student(
    teacher_config: PretrainedConfig, size: StudentSize, layer_mapping: str | Sequence, dropout: float | None
) -> StudentPlan:
    """The configuration of a student, and the teacher layers that it is initialised from.

    Args:
        teacher_config: The teacher's configuration, which is not changed.
        size: The student's sizes.
        layer_mapping: See `map_layers`; it has to name one teacher layer for each student layer.
        dropout: The probability of every dropout; None keeps the teacher's.

    Raises:
        ValueError: If the sizes, the layer mapping or the dropout cannot be; the message names what to change.
    """
    config = copy.deepcopy(teacher_config)
    changed = size.write(config, teacher_config)
    layers = _teacher_layers(layer_mapping, config.num_hidden_layers, teacher_config.num_hidden_layers)
    for name, value in config.to_dict().items():
        # Attributes with one entry a layer, such as layer_types.
        if isinstance(value, list) and len(value) == teacher_config.num_hidden_layers and "layer" in name:
            setattr(config, name, [value[layer - 1] for layer in layers])
    # The teacher's name would say that these are its weights. Its dtype would say that they are saved in it.
    config.name_or_path, config.dtype = "", torch.float32
    if dropout is not None:
        _set_dropout(config, dropout)
    return StudentPlan(config, layers, [name for name in changed if name != "num_hidden_layers"])


def _teacher_layers(layer_mapping: str | Sequence, depth: int, teacher_depth: int) -> list[int]:
    pairs = map_layers(layer_mapping, depth, teacher_depth)
    if [student_layer for student_layer, _ in pairs] != list(range(1, depth + 1)):
        raise ValueError(
            f"layer_mapping={layer_mapping!r} must name one teacher layer for each of the {depth} student layers, "
            "in order."
        )
    return [teacher_layer for _, teacher_layer in pairs]


def _set_dropout(config: PretrainedConfig, probability: float) -> None:
    if not 0 <= probability < 1:
        raise ValueError(f"dropout={probability} must lie in [0, 1).")
    for name, value in config.to_dict().items():
        # A probability of None stands for that of another dropout, which is set as well.
        if "dropout" in name and value is not None:
            setattr(config, name, probability)


def check_can_initialise(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Check that `create_student(init="teacher")` can initialise a student from this teacher.

    Args:
        config: The teacher's configuration.
        layers: The teacher layer that each student layer is initialised from, counted from 1.

    Raises:
        ValueError: If the architecture is not supported, if the teacher is a decoder or its layers share their
            weights, or if the layers do not increase.
    """
    architecture = architecture_of(config)
    if not architecture.fits_students or config.to_dict().get("is_decoder") or architecture.shares_layers(config):
        raise ValueError(
            f"init='teacher' supports the encoders {', '.join(model_types('fits_students'))} (with a group for each "
            f"layer), not this {config.model_type}: use init='random', or init='layers' (same width, fewer layers) if "
            "it has a list of layers."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(layers)):
        raise ValueError(f"init='teacher' needs teacher layers that increase, but layer_mapping gives {list(layers)}.")
