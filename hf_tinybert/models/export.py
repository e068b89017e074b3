"""A student as others serve it: one ONNX file for any batch and length, int8, or fp16 weights.

Every format passes one quality gate before anything is written (`agreement.check_agreement`).

Three lines serve the folder of `export_onnx` and `quantize_onnx`, without torch:

    session = onnxruntime.InferenceSession("student/model_int8.onnx")
    inputs = AutoTokenizer.from_pretrained("student")(["a fine film", "dull"], padding=True, return_tensors="np")
    logits = session.run(["logits"], dict(inputs))[0]
"""

import copy
import importlib.util
import inspect
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .agreement import Forward, check_agreement
from .comparison_rows import ROWS, ComparisonRows, comparison_rows
from .onnx_graphs import check_parity, graph_forward, open_session, read_metadata, trace
from .prediction_heads import PredictionHead, prediction_head_of
from .row_checks import InputLimits

logger = logging.getLogger(__name__)

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


def export_onnx(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    tolerance: float = 1e-4,
    calibration_dataset: Dataset | None = None,
    min_agreement: float | None = None,
) -> Path:
    """Write a model as an ONNX graph, with its configuration and tokenizer.

    The inputs are those that the tokenizer makes and the model takes, int64 of shape (B, S) with B and S free, or
    (B, choices, S) in multiple choice. The outputs are float32 and have the names of the model's (`logits`,
    `start_logits`, `last_hidden_state`, ...). Weights above 2 GB are stored in `model.onnx.data`. The graph runs in
    ONNX Runtime and is compared with torch: its values on random tokens of several shapes, then its answers on
    `calibration_dataset`. An int8 file of previous weights is removed.

    Args:
        model: The model. It does not change.
        processing_class: Its tokenizer.
        folder: The folder to write to. It may hold the same model, for example with other weights.
        tolerance: The largest difference allowed between ONNX and torch, as a share of the largest output, default
            1e-4.
        calibration_dataset: Tokenised rows without labels, of which 256 are compared, evenly spread. By default they
            are random tokens.
        min_agreement: The lowest agreement with torch that is allowed, from 0 to 1. By default 98 % of the answers
            have to be the same, or scores and embeddings to correlate by 0.99. 0 switches the comparison of answers
            off.

    Returns:
        The path of `model.onnx`.

    Raises:
        ValueError: If an output differs by more than `tolerance`, if the agreement is lower than `min_agreement`, if
            weights are NaN or infinite, or if `folder` holds another model. Nothing is written then.
        TypeError: If `model` or `processing_class` is something else.
        ImportError: Without the extra `export`.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    _check_types(model, processing_class)
    folder = Path(folder)
    twin = _twin(model)
    _check_folder(folder, twin.config, IDENTITY)
    names = _input_names(twin, processing_class)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        path = Path(written, "model.onnx")
        trace(twin, names, path)
        check_parity(twin, path, tolerance)
        if min_agreement != 0:
            head, limits = _head_and_limits(twin)
            rows = comparison_rows(calibration_dataset, processing_class, limits, head, names)
            graph = graph_forward(open_session(path))
            check_agreement(_torch_forward(twin), graph, head, rows, path.name, min_agreement)
        if not (folder / "config.json").exists():  # it may lie there with weights of another dtype
            twin.config.save_pretrained(written)
        tokenizer = copy.deepcopy(processing_class)
        # A BERT tokenizer makes token types, DistilBERT takes none. Saved: keys of init_kwargs, values of attributes.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        tokenizer.save_pretrained(written)
        (folder / "model_int8.onnx").unlink(missing_ok=True)
        _move(Path(written), folder, last=path.name)
    return folder / "model.onnx"


def quantize_onnx(
    folder: str | os.PathLike, calibration_dataset: Dataset | None = None, min_agreement: float | None = None
) -> Path:
    """Quantise the graph that `export_onnx` wrote to int8.

    This is ONNX Runtime's dynamic quantisation: unsigned 8-bit weights with a scale for each output channel, an
    8-bit embedding table with one scale, and activations that are quantised at run time. Attention itself stays
    float32. Activations with outliers, of which some models have many, lose most in int8, so that its answers are
    compared with those of `model.onnx`.

    Args:
        folder: The folder with `model.onnx`.
        calibration_dataset: Tokenised rows of the task without labels, of which 256 are compared, evenly spread.
            Without them, or with fewer rows, a warning says so; without them the rows are random tokens, which say
            little about real ones.
        min_agreement: The lowest agreement that is allowed, as in `export_onnx`.

    Returns:
        The path of `model_int8.onnx` in the same folder.

    Raises:
        FileNotFoundError: Without `model.onnx`.
        ValueError: If the agreement is lower than `min_agreement`. Nothing is written then.
        ImportError: Without the extra `export`.
    """
    _require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = Path(folder)
    if not (folder / "model.onnx").exists():
        raise FileNotFoundError(f"{folder} holds no model.onnx: call export_onnx(model, tokenizer, folder) first.")
    graph = onnx.load(folder / "model.onnx")
    del graph.graph.value_info[:]  # the exporter's shapes contradict the quantiser's own, which transposes weights
    with tempfile.TemporaryDirectory(dir=folder) as written:
        path = Path(written, "model_int8.onnx")
        # Sums of signed weights saturate on CPUs with AVX2 but without VNNI (onnxruntime #6545): unsigned ones do not.
        quantize_dynamic(graph, path, per_channel=True, weight_type=QuantType.QUInt8)
        if min_agreement != 0:
            exact, int8 = open_session(folder / "model.onnx"), open_session(path)
            head, limits = read_metadata(exact)
            names, tokenizer = [value.name for value in exact.get_inputs()], AutoTokenizer.from_pretrained(folder)
            rows = comparison_rows(calibration_dataset, tokenizer, limits, head, names)
            _warn_about(rows, path.name)
            value = check_agreement(*map(graph_forward, (exact, int8)), head, rows, path.name, min_agreement)
            logger.info("%s agrees with float32 by %.4f on %s.", path.name, value, rows)
        os.replace(path, folder / path.name)
    return folder / "model_int8.onnx"


def load_onnx(path: str | os.PathLike) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load a graph as a function from model inputs to logits, on as many threads as torch uses.

    Args:
        path: An ONNX file, for example that of `export_onnx` or `quantize_onnx`.

    Returns:
        A function that takes a mapping of arrays, of which it ignores those that the graph does not take. It returns
        the graph's first output, and for question answering the start and end logits together, (B, S, 2).

    Raises:
        ImportError: Without the extra `export`.
    """
    _require("onnxruntime")
    session = open_session(path)
    names = [value.name for value in session.get_inputs()]
    spans = session.get_outputs()[0].name == "start_logits"

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = session.run(None, {name: np.asarray(inputs[name]) for name in names})
        return np.stack(outputs, axis=-1) if spans else outputs[0]

    return call


