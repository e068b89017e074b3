"""Vocabularies: trimmed to a corpus, swapped for another one, compared; tokenizer and embeddings stay in step."""

import copy
import json
import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, pre_tokenizers
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file

from .loading import load_tokenizer

logger = logging.getLogger(__name__)

STAND_INS = {"bos_token": "cls_token", "eos_token": "sep_token", "cls_token": "bos_token", "sep_token": "eos_token"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
BATCH = 1000
BROKEN = "\ufffd"  # what a part of a character decodes to


def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str | Sequence[str]],
    min_count: int = 1,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`model` and `tokenizer` without the pieces that `texts` (strings or batches of them) use less than `min_count`
    times; both are new, ids dense and in the old order.

    With `min_count=1` each of `texts` gives the same tokens as before and the model the same outputs. Kept as well:
    special and added tokens, the parts that merges build a piece from (BPE), and all bytes or the single characters of
    the pieces used, so that words that are new or dropped fall apart into smaller pieces instead of becoming unknown.

    To distil on it, trim the *teacher* and cut the student from that (`create_student`): both read the same ids.
    Raises ValueError for a tokenizer that is slow or another model's, and where `texts` are not texts.
    """
    _check(model, tokenizer)
    vocabulary, held = tokenizer.get_vocab(), _held(model)
    special = {piece for piece, index in vocabulary.items() if index in held}
    pieces = sorted(_needed(tokenizer, texts, min_count, special), key=vocabulary.__getitem__)
    logger.info("%d of %d pieces are kept.", len(pieces), len(vocabulary))
    new_tokenizer = _rewrite(tokenizer, {piece: index for index, piece in enumerate(pieces)})
    old_ids = [vocabulary[piece] for piece in pieces]
    new_ids = {old: new for new, old in enumerate(old_ids)}
    return _with_rows(model, [[old] for old in old_ids], new_ids), new_tokenizer


def transfer_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A copy of `model`, which reads `tokenizer`, that reads `new_tokenizer`.

    Special tokens take the row of their role. Of the other pieces, one that both have, at the start of a word or
    inside it however that is marked (`##x`, `Ġx`, `▁x`), keeps its row; another starts from the mean of the rows of
    its pieces under `tokenizer`, or else from the mean of all rows. The log says how many there are of each.

    Raises ValueError for a tokenizer that is slow or another model's, and where the model counts positions from its
    padding id (RoBERTa) and the new tokenizer pads with another.
    """
    _check(model, tokenizer)
    _check_fast(new_tokenizer)
    ours, theirs = _special_ids(tokenizer), _special_ids(new_tokenizer)
    roles = {new: ours.get(role, ours.get(STAND_INS.get(role))) for role, new in theirs.items()}
    roles = {new: old for new, old in roles.items() if old is not None}
    new_ids, pad = {old: new for new, old in roles.items()}, model.config.pad_token_id
    if _counts_positions_from_padding(model) and new_ids.get(pad) != pad:
        raise ValueError(
            f"{type(model).__name__} counts positions from its padding id {pad}, the new tokenizer pads with "
            f"{new_tokenizer.pad_token_id}: give its padding token the id {pad}."
        )
    return _with_rows(model, _sources(tokenizer, new_tokenizer, roles), new_ids)


