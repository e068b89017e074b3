"""Data types by name, and "auto": bfloat16 where the device multiplies it natively and it changes little."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)
AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16")
LARGEST_CHANGE = 1e-3
NOT_NATIVE = "its device does not multiply bfloat16 natively"
# AVX512-BF16 and AMX-BF16 of x86, and the extension BF16 of Arm
CPU_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def say_that_it_stays(reason: str) -> None:
    """Log, once in a process, why a teacher stays as it is loaded."""
    logger.warning_once(f"The teacher stays as it is loaded: {reason}.")


def check_dtype(name: str | None, argument: str) -> None:
    """Check the name of a data type.

    Args:
        name: The name; None passes.
        argument: The argument that has it, for the message.

    Raises:
        ValueError: If it is unknown.
    """
    if name not in (None, *DTYPES):
        raise ValueError(f"{argument}={name!r}: give one of {', '.join(DTYPES)}.")


def target_dtype(name: str, model: PreTrainedModel) -> torch.dtype | None:
    """The data type that a model is to be brought to; None if it stays as it is.

    Args:
        name: The name of a data type. "auto" brings models in float32, apart from quantised ones, to bfloat16.
        model: The model.
    """
    if name == AUTO:
        quantised = getattr(model, "is_quantized", False)
        return torch.bfloat16 if model.dtype == torch.float32 and not quantised else None
    dtype = getattr(torch, name)
    return None if model.dtype == dtype else dtype


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively.

    That is a GPU of CUDA or ROCm that says so, or a CPU with such instructions. Every other device counts as one that
    does not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # the library that uses the instructions
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in CPU_CAPABILITIES)


def native_to_all(models: Iterable[PreTrainedModel]) -> bool:
    """Whether the devices of all models multiply bfloat16 natively, in every process."""
    return mean_over_processes(all(multiplies_bfloat16(model.device) for model in models)) == 1


def mean_over_processes(value: float) -> float:
    """The mean of a number over all processes, by which they decide the same."""
    return reduce(torch.tensor(float(value), device=PartialState().device), "mean").item()


def reason_against_bfloat16(changes: Mapping[str, float]) -> str | None:
    """What a change says against bfloat16, in words that a message can go on from; None if all are below 0.1 %.

    Args:
        changes: Relative changes by name; one that is not a number speaks against it.
    """
    large = [f"{name} by {100 * change:.3g} %" for name, change in changes.items() if not change < LARGEST_CHANGE]
    allowed = f"less than {100 * LARGEST_CHANGE:g} % is allowed"
    return f"bfloat16 changes {', '.join(large)}, and {allowed}" if large else None


def bfloat16_serves(models: Sequence[PreTrainedModel], changes: Callable[[], Mapping[str, float]]) -> bool:
    """Whether "auto" brings models to bfloat16; if it does not, the log says why.

    Args:
        models: The models.
        changes: Returns what bfloat16 changes, as `reason_against_bfloat16` takes it, equal in all processes. It is
            called if the devices of all models multiply bfloat16 natively.
    """
    reason = reason_against_bfloat16(changes()) if native_to_all(models) else NOT_NATIVE
    if reason is not None:
        say_that_it_stays(reason)
    return reason is None
