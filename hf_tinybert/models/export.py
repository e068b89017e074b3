"""A student as others serve it: one ONNX file for any batch and length, int8, or fp16 weights.

Three lines serve the folder of `export_onnx` and `quantize_onnx`, without torch:

    session = onnxruntime.InferenceSession("student/model_int8.onnx")
    inputs = AutoTokenizer.from_pretrained("student")(["a fine film", "dull"], padding=True, return_tensors="np")
    logits = session.run(["logits"], dict(inputs))[0]
"""

import copy
import importlib.util
import inspect
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .prediction_heads import Choices, prediction_head_of

logger = logging.getLogger(__name__)

# What makes two models different ones, whatever their weights.
IDENTITY = (
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "id2label",
)


def export_onnx(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    tolerance: float = 1e-4,
) -> Path:
    """Write `model.onnx`, the config and the tokenizer to `folder`; returns the path of `model.onnx`.

    Inputs are those that the tokenizer makes and the model takes, (B, S) int64 with B and S free, or (B, choices, S)
    in multiple choice; outputs are float32 and named as the model's (`logits`, `start_logits`, `last_hidden_state`,
    ...). Weights above 2 GB lie in `model.onnx.data`. The graph runs in ONNX Runtime and is compared with torch on
    several shapes, at real tokens. The model itself is left alone; an int8 file of earlier weights is removed.

    Raises ValueError, and writes nothing, where an output differs by more than `tolerance` times its largest value,
    where weights are NaN or where `folder` holds another model; ImportError without the extra `export`.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    _check_types(model, processing_class)
    folder = Path(folder)
    twin = _twin(model)
    _check_folder(folder, twin.config, IDENTITY)
    accepted = inspect.signature(type(model).forward).parameters
    names = [name for name in processing_class.model_input_names if name in accepted]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        path = Path(written, "model.onnx")
        _trace(twin, names, path)
        _check_parity(twin, path, tolerance)
        if not (folder / "config.json").exists():  # it may lie there with weights of another dtype
            twin.config.save_pretrained(written)
        tokenizer = copy.deepcopy(processing_class)
        # A BERT tokenizer makes token types, DistilBERT takes none. Saved: keys of init_kwargs, values of attributes.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        tokenizer.save_pretrained(written)
        for file in Path(written).iterdir():
            os.replace(file, folder / file.name)
    (folder / "model_int8.onnx").unlink(missing_ok=True)
    return folder / "model.onnx"


def quantize_onnx(folder: str | os.PathLike) -> Path:
    """Write `model_int8.onnx` beside the `model.onnx` of `export_onnx`; returns its path.

    ONNX Runtime's dynamic quantisation: int8 weights with a scale for each output channel, embeddings in bytes with a
    scale for each table; activations are quantised as they come; attention itself stays float32. The largest
    difference of the outputs from float32, over their largest value, is logged. Raises FileNotFoundError without
    `model.onnx`, ImportError without the extra `export`.
    """
    _require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    folder = Path(folder)
    if not (folder / "model.onnx").exists():
        raise FileNotFoundError(f"{folder} holds no model.onnx: call export_onnx(model, tokenizer, folder) first.")
    graph = onnx.load(folder / "model.onnx")
    del graph.graph.value_info[:]  # the exporter's shapes contradict the quantiser's own, which transposes weights
    with tempfile.TemporaryDirectory(dir=folder) as written:
        path = Path(written, "model_int8.onnx")
        quantize_dynamic(graph, path, per_channel=True)
        config, exact, session = AutoConfig.from_pretrained(folder), _session(folder / "model.onnx"), _session(path)
        error = max(_error(session, inputs, _run(exact, inputs)) for inputs in _samples(config, exact))
        os.replace(path, folder / path.name)
    logger.info("int8 changes outputs by at most %.2g of their largest value, on random tokens.", error)
    return folder / "model_int8.onnx"


def load_onnx(path: str | os.PathLike) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A function from model inputs to the graph's first output (the logits), on as many threads as torch uses.

    Of question answering to its start and end logits side by side, (B, S, 2). Inputs that the graph does not take are
    ignored.
    """
    _require("onnxruntime")
    session = _session(path)
    names = [value.name for value in session.get_inputs()]
    spans = session.get_outputs()[0].name == "start_logits"

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = session.run(None, {name: np.asarray(inputs[name]) for name in names})
        return np.stack(outputs, axis=-1) if spans else outputs[0]

    return call


