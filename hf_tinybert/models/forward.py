"""Calling a model's forward: the inputs that it takes, and moments in which the model is otherwise than it was."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


def forward_columns(model: PreTrainedModel) -> list[str]:
    """The inputs that `model.forward` names, without labels."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and "label" not in p.name]


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """At the end every module is in training or eval mode as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, without the autocast that Accelerate leaves around `forward` after training or evaluation in bf16.

    At the end every module has the mode that it had before.
    """
    wrapped = model.__dict__.get("forward")
    with same_modes(model):
        if "_original_forward" in model.__dict__:
            model.forward = model._original_forward
        model.eval()
        try:
            yield
        finally:
            if wrapped is not None:
                model.forward = wrapped


@contextmanager
def replaced_modules(stand_ins: Sequence[tuple[nn.Module, str, nn.Module]]) -> Iterator[None]:
    """Other modules stand in for parts of a model until the end.

    Args:
        stand_ins: For each part its parent, its name in the parent, and the module that stands in for it.
    """
    originals = [(parent, name, getattr(parent, name)) for parent, name, _ in stand_ins]
    for parent, name, module in stand_ins:
        setattr(parent, name, module)
    try:
        yield
    finally:
        for parent, name, module in originals:
            setattr(parent, name, module)
