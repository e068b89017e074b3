"""The hooks by which transformers records the outputs of layers: on a model while it is read, and off it afterwards.

transformers installs them when hidden states or attentions are first asked for, and leaves them there. They are
closures, so that a model that has them can be neither pickled nor written by `torch.save`.
"""

import contextlib
from collections.abc import Callable, Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

# Neither transformers nor torch has a public way to remove hooks without their handles, which transformers drops.
INSTALLED = "_output_capturing_hooks_installed"


class RecordingHooks:
    """The hooks that transformers installs on `model` while they are `in_place`.

    Hooks that the model has for another reason are left alone.

    Args:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._without = [
            part for part in model.modules() if isinstance(part, PreTrainedModel) and not _has_hooks(part)
        ]
        self._others = {(module, key) for module, key, _ in _recording_hooks(model)}
        self._marked: list[PreTrainedModel] = []
        self._hooks: list[tuple[nn.Module, int, Callable]] = []

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the hooks, which transformers installs the first time; at the end it has none of them."""
        if any(map(_has_hooks, self._without)):  # somebody else has asked for hidden states in the meantime
            yield
            return
        for module, key, hook in self._hooks:
            module._forward_hooks[key] = hook
        for part in self._marked:
            setattr(part, INSTALLED, True)
        try:
            yield
        finally:
            self._take_out()

    def _take_out(self) -> None:
        marked = [part for part in self._without if _has_hooks(part)]
        if marked != self._marked:
            self._marked = marked
            self._hooks = [entry for entry in _recording_hooks(self._model) if entry[:2] not in self._others]
        for module, key, _ in self._hooks:
            module._forward_hooks.pop(key, None)
        for part in marked:
            delattr(part, INSTALLED)


def _has_hooks(model: PreTrainedModel) -> bool:
    return getattr(model, INSTALLED, False)


def _recording_hooks(model: nn.Module) -> list[tuple[nn.Module, int, Callable]]:
    return [
        (module, key, hook)
        for module in model.modules()
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) == output_capturing.__name__
    ]
