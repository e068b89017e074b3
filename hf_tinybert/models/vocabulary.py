"""Vocabularies: trimmed to a corpus, transferred to another tokenizer, compared.

A model and its tokenizer change together: the token embeddings, a head that predicts tokens, the special token ids of
the configuration and the files of the tokenizer.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file

from .loading import load_config, load_tokenizer
from .sources import TOKENIZER_FILES, encoder_folder
from .subwords import BROKEN, required_tokens, spelling
from .token_rows import counts_positions_from_padding, ids_to_keep, with_rows
from .tokenizer_files import bare_backend, rewritten

logger = logging.getLogger(__name__)

# The roles of special tokens that stand for each other between tokenizers.
STAND_INS = {"bos_token": "cls_token", "eos_token": "sep_token", "cls_token": "bos_token", "sep_token": "eos_token"}


def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str | Sequence[str]],
    min_count: int = 1,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Remove the tokens that a corpus does not use.

    With `min_count=1` the new tokenizer makes the same tokens of each text of the corpus, and the new model the same
    outputs. The vocabulary also retains special and added tokens, the tokens that merges build another one from (BPE),
    and all bytes or the single characters of the tokens used. New words are therefore split into smaller tokens and do
    not become unknown.

    Student and teacher must read the same ids. To distil with a trimmed vocabulary, trim the teacher and initialise
    the student from it (`create_student`).

    Args:
        model: Any model with token embeddings. It does not change.
        tokenizer: The model's own, fast tokenizer. It does not change.
        texts: The corpus: strings, or batches of strings.
        min_count: How often the corpus must use a token, default 1.

    Returns:
        A new model and a new tokenizer. Ids are dense and in the previous order.

    Raises:
        ValueError: If the tokenizer is slow or another model's, or if `texts` is empty or holds anything but strings.
    """
    _check_tokenizer_of(model, tokenizer)
    vocabulary, retained_ids = tokenizer.get_vocab(), ids_to_keep(model)
    retained = {token for token, index in vocabulary.items() if index in retained_ids}
    tokens = sorted(required_tokens(tokenizer, texts, min_count, retained), key=vocabulary.__getitem__)
    logger.info("%d of %d tokens remain.", len(tokens), len(vocabulary))
    new_tokenizer = rewritten(tokenizer, {token: index for index, token in enumerate(tokens)})
    old_ids = [vocabulary[token] for token in tokens]
    new_ids = {old: new for new, old in enumerate(old_ids)}
    return with_rows(model, [[old] for old in old_ids], new_ids), new_tokenizer


def transfer_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Transfer a model to the vocabulary of another tokenizer.

    A special token takes the embedding of the token with its role. A token that both vocabularies have, at the start
    of a word or inside it and however that is marked (`##x`, `Ġx`, `▁x`), retains its embedding. Any other token
    starts from the mean embedding of the tokens that `tokenizer` splits it into, or from the mean of all embeddings if
    there are none. The log says how many tokens there are of each.

    Args:
        model: The model. It does not change.
        tokenizer: The model's own, fast tokenizer.
        new_tokenizer: The fast tokenizer that the new model is to read.

    Returns:
        A new model.

    Raises:
        ValueError: If a tokenizer is slow or `tokenizer` is another model's, or if the model counts positions from its
            padding id (RoBERTa) and the new tokenizer pads with another id.
    """
    _check_tokenizer_of(model, tokenizer)
    _check_fast(new_tokenizer)
    old_special_ids = _special_ids(tokenizer)
    roles = {
        new: old_special_ids.get(role, old_special_ids.get(STAND_INS.get(role)))
        for role, new in _special_ids(new_tokenizer).items()
    }
    roles = {new: old for new, old in roles.items() if old is not None}
    new_ids, pad = {old: new for new, old in roles.items()}, model.config.pad_token_id
    if counts_positions_from_padding(model) and new_ids.get(pad) != pad:
        raise ValueError(
            f"{type(model).__name__} counts positions from its padding id {pad}, the new tokenizer pads with "
            f"{new_tokenizer.pad_token_id}: give its padding token the id {pad}."
        )
    return with_rows(model, _sources(tokenizer, new_tokenizer, roles), new_ids)


def check_same_tokens(student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that every token of the student has the same id in the teacher's vocabulary.

    Args:
        student_tokenizer: The student's tokenizer.
        teacher_tokenizer: The teacher's tokenizer, which may have more tokens.

    Raises:
        ValueError: If a token has another id, or none; the message names the first one.
    """
    student_vocabulary, teacher_vocabulary = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    differing = [token for token, index in student_vocabulary.items() if teacher_vocabulary.get(token) != index]
    if differing:
        token = min(differing, key=student_vocabulary.__getitem__)
        raise ValueError(
            f"{len(differing)} of the student's {len(student_vocabulary)} tokens have another id, or none, in the "
            f"teacher's vocabulary, e.g. {token!r} {student_vocabulary[token]} and {teacher_vocabulary.get(token)}, "
            "and both models read the same ids: use transfer_vocabulary(student, its tokenizer, the teacher's), or "
            "trim_vocabulary on the teacher and initialise the student from that; then train with the teacher's "
            "tokenizer."
        )


