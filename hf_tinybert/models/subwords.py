"""Subword tokens: which of them a corpus requires, and what each of them spells."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .tokenizer_files import bare_backend, is_byte_level, merged, tokenizer_state

BATCH_SIZE = 1000
BROKEN = "\ufffd"  # what bytes that are only a part of a character decode to


def required_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable, min_count: int, retained: set[str]
) -> set[str]:
    """The tokens without which a tokenizer would split a corpus otherwise.

    Args:
        tokenizer: A fast tokenizer.
        texts: Strings, or batches of strings.
        min_count: How often the corpus must use a token.
        retained: Tokens that stay in any case. Added tokens do as well.

    Raises:
        ValueError: If `texts` is empty or holds anything but strings.
    """
    state, backend = tokenizer_state(tokenizer), bare_backend(tokenizer)
    model = state["model"]
    retained = retained | {token["content"] for token in state["added_tokens"]}
    counts, attempted = _count(backend, texts, model["unk_token"] if model["type"] == "WordPiece" else None)
    required = retained | attempted | {token for token, count in counts.items() if count >= min_count}
    required |= _smallest(state, counts.keys() - retained)
    if model["type"] == "Unigram":
        # The cost of an unknown token depends on the lowest score; transformers' classes rely on the id of unk.
        entries = model["vocab"]
        required |= {token for token, _ in entries[: 1 + (model["unk_id"] or 0)]}
        required.add(min(entries, key=lambda entry: entry[1])[0])
    return _with_parts(required & tokenizer.get_vocab().keys(), model)


def spelling(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], tuple[bool, str]]:
    """How the tokens of a tokenizer are spelled, whatever the marks that it uses (`##x`, `Ġx`, `▁x`).

    Returns:
        A function from a token to whether it starts a word, and its text.
    """
    state = tokenizer_state(tokenizer)
    prefix, byte_level = state["model"].get("continuing_subword_prefix"), is_byte_level(state)
    decode = decoders.ByteLevel().decode

    def spell(token: str) -> tuple[bool, str]:
        if prefix:
            return not token.startswith(prefix), token.removeprefix(prefix)
        text = decode([token]) if byte_level else token.replace("▁", " ", 1)
        if BROKEN in text:  # bytes that are no character match only themselves
            return False, BROKEN + token
        return text.startswith(" "), text.removeprefix(" ")

    return spell


def _count(backend: Tokenizer, texts: Iterable, unknown: str | None) -> tuple[Counter[str], set[str]]:
    """How often each token is used, and the tokens that WordPiece finds in words that become `unknown`."""
    counts, attempted, unknown_id = Counter(), set(), unknown and backend.token_to_id(unknown)
    for batch in _batches(texts):
        for text, encoding in zip(batch, backend.encode_batch_fast(batch), strict=True):
            ids = encoding.ids  # fast encodings hold no tokens
            counts.update(ids)
            if unknown_id in ids:
                attempted |= _attempted(backend, text, unknown)
    if not counts:
        raise ValueError("texts is empty: pass the corpus that the vocabulary is to fit.")
    return Counter({backend.id_to_token(index): count for index, count in counts.items()}), attempted


def _batches(texts: Iterable) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise ValueError("texts is one string: pass several, e.g. dataset['sentence'].")
    batch: list[str] = []
    for item in tqdm(texts, desc="Counting tokens"):
        items = item if isinstance(item, list | tuple) else [item]
        if wrong := [type(text).__name__ for text in items if not isinstance(text, str)]:
            raise ValueError(f"texts holds a {wrong[0]}: pass strings or lists of them, e.g. dataset['sentence'].")
        batch += items
        if len(batch) >= BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def _smallest(state: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    """The tokens that any word can be split into: single characters of the tokens used, and all bytes, if any."""
    model = state["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    singles = {character for token in used for character in token.removeprefix(prefix).removesuffix(suffix)}
    if is_byte_level(state):
        singles |= set(pre_tokenizers.ByteLevel.alphabet())
    if model.get("byte_fallback"):
        singles |= {f"<0x{byte:02X}>" for byte in range(256)}
    return {start + single + end for single in singles for start in {"", prefix} for end in {"", suffix}}


def _attempted(backend: Tokenizer, text: str, unknown: str) -> set[str]:
    """The tokens that WordPiece finds in unknown words before it gives up; without them it might not give up."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer is not None else [(text, None)]
    attempted: set[str] = set()
    for word, _ in words:
        ends = range(len(word), 0, -1)
        starts = ({token.value for token in backend.model.tokenize(word[:end])} for end in ends)
        attempted |= next((tokens for tokens in starts if unknown not in tokens), set())
    return attempted


def _with_parts(tokens: set[str], model: Mapping[str, Any]) -> set[str]:
    """`tokens` and all from which the merges of BPE make them, so that each text is merged as before."""
    parts = defaultdict(set)
    for left, right in model.get("merges", ()):
        parts[merged(left, right, model)] |= {left, right}
    everything, new = set(tokens), tokens
    while new:
        new = {part for token in new for part in parts[token]} - everything
        everything |= new
    return everything