def check_same_tokens(student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where a piece of the student's tokenizer has another id, or none, in the teacher's."""
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    differing = [piece for piece, index in ours.items() if theirs.get(piece) != index]
    if differing:
        piece = min(differing, key=ours.__getitem__)
        raise ValueError(
            f"{len(differing)} of the student's {len(ours)} pieces have another id, or none, in the teacher's, "
            f"e.g. {piece!r} {ours[piece]} and {theirs.get(piece)}, and both models read the same ids: use "
            "transfer_vocabulary(student, its tokenizer, the teacher's), or trim_vocabulary on the teacher and cut the "
            "student from that; then train with the teacher's tokenizer."
        )


def own_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model; None where there is none, for which transformers makes up one without words."""
    found = any(has_file(name_or_path, name) for name in TOKENIZER_FILES)
    return load_tokenizer(name_or_path) if found else None


# ---- What is kept ----


def _needed(tokenizer: PreTrainedTokenizerBase, texts: Iterable, min_count: int, special: set[str]) -> set[str]:
    """The pieces that `texts` use, `special` and added ones, and those without which others could not be made."""
    state, backend = _state(tokenizer), _bare(tokenizer)
    model = state["model"]
    special = special | {token["content"] for token in state["added_tokens"]}
    counts, tried = _count(backend, texts, model["unk_token"] if model["type"] == "WordPiece" else None)
    kept = special | tried | {piece for piece, count in counts.items() if count >= min_count}
    kept |= _smallest(state, counts.keys() - special)
    if model["type"] == "Unigram":
        # An unknown piece costs more than the dearest known one, and transformers' classes take its id for granted.
        entries = model["vocab"]
        kept |= {piece for piece, _ in entries[: 1 + (model["unk_id"] or 0)]}
        kept.add(min(entries, key=lambda entry: entry[1])[0])
    return _with_parts(kept & tokenizer.get_vocab().keys(), model)


def _count(backend: Tokenizer, texts: Iterable, unknown: str | None) -> tuple[Counter[str], set[str]]:
    """How often each piece is used, and what WordPiece finds in words that turn out `unknown`."""
    counts, tried, unknown_id = Counter(), set(), unknown and backend.token_to_id(unknown)
    for batch in _batches(texts):
        for text, encoding in zip(batch, backend.encode_batch_fast(batch), strict=True):
            ids = encoding.ids  # tokens are blank in fast encodings
            counts.update(ids)
            if unknown_id in ids:
                tried |= _tried(backend, text, unknown)
    if not counts:
        raise ValueError("texts is empty: pass the corpus that the vocabulary is to fit.")
    return Counter({backend.id_to_token(index): count for index, count in counts.items()}), tried


def _batches(texts: Iterable) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise ValueError("texts is one string: pass several, e.g. dataset['sentence'].")
    batch: list[str] = []
    for item in tqdm(texts, desc="Counting pieces"):
        items = item if isinstance(item, list | tuple) else [item]
        if wrong := [type(text).__name__ for text in items if not isinstance(text, str)]:
            raise ValueError(f"texts holds a {wrong[0]}: pass strings or lists of them, e.g. dataset['sentence'].")
        batch += items
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _smallest(state: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    """What any word falls apart into: single characters of the pieces used, and all bytes where there are any."""
    model = state["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found = {character for piece in used for character in piece.removeprefix(prefix).removesuffix(suffix)}
    if "ByteLevel" in json.dumps(state["pre_tokenizer"]):
        found |= set(pre_tokenizers.ByteLevel.alphabet())
    if model.get("byte_fallback"):
        found |= {f"<0x{byte:02X}>" for byte in range(256)}
    return {start + single + end for single in found for start in {"", prefix} for end in {"", suffix}}


def _tried(backend: Tokenizer, text: str, unknown: str) -> set[str]:
    """The pieces that WordPiece finds in unknown words before it gives up: without them it might not."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer is not None else [(text, None)]
    found: set[str] = set()
    for word, _ in words:
        ends = range(len(word), 0, -1)
        starts = ({token.value for token in backend.model.tokenize(word[:end])} for end in ends)
        found |= next((pieces for pieces in starts if unknown not in pieces), set())
    return found


def _with_parts(pieces: set[str], model: Mapping[str, Any]) -> set[str]:
    """`pieces` and all that the merges of BPE make them from: then each text is merged as before."""
    parts = defaultdict(set)
    for left, right in model.get("merges", ()):
        parts[_merged(left, right, model)] |= {left, right}
    found, new = set(pieces), pieces
    while new:
        new = {part for piece in new for part in parts[piece]} - found
        found |= new
    return found


def _merged(left: str, right: str, model: Mapping[str, Any]) -> str:
    return left + right.removeprefix(model["continuing_subword_prefix"] or "")


# ---- The tokenizer ----


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _check_fast(tokenizer)
    last, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if last >= rows:
        raise ValueError(f"The tokenizer has ids up to {last}, the model {rows} embeddings: pass the model's own.")


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: load the fast one of the same model.")


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _bare(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of its backend that neither cuts nor pads."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _rewrite(tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int]) -> PreTrainedTokenizerBase:
    """The tokenizer of the pieces and ids given, as it is loaded from its files."""
    state = _state(tokenizer)
    model = state["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in ids]
    else:
        model["vocab"] = {piece: ids[piece] for piece in model["vocab"] if piece in ids}
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if _merged(*pair, model) in ids]
    for token in state["added_tokens"]:
        token["id"] = ids[token["content"]]
    if state["padding"]:
        state["padding"]["pad_id"] = ids[state["padding"]["pad_token"]]
    _renumber(state["post_processor"] or {}, ids)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(state), encoding="utf8")
        new = type(tokenizer).from_pretrained(folder)
    new.name_or_path = tokenizer.name_or_path
    if new.get_vocab() != ids:
        raise ValueError(f"{type(tokenizer).__name__} does not load the vocabulary that its tokenizer.json holds.")
    return new


def _renumber(processor: dict[str, Any], ids: Mapping[str, int]) -> None:
    for part in processor.get("processors", ()):
        _renumber(part, ids)
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [ids[token] for token in special["tokens"]]
    for end in processor.keys() & {"cls", "sep"}:
        token, _ = processor[end]
        processor[end] = [token, ids[token]]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """{role: id}, e.g. of cls_token."""
    named = tokenizer.special_tokens_map.items()
    return {role: tokenizer.convert_tokens_to_ids(token) for role, token in named if isinstance(token, str)}


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], tuple[bool, str]]:
    """A function that says of a piece whether a word begins with it, and its text."""
    state = _state(tokenizer)
    prefix, decode = state["model"].get("continuing_subword_prefix"), decoders.ByteLevel().decode

    def spell(piece: str) -> tuple[bool, str]:
        if prefix:
            return not piece.startswith(prefix), piece.removeprefix(prefix)
        text = decode([piece]) if byte_level else piece.replace("▁", " ", 1)
        if BROKEN in text:  # bytes that are no character match only themselves
            return False, BROKEN + piece
        return text.startswith(" "), text.removeprefix(" ")

    byte_level = "ByteLevel" in json.dumps(state["pre_tokenizer"])
    return spell


def _sources(
    tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase, roles: Mapping[int, int]
) -> list[list[int]]:
    """Of each new id the old ids whose rows it starts from."""
    spell, spell_new = _spelling(tokenizer), _spelling(new_tokenizer)
    known = {spell(piece): index for piece, index in tokenizer.get_vocab().items()}
    new = {index: spell_new(piece) for piece, index in new_tokenizer.get_vocab().items()}
    same = {index: known[key] for index, key in new.items() if key in known} | roles
    rest = [index for index, (_, text) in new.items() if index not in same and BROKEN not in text]
    texts = [" " * new[index][0] + new[index][1] for index in rest]
    sources: list[list[int]] = [[] for _ in range(1 + max(new))]
    for index, encoding in zip(rest, _bare(tokenizer).encode_batch_fast(texts, add_special_tokens=False), strict=True):
        sources[index] = [old for old in encoding.ids if old != tokenizer.unk_token_id]
    for index, old in same.items():
        sources[index] = [old]
    empty = sources.count([])
    logger.info(
        "Of %d pieces %d are special, %d keep their row, %d start from their pieces' mean, %d from the mean of all.",
        *(len(sources), len(roles), len(same) - len(roles), len(sources) - len(same) - empty, empty),
    )
    return sources


# ---- The model ----


def _with_rows(
    model: PreTrainedModel, sources: Sequence[Sequence[int]], new_ids: Mapping[int, int]
) -> PreTrainedModel:
    """A copy whose row i of the token embeddings, and of a head that predicts tokens, is the mean of old rows."""
    new = copy.deepcopy(model)
    padded = model.get_input_embeddings().padding_idx is not None
    new.resize_token_embeddings(len(sources), mean_resizing=False)
    flat, lengths = torch.tensor([old for rows in sources for old in rows]), torch.tensor([*map(len, sources)])
    with torch.no_grad():
        for table, new_table in zip(_tables(model), _tables(new), strict=True):
            rows = table.view(len(table), -1)  # a bias is a column
            starts = lengths.cumsum(0) - lengths
            means = F.embedding_bag(flat.to(rows.device), rows, starts.to(rows.device), mode="mean")
            means[(lengths == 0).to(rows.device)] = rows.mean(0)
            new_table.copy_(means.view_as(new_table))
    for name, old in _token_ids(model).items():
        setattr(new.config, name, new_ids.get(old))
    if padded:
        new.get_input_embeddings().padding_idx = new.config.pad_token_id
    return new


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The token embeddings, and weight and bias of a head that predicts tokens."""
    head = model.get_output_embeddings()
    tables = [] if head is None else [head.weight] if head.bias is None else [head.weight, head.bias]
    return [model.get_input_embeddings().weight, *tables]


def _token_ids(model: PreTrainedModel) -> dict[str, int]:
    """What the config says of special tokens, e.g. pad_token_id."""
    named = model.config.to_dict().items()
    return {name: value for name, value in named if name.endswith("_token_id") and value is not None}


def _held(model: PreTrainedModel) -> set[int]:
    """The ids that the config names, and those up to padding where positions count from it."""
    held = set(_token_ids(model).values())
    return held | set(range(model.config.pad_token_id + 1)) if _counts_positions_from_padding(model) else held


def _counts_positions_from_padding(model: PreTrainedModel) -> bool:
    """Whether positions have a row for padding, as RoBERTa's, the first token's coming after it."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return any(table.padding_idx is not None for table in tables if table is not model.get_input_embeddings())
