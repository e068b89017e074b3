"""A student's own weights in float16, for transformers."""

import os
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .agreement import QualityGate
from .comparison_rows import comparison_rows, warn_of_few_rows
from .layout import (
    IDENTITY,
    Dataset,
    check_finite,
    check_folder,
    check_types,
    head_and_limits,
    input_names,
    move,
    twin_of,
)
from .onnx_graphs import torch_forward


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
    check_types(model, processing_class)
    folder = Path(folder)
    half = twin_of(model).half()
    half.config.dtype = torch.float16
    check_finite(half)
    check_folder(folder, half.config, (*IDENTITY, "dtype"))
    if min_agreement != 0:
        (head, limits), names = head_and_limits(half), input_names(half, processing_class)
        rows = comparison_rows(calibration_dataset, processing_class, limits, head, names)
        warn_of_few_rows(rows, "float16")
        gate = QualityGate(torch_forward(twin_of(model).to(model.device)), head, rows, min_agreement)
        gate.check("float16", gate.measure(torch_forward(half.to(model.device))))
        half.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        half.save_pretrained(written)
        processing_class.save_pretrained(written)
        move(Path(written), folder, last="model.safetensors")
    return folder
