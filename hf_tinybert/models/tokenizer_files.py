"""The files of a fast tokenizer: read, and rewritten for another vocabulary."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of a fast tokenizer's tokenizer.json."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def bare_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of a fast tokenizer's backend that neither truncates nor pads."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def is_byte_level(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer splits text into bytes, as RoBERTa's does."""
    return "ByteLevel" in json.dumps(state["pre_tokenizer"])


def merged(left: str, right: str, model: Mapping[str, Any]) -> str:
    """The token that a merge of BPE makes of two.

    Args:
        left: The first token.
        right: The second token.
        model: The entry "model" of `tokenizer_state`.
    """
    return left + right.removeprefix(model["continuing_subword_prefix"] or "")


def rewritten(tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int]) -> PreTrainedTokenizerBase:
    """The same tokenizer with fewer tokens, or other ids.

    Args:
        tokenizer: A fast tokenizer. It does not change.
        ids: Token → new id, for tokens of `tokenizer`.

    Returns:
        A tokenizer of the same class, as it is loaded from its files.

    Raises:
        ValueError: If the class of the tokenizer changes the vocabulary while it loads the files.
    """
    state = tokenizer_state(tokenizer)
    model = state["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in ids]
    else:
        model["vocab"] = {token: ids[token] for token in model["vocab"] if token in ids}
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if merged(*pair, model) in ids]
    for token in state["added_tokens"]:
        token["id"] = ids[token["content"]]
    if state["padding"]:
        state["padding"]["pad_id"] = ids[state["padding"]["pad_token"]]
    _renumber(state["post_processor"] or {}, ids)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(state), encoding="utf8")
        new_tokenizer = type(tokenizer).from_pretrained(folder)
    new_tokenizer.name_or_path = tokenizer.name_or_path
    if new_tokenizer.get_vocab() != ids:
        raise ValueError(f"{type(tokenizer).__name__} does not load the vocabulary that its tokenizer.json holds.")
    return new_tokenizer


def _renumber(processor: dict[str, Any], ids: Mapping[str, int]) -> None:
    """Set the ids of the special tokens that a post-processor adds."""
    for part in processor.get("processors", ()):
        _renumber(part, ids)
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [ids[token] for token in special["tokens"]]
    for end in processor.keys() & {"cls", "sep"}:
        token, _ = processor[end]
        processor[end] = [token, ids[token]]
