"""What is passed as a model and is something else: recognised by what its library documents, and named in one line.

Neither peft nor sentence_transformers is imported.
"""

import json
import os
from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import Pipeline, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)

logger = logging.get_logger(__name__)

WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
FOREIGN_WEIGHTS = {"*.onnx": "ONNX", "*.h5": "TensorFlow", "*.msgpack": "Flax", "*.gguf": "GGUF"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
SENTENCE_MODULES = "modules.json"  # of sentence_transformers
MERGE = "merge_and_unload()"  # of peft


def transformers_model(model: Any, role: str) -> PreTrainedModel:
    """The transformers model in what was passed as one.

    That of a pipeline, the encoder of a SentenceTransformer, and the model inside of DistributedDataParallel or
    torch.compile are taken.

    Args:
        model: What was passed.
        role: What messages call it, for example "teacher".

    Raises:
        TypeError: If it is anything else; the message says what it is and what to pass.
    """
    if isinstance(model, Pipeline):
        model = model.model
    elif _is_sentence_transformer(model):
        model = _encoder(model, role)
    elif isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    if isinstance(model, PreTrainedModel):
        return model
    raise TypeError(f"The {role} must be a transformers PreTrainedModel, not {_what(model, role)}.")


def check_no_adapters(model: PreTrainedModel, role: str) -> None:
    """Check that no adapters of peft were added to a model (`add_adapter`, `load_adapter`).

    Raises:
        ValueError: If there are.
    """
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"The {role} has PEFT adapters in its layers: load them with PeftModel.from_pretrained(model, folder) "
            f"and pass what {MERGE} of that returns."
        )


def check_folder(name_or_path: str | Path) -> None:
    """Check that a path, if there is one, is a folder with a model's configuration.

    Raises:
        ValueError: If it is a file or another kind of folder; the message says what it is and what to pass.
    """
    path = Path(name_or_path)
    if path.is_file():
        raise ValueError(f"'{path}' is a file: pass the folder of the model, '{path.parent}'.")
    if not path.is_dir() or (path / CONFIG_NAME).is_file():
        return
    checkpoint = get_last_checkpoint(str(path))
    if (path / ADAPTER_CONFIG_NAME).is_file():
        kind = adapter_advice(_base_model(path))
    elif checkpoint is not None:
        kind = f"holds checkpoints of a training and no model itself: pass the newest, '{checkpoint}'"
    elif any((path / file).is_file() for file in TOKENIZER_FILES):
        kind = "holds a tokenizer but no model: save the model there too, or pass the folder of the model"
    elif not any(path.iterdir()):
        kind = "is empty: pass the folder that the model was saved to"
    else:
        kind = f"has no {CONFIG_NAME}: pass a folder that save_pretrained of a model wrote"
    raise ValueError(f"The folder '{path}' {kind}.")


def adapter_advice(base: str | None) -> str:
    """What to do with adapters of peft that are stored without the model."""
    of_base = f" to '{base}'" if base else ""
    return (
        f"holds PEFT adapters{of_base}, not a model: load them with peft's AutoPeftModel class for the task, and "
        f"save_pretrained what {MERGE} returns to a new folder"
    )


def check_weight_files(name_or_path: str | Path) -> None:
    """Check that a folder, if it is one, holds weights that transformers can read.

    Raises:
        ValueError: If it holds none, or those of another library.
    """
    path = Path(name_or_path)
    if not path.is_dir() or any((path / file).is_file() for file in WEIGHTS) or any(path.glob("*.safetensors")):
        return
    foreign = [library for pattern, library in FOREIGN_WEIGHTS.items() if any(path.rglob(pattern))]
    if foreign:
        raise ValueError(
            f"The folder '{path}' holds a model for {foreign[0]} alone: pass the folder of the model that it was "
            f"made from, with {SAFE_WEIGHTS_NAME}."
        )
    checkpoint = get_last_checkpoint(str(path))
    advice = f"pass the newest checkpoint in it, '{checkpoint}'" if checkpoint else "save the model there again"
    raise ValueError(f"The folder '{path}' has a {CONFIG_NAME} but no weights: {advice}.")


def encoder_folder(name_or_path: str | Path) -> str | Path:
    """The folder in which a SentenceTransformer keeps its encoder; any other name stays as it is."""
    path = Path(name_or_path)
    if (path / CONFIG_NAME).is_file() or not (path / SENTENCE_MODULES).is_file():
        return name_or_path
    modules = json.loads((path / SENTENCE_MODULES).read_text(encoding="utf8"))
    folders = [path / module["path"] for module in modules if module.get("type", "").endswith(".Transformer")]
    return str(folders[0]) if folders else name_or_path


def _base_model(folder: Path) -> str | None:
    try:
        return json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf8")).get("base_model_name_or_path")
    except ValueError:
        return None


def _is_sentence_transformer(model: Any) -> bool:
    return any(base.__name__ == "SentenceTransformer" for base in type(model).__mro__)


def _encoder(model: nn.Module, role: str) -> Any:
    """The encoder of a SentenceTransformer, which its first module has as `auto_model`."""
    first, *others = model.children()
    left_out = ", ".join(type(module).__name__ for module in others)
    logger.info(f"Of the SentenceTransformer that is the {role} the encoder is taken, without {left_out}.")
    return getattr(first, "auto_model", first)


def _what(model: Any, role: str) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}: pass an instance, such as {model.__name__}.from_pretrained(folder)"
    if hasattr(model, "merge_and_unload") and hasattr(model, "peft_config"):
        return f"{type(model).__name__} with PEFT adapters: pass what its {MERGE} returns, which is a plain model"
    if isinstance(getattr(model, "model", None), PreTrainedModel):
        return f"{type(model).__name__}: pass its attribute .model"
    if isinstance(model, os.PathLike | str):
        return f"the name '{model}': load it with from_pretrained"
    return type(model).__name__
