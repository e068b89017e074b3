"""Configurations, models and tokenizers by Hub id or folder, also those without a `model_type`."""

from pathlib import Path

import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..lineage import stamp

BERT_KEYS = ("vocab_size", "type_vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def load_config(name_or_path: str | Path, **kwargs) -> PreTrainedConfig:
    """`AutoConfig.from_pretrained`, also for BERT configurations without `model_type`.

    The published TinyBERTs have such configurations.

    Args:
        name_or_path: A Hub id or a local folder.
        **kwargs: Those of `AutoConfig.from_pretrained`, for example `revision` or values of the configuration.

    Raises:
        OSError: If there is no such configuration, here or on the Hub.
        ValueError: If the configuration has no `model_type` and lacks one of BERT's sizes.
    """
    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
    try:
        stored, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"Cannot load '{name_or_path}', neither a folder here nor from the Hub: {reason}") from error
    if "model_type" in stored or "auto_map" in stored:
        return AutoConfig.from_pretrained(name_or_path, **kwargs)
    if missing := [key for key in BERT_KEYS if key not in stored]:
        raise ValueError(
            f"The config of '{name_or_path}' has no model_type, and is not BERT's for want of {', '.join(missing)}: "
            'add "model_type" to its config.json.'
        )
    return BertConfig.from_pretrained(name_or_path, **kwargs)


def from_pretrained(
    model_class: type | None,
    name_or_path: str | Path,
    revision: str | None = None,
    output_loading_info: bool = False,
    **changes,
) -> PreTrainedModel | tuple[PreTrainedModel, dict]:
    """`model_class.from_pretrained`, also for checkpoints without `model_type` (`load_config`).

    transformers itself reads old names of weights (`LayerNorm.gamma`) and `pytorch_model.bin`, and ignores weights
    that the class has no place for (`fit_dense`, `cls`). Remote code never runs.

    Args:
        model_class: A model or Auto class; None takes the class that the configuration names, prediction head
            included, or the encoder if it names none.
        name_or_path: A Hub id or a local folder.
        revision: A branch, tag or commit of the Hub repository.
        output_loading_info: Whether to return transformers' report of missing and unexpected weights as well.
        **changes: Values of the configuration to change, for example `num_labels`.

    Returns:
        The model, with the report if `output_loading_info`. Its configuration records where it was loaded from
        (`lineage.stamp`).

    Raises:
        OSError: If there is no such model, here or on the Hub.
        ValueError: If the configuration names a class unknown to transformers.
    """
    config = load_config(name_or_path, revision=revision, **changes)
    stamp(config, name_or_path, revision)
    class_name = (config.architectures or ["AutoModel"])[0]
    model_class = model_class or getattr(transformers, class_name, None)
    if model_class is None:
        raise ValueError(
            f"The config of '{name_or_path}' names the class '{class_name}', unknown to transformers. "
            "Load the model yourself (trust_remote_code=True if you trust it) and pass it."
        )
    return model_class.from_pretrained(
        name_or_path, config=config, revision=revision, output_loading_info=output_loading_info
    )


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`, also for a folder with only `vocab.txt` and a configuration.

    Args:
        name_or_path: A Hub id or a local folder.
        revision: A branch, tag or commit of the Hub repository.

    Raises:
        OSError: If there is no configuration or tokenizer, here or on the Hub.
        ValueError: As `load_config`.
    """
    config = load_config(name_or_path, revision=revision)
    return AutoTokenizer.from_pretrained(name_or_path, config=config, revision=revision)