def save_half(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    calibration_dataset: Dataset | None = None,
    min_agreement: float | None = None,
) -> Path:
    """Save a model in float16, with its configuration and tokenizer.

    `from_pretrained(folder)` loads it in float16, and in float32 with `dtype=torch.float32`.

    Args:
        model: The model. It does not change.
        processing_class: Its tokenizer.
        folder: The folder to write to.
        calibration_dataset: Tokenised rows of the task without labels, as in `quantize_onnx`. The model runs on them
            in float16, on its device.
        min_agreement: The lowest agreement with float32 that is allowed, as in `export_onnx`.

    Returns:
        `folder`.

    Raises:
        ValueError: If a weight is outside the range of float16, if the agreement is lower than `min_agreement`, or if
            `folder` holds another model or dtype. Nothing is written then.
        TypeError: If `model` or `processing_class` is something else.
    """
    _check_types(model, processing_class)
    folder = Path(folder)
    half = _twin(model).half()
    half.config.dtype = torch.float16
    _check_finite(half)
    _check_folder(folder, half.config, (*IDENTITY, "dtype"))
    if min_agreement != 0:
        (head, limits), names = _head_and_limits(half), _input_names(half, processing_class)
        rows = comparison_rows(calibration_dataset, processing_class, limits, head, names)
        _warn_about(rows, "float16")
        reference, candidate = (
            _torch_forward(each) for each in (_twin(model).to(model.device), half.to(model.device))
        )
        check_agreement(reference, candidate, head, rows, "float16", min_agreement)
        half.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        half.save_pretrained(written)
        processing_class.save_pretrained(written)
        _move(Path(written), folder, last="model.safetensors")
    return folder


def _require(*packages: str):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"Exporting needs {', '.join(missing)}: pip install 'hf_tinybert[export]'.")


def _input_names(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[str]:
    """The inputs that the tokenizer makes and the model takes."""
    accepted = inspect.signature(type(model).forward).parameters
    return [name for name in processing_class.model_input_names if name in accepted]


def _head_and_limits(model: PreTrainedModel) -> tuple[PredictionHead, InputLimits]:
    head = prediction_head_of(model)
    return head, InputLimits.of_models([model], choices="choices" in head.input_axes)


def _torch_forward(model: PreTrainedModel) -> Forward:
    @torch.no_grad()
    def forward(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = model(**{name: values.to(model.device) for name, values in inputs.items()})
        return {name: values.float().cpu() for name, values in outputs.items()}

    return forward


def _warn_about(rows: ComparisonRows, name: str) -> None:
    if not rows.real or rows.count < ROWS:
        logger.warning(
            f"{name} is compared with the model on {rows}: pass {ROWS} rows of the task or more as "
            "calibration_dataset, to know what it changes on real data."
        )


def _move(source: Path, folder: Path, last: str) -> None:
    """Move files into a folder. The file that makes the folder complete is missing until all others are there."""
    (folder / last).unlink(missing_ok=True)
    for file in sorted(source.iterdir(), key=lambda file: file.name == last):
        os.replace(file, folder / file.name)


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
        stored = AutoConfig.from_pretrained(folder)
        for name in names:
            if (other := getattr(stored, name)) != (value := getattr(config, name)):
                raise ValueError(f"{folder} holds another model ({name}={other}, not {value}): choose another folder.")


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float32 on the CPU, in eval mode and with default attention, without hooks and wrappers."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = None
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    with torch.random.fork_rng(devices=[]):
        twin = type(model)(config).float().eval()
    twin.load_state_dict(model.state_dict())
    _check_finite(twin)
    return twin
