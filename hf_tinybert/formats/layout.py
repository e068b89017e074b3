"""The folder of a student: where transformers, transformers.js, ONNX Runtime and OpenVINO look for its files.

config.json, tokenizer.json, tokenizer_config.json, model.safetensors, README.md
onnx/model.onnx                  float32
onnx/model_quantized.onnx        int8, `dtype="q8"` in transformers.js
onnx/model_fp16.onnx             float16, `dtype="fp16"` in transformers.js
"""

import copy
import importlib.util
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..models.prediction_heads import PredictionHead, prediction_head_of
from ..models.row_checks import InputLimits

WEIGHTS = "model.safetensors"
ONNX, ONNX_INT8, ONNX_FP16 = "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx"
OPENVINO, OPENVINO_INT8 = "openvino/openvino_model.xml", "openvino/openvino_model_qint8_quantized.xml"
CONVERTED = (ONNX_INT8, ONNX_FP16, OPENVINO, OPENVINO_INT8)  # made from `ONNX`

Dataset = Iterable[Mapping[str, Any]]

# Two models with the same values differ in their weights at most.
IDENTITY = (
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "id2label",
)


def files_of(path: Path) -> list[Path]:
    """A file and those beside it that hold its weights."""
    return [file for file in path.parent.glob(f"{path.stem}.*") if file.is_file()]


def size_of(path: Path) -> int:
    """The bytes of `files_of`."""
    return sum(file.stat().st_size for file in files_of(path))


def require(extra: str, *packages: str) -> None:
    """Check that packages of an extra are installed.

    Raises:
        ImportError: If one is missing.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"This format needs {', '.join(missing)}: pip install 'hf_tinybert[{extra}]'.")


def input_names(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[str]:
    """The inputs that the tokenizer makes and the model takes."""
    accepted = inspect.signature(type(model).forward).parameters
    return [name for name in processing_class.model_input_names if name in accepted]


def head_and_limits(model: PreTrainedModel) -> tuple[PredictionHead, InputLimits]:
    """The kind of a model's prediction head, and what its rows may hold."""
    head = prediction_head_of(model)
    return head, InputLimits.of_models([model], choices="choices" in head.input_axes)


def check_types(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> None:
    """Check that a model and its tokenizer are transformers' own.

    Raises:
        TypeError: If one of them is something else.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"Only a transformers model can be exported, not {type(model).__name__}: unwrap it first.")
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(f"processing_class is {type(processing_class).__name__}: pass the model's tokenizer.")


def check_finite(model: nn.Module) -> None:
    """Check the weights of a model.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"Weight '{name}' holds NaN or infinity as {value.dtype}: nothing was written.")


def check_folder(folder: Path, config: PretrainedConfig, names: Sequence[str]) -> None:
    """Check that a folder holds no other model.

    Raises:
        ValueError: If its configuration has other values of `names`.
    """
    if (folder / "config.json").exists():
        stored = AutoConfig.from_pretrained(folder)
        for name in names:
            if (other := getattr(stored, name)) != (value := getattr(config, name)):
                raise ValueError(f"{folder} holds another model ({name}={other}, not {value}): choose another folder.")


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float32 on the CPU, in eval mode and with default attention, without hooks and wrappers.

    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = None
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    with torch.random.fork_rng(devices=[]):
        twin = type(model)(config).float().eval()
    twin.load_state_dict(model.state_dict())
    check_finite(twin)
    return twin


def move(source: Path, folder: Path, last: str) -> None:
    """Move files into a folder. The file that makes the folder complete is missing until all others are there."""
    (folder / last).unlink(missing_ok=True)
    files = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file == Path(last)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, folder / file)