def own_tokenizer(name_or_path: str | Path, local_files_only: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is stored with a model.

    Args:
        name_or_path: A Hub id or a local folder.
        local_files_only: Whether to ask the cache alone, and not the Hub.

    Returns:
        None if there are no files of a tokenizer, for which transformers would make one up without words.
    """
    folder = encoder_folder(name_or_path)
    has_tokenizer = any(has_file(folder, name, local_files_only=local_files_only) for name in TOKENIZER_FILES)
    return load_tokenizer(folder, local_files_only=local_files_only) if has_tokenizer else None


def tokenizer_beside(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer that is stored where a model was loaded from; the Hub is not asked.

    Returns:
        None if it is unknown: if the model was made in memory, its files are gone or not in the cache, or its
        vocabulary has changed since.
    """
    name = model.name_or_path
    if not name:
        return None
    try:
        stored = load_config(name, local_files_only=True)
        return own_tokenizer(name, local_files_only=True) if stored.vocab_size == model.config.vocab_size else None
    except (OSError, ValueError):
        return None


def _check_tokenizer_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _check_fast(tokenizer)
    last, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if last >= rows:
        raise ValueError(f"The tokenizer has ids up to {last}, the model {rows} embeddings: pass the model's own.")


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: load the fast one of the same model.")


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Role, for example cls_token → id."""
    named = tokenizer.special_tokens_map.items()
    return {role: tokenizer.convert_tokens_to_ids(token) for role, token in named if isinstance(token, str)}


def _sources(
    tokenizer: PreTrainedTokenizerBase, new_tokenizer: PreTrainedTokenizerBase, roles: Mapping[int, int]
) -> list[list[int]]:
    """For each new id, the old ids whose embeddings it starts from."""
    spell, spell_new = spelling(tokenizer), spelling(new_tokenizer)
    old_ids = {spell(token): index for token, index in tokenizer.get_vocab().items()}
    spellings = {index: spell_new(token) for token, index in new_tokenizer.get_vocab().items()}
    same = {index: old_ids[key] for index, key in spellings.items() if key in old_ids} | roles
    split = [index for index, (_, text) in spellings.items() if index not in same and BROKEN not in text]
    texts = [f" {text}" if starts_word else text for starts_word, text in map(spellings.get, split)]
    encodings = bare_backend(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    sources: list[list[int]] = [[] for _ in range(1 + max(spellings))]
    for index, encoding in zip(split, encodings, strict=True):
        sources[index] = [old for old in encoding.ids if old != tokenizer.unk_token_id]
    for index, old in same.items():
        sources[index] = [old]
    empty = sources.count([])
    logger.info(
        "Of %d tokens %d are special, %d retain their embedding, %d start from the mean of the tokens that they are "
        "split into, %d from the mean of all.",
        *(len(sources), len(roles), len(same) - len(roles), len(sources) - len(same) - empty, empty),
    )
    return sources
