"""ONNX graphs: traced from a model, run in ONNX Runtime, compared with torch."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from ..models.families import subclasses
from ..models.prediction_heads import PredictionHead, prediction_head_of
from ..models.row_checks import InputLimits
from .agreement import Forward, QualityGate
from .comparison_rows import comparison_rows
from .layout import ONNX, Dataset

if TYPE_CHECKING:
    import onnx
    import onnxruntime

HEAD, LIMITS = "hf_tinybert.prediction_head", "hf_tinybert.limits"  # in the metadata of a graph


def _inputs(config: PretrainedConfig, names: Sequence[str], *shape: int) -> dict[str, Tensor]:
    """Random tokens (B, S) or (B, choices, S). Sequence i ends in i padded positions, but has one token at least."""
    *sequences, length = shape
    generator = torch.Generator().manual_seed(math.prod(shape))
    sizes = {"input_ids": config.vocab_size, "token_type_ids": max(config.to_dict().get("type_vocab_size", 1), 1)}
    real = torch.arange(length) < (length - torch.arange(math.prod(sequences))).clamp(min=1)[:, None]
    real = real.view(shape)
    inputs = {"attention_mask": real.long()} | {
        name: torch.randint(high, shape, generator=generator) * real for name, high in sizes.items()
    }
    return {name: inputs[name] for name in names}


def comparison_inputs(config: PretrainedConfig, session: "onnxruntime.InferenceSession") -> list[dict[str, Tensor]]:
    """Inputs of the shapes on which graphs are compared."""
    names, choices = [value.name for value in session.get_inputs()], "choices" in session.get_inputs()[0].shape
    longest = min(256, config.to_dict().get("max_position_embeddings", 512) // 2)  # RoBERTa's positions start late
    shapes = [(1, 2), (1, longest), (5, longest // 2 + 1), (3, longest)]
    return [_inputs(config, names, *((b, b + 1, s) if choices else (b, s))) for b, s in shapes]


def trace(twin: PreTrainedModel, names: Sequence[str], path: Path) -> None:
    """Write the graph of a model with the inputs `names`, at any size of their axes."""
    sizes = {"batch": 2, "choices": 3, "sequence": 8}
    axes = prediction_head_of(twin).input_axes
    inputs = _inputs(twin.config, names, *(sizes[axis] for axis in axes))
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
    limits = InputLimits.of_models([twin], choices="choices" in axes)
    program.model.metadata_props.update({HEAD: prediction_head_of(twin).name, LIMITS: json.dumps(asdict(limits))})
    program.save(path)


def open_session(path: str | os.PathLike) -> "onnxruntime.InferenceSession":
    """An inference session on the CPU with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: "onnxruntime.InferenceSession", inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """The outputs of a graph, in its order."""
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def read_metadata(session: "onnxruntime.InferenceSession") -> tuple[PredictionHead, InputLimits]:
    """The kind of prediction head of the model that `trace` wrote, and what its rows may hold.

    Raises:
        ValueError: If the graph was written by something else.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    kind = next((kind for kind in subclasses(PredictionHead) if kind.name == metadata.get(HEAD)), None)
    if kind is None:
        raise ValueError("The graph does not tell its kind of prediction head: write it again with export_onnx.")
    return kind(), InputLimits(**json.loads(metadata[LIMITS]))


def load_graph(folder: Path) -> "onnx.ModelProto":
    """The float32 graph of a student's folder.

    Raises:
        FileNotFoundError: Without one.
    """
    import onnx

    if not (folder / ONNX).exists():
        raise FileNotFoundError(f"{folder} holds no {ONNX}: call export_onnx(model, tokenizer, folder) first.")
    graph = onnx.load(folder / ONNX)
    del graph.graph.value_info[:]  # the exporter's shapes contradict the quantiser's own, which transposes weights
    return graph


def gate_of_folder(folder: Path, calibration_dataset: Dataset | None, min_agreement: float | None) -> QualityGate:
    """The quality gate whose reference is the float32 graph of a student's folder."""
    session = open_session(folder / ONNX)
    head, limits = read_metadata(session)
    names, tokenizer = [value.name for value in session.get_inputs()], AutoTokenizer.from_pretrained(folder)
    rows = comparison_rows(calibration_dataset, tokenizer, limits, head, names)
    return QualityGate(graph_forward(session), head, rows, min_agreement)


def torch_forward(model: PreTrainedModel) -> Forward:
    """A model as a function from inputs to named outputs, float32 on the CPU."""

    @torch.no_grad()
    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = model(**{name: values.to(model.device) for name, values in inputs.items()})
        return {name: values.float().cpu() for name, values in outputs.items()}

    return forward


def graph_forward(session: "onnxruntime.InferenceSession") -> Forward:
    """A graph as a function from inputs to named outputs."""
    names = [value.name for value in session.get_outputs()]

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(names, map(torch.from_numpy, run_session(session, inputs)), strict=True))

    return forward


def check_parity(twin: PreTrainedModel, path: Path, tolerance: float) -> None:
    """Compare a graph with the model that it was made from.

    Raises:
        ValueError: If they differ by more than `tolerance` times the largest output.
    """
    session = open_session(path)
    for inputs in comparison_inputs(twin.config, session):
        with torch.no_grad():
            expected = [value.numpy() for value in twin(**inputs).values()]
        error = relative_error(session, inputs, expected)
        if not error <= tolerance:
            shape = tuple(inputs["input_ids"].shape)
            raise ValueError(
                f"ONNX and torch differ by {error:.2g} of the largest output (input_ids {shape}): more than "
                f"tolerance={tolerance:g}, nothing was written."
            )


def relative_error(
    session: "onnxruntime.InferenceSession", inputs: Mapping[str, Tensor], expected: Sequence[np.ndarray]
) -> float:
    """The largest difference of an output from `expected` at real tokens, as a share of its largest value.

    Outputs at padded positions are not read, and attention kernels differ there.
    """
    errors = []
    for output, value, want in zip(session.get_outputs(), run_session(session, inputs), expected, strict=True):
        if output.shape[1:2] == ["sequence"]:
            real = inputs["attention_mask"].numpy().astype(bool)
            value, want = value[real], want[real]
        errors.append(np.abs(value - want).max() / np.abs(want).max())
    return float(np.max(errors))  # NaN stays NaN
