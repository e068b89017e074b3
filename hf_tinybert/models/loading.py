"""Configs, models and tokenizers by Hub id or folder, also those from before configs named their `model_type`."""

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
    """`AutoConfig.from_pretrained`; a config without `model_type` that has BERT's sizes is a `BertConfig`.

    Such are the configs of the published TinyBERTs. Raises ValueError where a config is of neither kind.
    """
    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"Cannot load '{name_or_path}', neither a folder here nor from the Hub: {reason}") from error
    if "model_type" in found or "auto_map" in found:
        return AutoConfig.from_pretrained(name_or_path, **kwargs)
    if missing := [key for key in BERT_KEYS if key not in found]:
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
    **config,
) -> PreTrainedModel | tuple[PreTrainedModel, dict]:
    """`model_class.from_pretrained` that also loads checkpoints without `model_type` (`load_config`).

    `model_class` None is the class that the config names, head included; without a name, the encoder. `config` changes
    config values, e.g. `num_labels`. Old names (`LayerNorm.gamma`), `pytorch_model.bin` and weights that the class has
    no place for (`fit_dense`, `cls`) transformers copes with. Raises ValueError where the config names a class unknown
    to transformers (remote code never runs from here).
    """
    config = load_config(name_or_path, revision=revision, **config)
    stamp(config, name_or_path, revision)
    architecture = (config.architectures or ["AutoModel"])[0]
    model_class = model_class or getattr(transformers, architecture, None)
    if model_class is None:
        raise ValueError(
            f"The config of '{name_or_path}' names the class '{architecture}', unknown to transformers. "
            "Load the model yourself (trust_remote_code=True if you trust it) and pass it."
        )
    options = {"config": config, "revision": revision, "output_loading_info": output_loading_info}
    return model_class.from_pretrained(name_or_path, **options)


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained` that needs no more than `vocab.txt` and a config that `load_config` reads."""
    config = load_config(name_or_path, revision=revision)
    return AutoTokenizer.from_pretrained(name_or_path, config=config, revision=revision)
