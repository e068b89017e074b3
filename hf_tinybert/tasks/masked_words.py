"""TinyBERT's data augmentation: words replaced by a masked language model or word vectors (paper, Algorithm 1)."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..lineage import ModelRecord
from ..models.weights import weights_digest
from .augmentation import Augmentation
from .word_vectors import WordVectors

WORD = re.compile(r"[^\W\d_]+")
# Function words and the parts of words at apostrophes: replacing them changes grammar or meaning, seldom the topic.
STOP_WORDS = """
a about above after again against ain all also although always am among an and any are aren as at be because been
before being below between both but by can cannot could couldn d did didn do does doesn doing don down during each
either else ever every few for from further had hadn has hasn have haven having he her here hers herself him
himself his how however i if in into is isn it its itself just ll m may me might mightn more most must mustn my
myself neither never no nobody nor not nothing now of off on once only or other our ours ourselves out over own re
s same shall shan she should shouldn so some such t than that the their theirs them themselves then there these
they this those though through to too under until up upon ve very was wasn we were weren what when where whether
which while who whom whose why will with without won would wouldn yet you your yours yourself yourselves
"""


class MaskedWords(Augmentation):
    """Algorithm 1 of the TinyBERT paper: variants of texts with some words replaced, with the labels of the original.

    A word that is one token is replaced by one of the masked language model's likeliest whole words at its place,
    where it alone is masked; any other word by one of the nearest words in `vectors`. Stop words, numbers and
    punctuation stay. In a variant of a pair of texts one of the two is changed. A variant depends on its text and on
    `seed` only. Call the object with a data set and the names of its one or two columns of text.

    Args:
        model: The masked language model; it is put into eval mode.
        tokenizer: Its tokenizer, a fast one.
        vectors: Vectors for words of several tokens; default None, such words stay.
        copies: N_a, the largest number of variants of a text (default 20).
        p: The probability of replacing a word (default 0.4).
        k: The number of candidates for a word (default 15).
        seed: The seed of the random choices.
        stop_words: Words that stay, in lower case; default English function words.
        batch_tokens: Tokens, padding included, in one forward pass (default 4096).

    Raises:
        ValueError: For a tokenizer without offsets or mask token, a model without a masked-LM head, or `copies`, `p`
            or `k` out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vectors: WordVectors | None = None,
        copies: int = 20,
        p: float = 0.4,
        k: int = 15,
        seed: int = 0,
        stop_words: Iterable[str] = STOP_WORDS.split(),
        batch_tokens: int = 4096,
    ):
        if not tokenizer.is_fast or tokenizer.mask_token_id is None:
            raise ValueError("Augmentation needs a fast tokenizer with a mask token: it has to place words on tokens.")
        if model.get_output_embeddings() is None:
            raise ValueError(f"{type(model).__name__} has no masked-LM head: load it with AutoModelForMaskedLM.")
        if not 0 < p <= 1 or k < 1 or copies < 1:
            raise ValueError(f"p={p}, k={k}, copies={copies}: p lies in (0, 1], the others are at least 1.")
        self.model, self.tokenizer, self.vectors = model.eval(), tokenizer, vectors
        self.copies, self.p, self.k, self.seed = copies, p, k, seed
        self.stop_words, self.batch_tokens = frozenset(stop_words), batch_tokens
        self._whole_words = whole_words(tokenizer).to(model.device)
        self._nearest: dict[str, list[str]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the variants depend on, besides the rows. The weights and the words are named by digests."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        tokenizer |= {"truncation": None, "padding": None}  # they are those of the last call
        words = [tokenizer, sorted(self.stop_words), self.vectors.words if self.vectors else None]
        digest = hashlib.sha256(json.dumps(words).encode())
        if self.vectors:
            digest.update(np.ascontiguousarray(self.vectors.vectors))
        return {"model": weights_digest(self.model), "words": digest.hexdigest()} | {
            name: getattr(self, name) for name in ("copies", "p", "k", "seed")
        }

    @property
    def record(self) -> dict[str, Any]:
        """The settings, with the name and commit of the masked language model."""
        masked_lm = ModelRecord.from_config(self.model.config)
        return {"masked_lm": masked_lm.name, "masked_lm_revision": masked_lm.revision, **self.settings}

    def row_variants(self, rows: Sequence[Sequence[str]], words: Sequence[str]) -> list[list[tuple[str, ...]]]:
        """Variants of each row in which one of its texts is changed; `words` are not needed."""
        by_column = [self.variants(texts) for texts in zip(*rows, strict=True)]
        return [
            [
                (*row[:column], text, *row[column + 1 :])
                for column, variants in enumerate(by_column)
                for text in variants[index]
            ]
            for index, row in enumerate(rows)
        ]

    def variants(self, texts: Sequence[str]) -> list[list[str]]:
        """Up to `copies` different variants of each text, none of them the text itself."""
        return [
            replace_words(text, candidates, self.copies, self.p, random.Random(f"{self.seed} {text}"))
            for text, candidates in zip(texts, self.candidates(texts), strict=True)
        ]

    def candidates(self, texts: Sequence[str]) -> list[dict[tuple[int, int], list[str]]]:
        """For each text, {(start, end) of a word in characters: the words that may replace it}."""
        encoded = self.tokenizer(list(texts), return_offsets_mapping=True, truncation=True)
        candidates: list[dict[tuple[int, int], list[str]]] = [{} for _ in texts]
        masked, split = [], []  # words that are one token, and the others
        for row, text in enumerate(texts):
            tokens = {span: position for position, span in enumerate(encoded["offset_mapping"][row])}
            for word in WORD.finditer(text):
                if word.group().lower() in self.stop_words:
                    continue
                position = tokens.get(word.span())
                if position is None or encoded["input_ids"][row][position] == self.tokenizer.unk_token_id:
                    split.append((row, word.span(), word.group().lower()))
                else:
                    masked.append((row, word.span(), position))
        likeliest = masked_candidates(
            self.model,
            [encoded["input_ids"][row] for row, _, _ in masked],
            [position for _, _, position in masked],
            self.tokenizer.mask_token_id,
            self.tokenizer.pad_token_id,
            self._whole_words,
            self.k,
            self.batch_tokens,
        )
        for (row, span, _), ids in zip(masked, likeliest, strict=True):
            candidates[row][span] = [self.tokenizer.decode([token]).strip() for token in ids]
        if self.vectors is not None:
            new = {word for _, _, word in split} - set(self._nearest)
            self._nearest |= {word: [] for word in new} | self.vectors.nearest(sorted(new), self.k)
            for row, span, word in split:
                candidates[row][span] = [name for name in self._nearest[word] if WORD.fullmatch(name)]
        return candidates


@torch.inference_mode()
def masked_candidates(
    model: PreTrainedModel,
    input_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    mask_token_id: int,
    pad_token_id: int,
    allowed: torch.Tensor,
    k: int,
    batch_tokens: int = 4096,
) -> list[list[int]]:
    """The likeliest tokens, other than the present one, at one masked position of each sequence.

    Sequences of similar length share a forward pass. The head runs at the masked position and for the allowed tokens
    only.

    Args:
        model: A masked language model.
        input_ids: The sequences, unpadded.
        positions: The position to mask in each sequence.
        mask_token_id: The id of the mask token.
        pad_token_id: The id of the padding token.
        allowed: The ids of the tokens that may be candidates.
        k: The number of candidates.
        batch_tokens: Tokens, padding included, in one forward pass, at most.

    Returns:
        Up to `k` token ids for each sequence, likeliest first.
    """
    candidates: list[list[int]] = [[] for _ in input_ids]
    order = sorted(range(len(input_ids)), key=lambda index: -len(input_ids[index]))
    with _head_at_masked_positions(model, allowed) as masked:
        while order:
            length = len(input_ids[order[0]])
            size = max(1, batch_tokens // length)
            chosen, order = order[:size], order[size:]
            ids = torch.tensor([[*input_ids[i], *[pad_token_id] * (length - len(input_ids[i]))] for i in chosen])
            lengths = torch.tensor([len(input_ids[i]) for i in chosen])
            masked.positions = torch.arange(len(chosen)), torch.tensor([positions[i] for i in chosen])
            ids[masked.positions] = mask_token_id
            attention_mask = (torch.arange(length) < lengths[:, None]).long()
            logits = model(ids.to(model.device), attention_mask=attention_mask.to(model.device)).logits[:, 0]
            best = allowed[logits.topk(min(k + 1, len(allowed))).indices].tolist()
            for index, tokens in zip(chosen, best, strict=True):
                present = input_ids[index][positions[index]]
                candidates[index] = [token for token in tokens if token != present][:k]
    return candidates


@dataclass
class _MaskedPositions:
    """The rows and columns of a batch at which the masked-LM head runs."""

    positions: tuple[torch.Tensor, torch.Tensor] | None = None

    def select(self, module, args, output):
        """A forward hook of the encoder."""
        output.last_hidden_state = output.last_hidden_state[self.positions][:, None]
        return output


@contextmanager
def _head_at_masked_positions(model: PreTrainedModel, allowed: torch.Tensor) -> Iterator[_MaskedPositions]:
    """Let the masked-LM head run at the masked positions and for the allowed tokens only."""
    masked = _MaskedPositions()
    head = model.get_output_embeddings()
    smaller_head = torch.nn.Linear(head.in_features, len(allowed), bias=head.bias is not None, device="meta")
    smaller_head.weight = torch.nn.Parameter(head.weight[allowed])
    if head.bias is not None:
        smaller_head.bias = torch.nn.Parameter(head.bias[allowed])
    handle = model.base_model.register_forward_hook(masked.select)
    model.set_output_embeddings(smaller_head)
    try:
        yield masked
    finally:
        handle.remove()
        model.set_output_embeddings(head)


def whole_words(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The ids of the tokens that are whole words: letters only, neither a continuation nor special."""
    vocabulary = tokenizer.get_vocab()
    marked = any(token.startswith(("Ġ", "▁")) for token in vocabulary)  # byte-level BPE, SentencePiece: Ġword, ▁word
    return torch.tensor(
        sorted(
            index
            for token, index in vocabulary.items()
            if WORD.fullmatch(token.lstrip("Ġ▁"))
            and (not marked or token.startswith(("Ġ", "▁")))
            and index not in tokenizer.all_special_ids
        )
    )


def replace_words(
    text: str,
    candidates: Mapping[tuple[int, int], Sequence[str]],
    copies: int,
    p: float,
    rng: random.Random,
) -> list[str]:
    """Different variants of a text, none of them the text itself.

    Args:
        text: The text.
        candidates: {(start, end) of a word in characters: the words that may replace it}.
        copies: The number of draws, hence the largest number of variants.
        p: The probability of replacing a word.
        rng: The source of the random choices.
    """
    spans = sorted(span for span, names in candidates.items() if names)
    variants: dict[str, None] = {}
    for _ in range(copies):
        parts, end = [], 0
        for span in spans:
            if rng.random() >= p:
                continue
            name = rng.choice(candidates[span])
            capital = text[span[0]].isupper()
            parts += [text[end : span[0]], name.capitalize() if capital else name]
            end = span[1]
        variants["".join([*parts, text[end:]])] = None
    variants.pop(text, None)
    return list(variants)
