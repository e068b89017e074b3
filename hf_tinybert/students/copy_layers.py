"""A student with fewer layers than its teacher and the same widths: the weights are copied."""

import logging

from transformers import PreTrainedModel

from ..models.architectures import architecture_of

logger = logging.getLogger(__name__)


def copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, layers: list[int]) -> None:
    """Copy some of the teacher's layers, and everything outside the layers by its name.

    Parameters that only one of the models has are logged as a warning.

    Args:
        student: The student, which is changed.
        teacher: A teacher of the same class and widths.
        layers: The teacher layer of each student layer, counted from 1.

    Raises:
        ValueError: If the teacher has no list of layers.
    """
    state = teacher.state_dict()
    prefix = _layer_list_name(teacher)
    if prefix is not None:
        copied = {name: tensor for name, tensor in state.items() if not name.startswith(f"{prefix}.")}
        for index, layer in enumerate(layers):
            teacher_prefix = f"{prefix}.{layer - 1}."
            for name, tensor in state.items():
                if name.startswith(teacher_prefix):
                    copied[f"{prefix}.{index}.{name.removeprefix(teacher_prefix)}"] = tensor
        state = copied
    missing, unexpected = student.load_state_dict(state, strict=False)
    if missing:
        logger.warning("No teacher weight fits, left at their initialisation: %s", ", ".join(missing))
    if unexpected:
        # ModernBERT's first layer has no attention norm, for one.
        logger.warning("The student has no place for these teacher weights: %s", ", ".join(unexpected))


def _layer_list_name(model: PreTrainedModel) -> str | None:
    """The name of the list of layers; None if the layers share their weights."""
    architecture = architecture_of(model.config)
    if architecture.shares_layers(model.config):
        logger.info("The layers share their weights: the student takes them all, whatever the layer mapping.")
        return None
    place = architecture.layer_list(model)
    if place is None:
        count = model.config.num_hidden_layers
        raise ValueError(f"{type(model).__name__} has no list of {count} layers: use init='random'.")
    parent, attribute = place
    layers = getattr(parent, attribute)
    return next(name for name, module in model.named_modules() if module is layers)
