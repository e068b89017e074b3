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
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, has_file

from ..lineage import stamp
from .sources import adapter_advice, check_folder, check_weight_files, encoder_folder

BERT_KEYS = ("vocab_size", "type_vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def load_config(name_or_path: str | Path, **kwargs) -> PreTrainedConfig:
    """`AutoConfig.from_pretrained`, also for BERT configurations without `model_type`.

    The published TinyBERTs have such configurations.

    Args:
        name_or_path: A Hub id or a local folder.
        **kwargs: Those of `AutoConfig.from_pretrained`, for example `revision` or values of the configuration.

    Raises:
        OSError: If there is no such configuration, here or on the Hub.
        ValueError: If the configuration has no `model_type` and lacks one of BERT's sizes, or if there are adapters,
            checkpoints or other things than a model (`sources`).
    """
    name_or_path = encoder_folder(name_or_path)
    check_folder(name_or_path)
    hub_options = ("revision", "token", "cache_dir", "local_files_only")
    hub = {name: kwargs[name] for name in hub_options if name in kwargs}
    try:
        stored, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"Cannot load '{name_or_path}', neither a folder here nor from the Hub: {reason}") from error
    if not stored:  # a repository without one
        if has_file(name_or_path, ADAPTER_CONFIG_NAME, **hub):
            raise ValueError(f"'{name_or_path}' {adapter_advice(None)}.")
        raise OSError(f"Cannot load '{name_or_path}': it has no {CONFIG_NAME}.")
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
    name_or_path = encoder_folder(name_or_path)
    config = load_config(name_or_path, revision=revision, **changes)
    check_weight_files(name_or_path)
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


def load_teacher_model(name_or_path: str | Path) -> PreTrainedModel:
    """Load a teacher by the class that its configuration names, head included.

    Args:
        name_or_path: A Hub id or a local folder.

    Raises:
        OSError: If there is no such model, here or on the Hub.
        ValueError: As `from_pretrained`, or if the files lack weights of the head: an untrained one would teach noise.
    """
    teacher, loading = from_pretrained(None, name_or_path, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(
            f"Teacher '{name_or_path}' lacks weights for {sorted(loading['missing_keys'])}: they would be random. "
            "Fine-tune the teacher on the task first."
        )
    return teacher


def load_tokenizer(
    name_or_path: str | Path, revision: str | None = None, local_files_only: bool = False
) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`, also for a folder with only `vocab.txt` and a configuration.

    Args:
        name_or_path: A Hub id or a local folder.
        revision: A branch, tag or commit of the Hub repository.
        local_files_only: Whether to ask the cache alone, and not the Hub.

    Raises:
        OSError: If there is no configuration or tokenizer, here or on the Hub.
        ValueError: As `load_config`.
    """
    name_or_path = encoder_folder(name_or_path)
    options = {"revision": revision, "local_files_only": local_files_only}
    return AutoTokenizer.from_pretrained(name_or_path, config=load_config(name_or_path, **options), **options)