def save_half(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, folder: str | os.PathLike) -> Path:
    """Write the model's weights in float16, its config, which says so, and the tokenizer to `folder`; returns it.

    `from_pretrained(folder)` loads them as float16, `dtype=torch.float32` as float32. The model itself is left alone.
    Raises ValueError where a weight leaves float16's range or where `folder` holds another model or dtype.
    """
    _check_types(model, processing_class)
    folder = Path(folder)
    half = _twin(model).half()
    half.config.dtype = torch.float16
    _check_finite(half)
    _check_folder(folder, half.config, (*IDENTITY, "dtype"))
    half.save_pretrained(folder)
    processing_class.save_pretrained(folder)
    return folder


def _require(*packages: str):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"Exporting needs {', '.join(missing)}: pip install 'hf_tinybert[export]'.")


def _check_types(model, processing_class):
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"Only a transformers model can be exported, not {type(model).__name__}: unwrap it first.")
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(f"processing_class is {type(processing_class).__name__}: pass the model's tokenizer.")


def _check_finite(model: nn.Module):
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"Weight '{name}' holds NaN or infinity as {value.dtype}: nothing was written.")


def _check_folder(folder: Path, config: PretrainedConfig, names: Sequence[str]):
    if (folder / "config.json").exists():
        held = AutoConfig.from_pretrained(folder)
        for name in names:
            if (there := getattr(held, name)) != (here := getattr(config, name)):
                raise ValueError(f"{folder} holds another model ({name}={there}, not {here}): choose another folder.")


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in float32 on the CPU, in eval mode and with default attention, free of hooks and wrappers."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = None
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    with torch.random.fork_rng(devices=[]):
        twin = type(model)(config).float().eval()
    twin.load_state_dict(model.state_dict())
    _check_finite(twin)
    return twin


def _inputs(config: PretrainedConfig, names: Sequence[str], *shape: int) -> dict[str, Tensor]:
    """Random tokens (B, S) or (B, choices, S); sequence i ends in i padded positions, as far as one token stays."""
    *sequences, length = shape
    generator = torch.Generator().manual_seed(math.prod(shape))
    sizes = {"input_ids": config.vocab_size, "token_type_ids": max(config.to_dict().get("type_vocab_size", 1), 1)}
    real = torch.arange(length) < (length - torch.arange(math.prod(sequences))).clamp(min=1)[:, None]
    real = real.view(shape)
    inputs = {"attention_mask": real.long()} | {
        name: torch.randint(high, shape, generator=generator) * real for name, high in sizes.items()
    }
    return {name: inputs[name] for name in names}


def _samples(config: PretrainedConfig, session) -> list[dict[str, Tensor]]:
    """Inputs of the shapes on which graphs are compared."""
    names, choices = [value.name for value in session.get_inputs()], "choices" in session.get_inputs()[0].shape
    longest = min(256, config.to_dict().get("max_position_embeddings", 512) // 2)  # RoBERTa's positions start late
    shapes = [(1, 2), (1, longest), (5, longest // 2 + 1), (3, longest)]
    return [_inputs(config, names, *((b, b + 1, s) if choices else (b, s))) for b, s in shapes]


def _trace(twin: PreTrainedModel, names: Sequence[str], path: Path):
    axes = {"batch": 2, "choices": 3, "sequence": 8}
    if not isinstance(prediction_head_of(twin), Choices):
        del axes["choices"]
    inputs = _inputs(twin.config, names, *axes.values())
    with torch.no_grad(), warnings.catch_warnings():
        outputs = twin(**inputs)
        warnings.simplefilter("ignore")  # of tensors that share the names of their axes
        program = torch.onnx.export(
            twin,
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes={name: dict(enumerate(axes)) for name in inputs},
            output_names=list(outputs),
            verbose=False,
        )
    program.save(path)


def _session(path: str | os.PathLike):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def _check_parity(twin: PreTrainedModel, path: Path, tolerance: float):
    session = _session(path)
    for inputs in _samples(twin.config, session):
        with torch.no_grad():
            expected = [value.numpy() for value in twin(**inputs).values()]
        error = _error(session, inputs, expected)
        if not error <= tolerance:
            shape = tuple(inputs["input_ids"].shape)
            raise ValueError(
                f"ONNX and torch differ by {error:.2g} of the largest output (input_ids {shape}): more than "
                f"tolerance={tolerance:g}, nothing was written."
            )


def _error(session, inputs: Mapping[str, Tensor], expected: Sequence[np.ndarray]) -> float:
    """Largest difference from `expected` over its largest value, of the worst output."""
    errors = []
    for output, value, want in zip(session.get_outputs(), _run(session, inputs), expected, strict=True):
        if output.shape[1:2] == ["sequence"]:
            # Nobody reads what a model gives at padded positions, and attention kernels differ there.
            real = inputs["attention_mask"].numpy().astype(bool)
            value, want = value[real], want[real]
        errors.append(np.abs(value - want).max() / np.abs(want).max())
    return float(np.max(errors))  # NaN stays NaN
