"""What trains with the student and never reaches a saved one: projections of its states, and parameters of losses.

They are submodules of the student while the optimizer and DDP are made and in each training step, up to the clipping
of gradients, so that mixed precision, DDP and clipping reach them without code of this package. A hook on the
student's forward returns what they compute among its outputs; so DDP finds them used. The rest of the time, in which
the student is evaluated and saved and callbacks have it, it is the plain student.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..losses import DistillationLoss
from .projections import Projections

PROJECTIONS, LOSSES = "distillation_projections", "distillation_losses"
NAMES = (PROJECTIONS, LOSSES)
PROJECTIONS_FILE = f"{PROJECTIONS}.safetensors"


@dataclass
class Companions:
    """The modules that accompany a student; both may be absent.

    Args:
        projections: Learned maps of the student's hidden states to the teachers' widths.
        losses: The losses that have parameters, by name.
    """

    projections: Projections | None
    losses: nn.ModuleDict
    _hook: RemovableHandle | None = None

    @classmethod
    def of_losses(cls, losses: Sequence[DistillationLoss], projections: Projections | None) -> "Companions":
        """The companions of a student that trains on `losses`."""
        return cls(projections, nn.ModuleDict({loss.name: loss for loss in losses if list(loss.parameters())}))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Name in the student → module."""
        modules = {} if self.projections is None else {PROJECTIONS: self.projections}
        return modules | ({LOSSES: self.losses} if len(self.losses) else {})

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the companions."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def join(self, student: PreTrainedModel) -> None:
        """Live in `student`, and let its forward return what they compute while it is in train mode."""
        if self._hook is None:
            for name, module in self.modules.items():
                student.add_module(name, module.to(student.device))
            self._hook = student.register_forward_hook(self._append)

    def leave(self, student: PreTrainedModel) -> None:
        """Leave the plain student behind."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for name in self.modules:
            if hasattr(student, name):
                delattr(student, name)

    def join_optimizer(self, optimizer: Optimizer) -> None:
        """Let an optimizer that was made without them train the companions too."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in self.parameters() if id(parameter) not in held]
        # into a group of the user's, so that the user's scheduler knows its learning rate
        optimizer.param_groups[0]["params"].extend(missing)

    def _append(self, student: PreTrainedModel, args: tuple, outputs: Any) -> Any:
        """Append the losses' parameters and the projected states to `hidden_states`, which DDP hands through."""
        if student.training and self.modules:
            states = outputs.get("hidden_states") or ()
            projected = self.projections(states) if self.projections is not None else ()
            # a view, as DDP does not count parameters themselves among the outputs
            parameters = (parameter.view_as(parameter) for parameter in self.losses.parameters())
            outputs["hidden_states"] = (*states, *parameters, *projected)
        return outputs

    def call(self, outputs: Any, loss: DistillationLoss, *inputs: Any) -> Tensor:
        """The value of a loss, (B,); its parameters are those that the student's forward returned."""
        if loss.name not in self.losses:
            return loss(*inputs)
        names = [name for name, _ in self.losses.named_parameters()]
        end = len(outputs["hidden_states"]) - (self.projections.count if self.projections is not None else 0)
        returned = dict(zip(names, outputs["hidden_states"][end - len(names) : end], strict=True))
        prefix = f"{loss.name}."
        parameters = {name.removeprefix(prefix): p for name, p in returned.items() if name.startswith(prefix)}
        return functional_call(loss, parameters, inputs)

    def save(self, folder: str | Path) -> None:
        """Write a file for each companion into a checkpoint folder, such as `distillation_projections.safetensors`."""
        for name, module in self.modules.items():
            save_file(module.state_dict(), Path(folder, f"{name}.safetensors"))

    def load(self, folder: str | Path) -> None:
        """Read the files of `save`, so that resuming is exact.

        Raises:
            ValueError: If a file is missing or does not fit.
        """
        for name, module in self.modules.items():
            path = Path(folder, f"{name}.safetensors")
            if not path.is_file():
                raise ValueError(
                    f"{folder} has no {path.name}: it was saved with save_only_model=True or by a trainer with other "
                    "losses. Resume with the losses of that run, or start a new one from its model."
                )
            try:
                module.load_state_dict(load_file(path))
            except (SafetensorError, RuntimeError) as error:
                raise ValueError(f"{path} is corrupt or belongs to other losses or models: {error}") from error


@contextlib.contextmanager
def detached(student: nn.Module) -> Iterator[None]:
    """The plain student, for a moment in which FSDP or DeepSpeed save it; its companions return at the end."""
    companions = {name: getattr(student, name) for name in NAMES if hasattr(student, name)}
    for name in companions:
        delattr(student, name)
    try:
        yield
    finally:
        for name, module in companions.items():
            student.add_module(name, module)


def is_companion(parameter_name: str) -> bool:
    """Whether a parameter of the student, by its name, belongs to a companion."""
    return any(f"{name}." in parameter_name for name in NAMES)
