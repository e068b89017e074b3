"""TinyBERT's data augmentation: words replaced by a masked language model or by word vectors (Algorithm 1)."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.weights import weights_digest
from ..sharded_map import sharded_map

WORD = re.compile(r"[^\W\d_]+")
# Function words and the pieces that apostrophes leave: replacing them changes grammar or meaning, seldom the topic.
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


@dataclass
class WordVectors:
    """Word vectors, (V, D), for the words that a tokenizer splits; `words` in the order of the rows."""

    words: list[str]
    vectors: np.ndarray

    def __post_init__(self):
        if len(self.words) != len(self.vectors):
            raise ValueError(f"There are {len(self.words)} words and {len(self.vectors)} vectors: give one for each.")
        vectors = torch.from_numpy(np.array(self.vectors, dtype=np.float32))
        self._unit = torch.nn.functional.normalize(vectors, dim=-1)
        self._index = {word: index for index, word in reversed(list(enumerate(self.words)))}

    @classmethod
    def load(cls, path: str | Path, words: str | Path | None = None, limit: int = 100_000) -> "WordVectors":
        """The first `limit` of a GloVe text file, or of an .npy file with its words a line each, or in a parquet's
        first column, in `words`. The original takes 100,000 of GloVe."""
        if Path(path).suffix != ".npy":
            with open(path, encoding="utf8") as lines:
                rows = [line.rstrip("\n").split(" ") for _, line in zip(range(limit), lines, strict=False)]
            return cls([row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float32))
        if words is None:
            raise ValueError(f"{path} holds vectors only: pass words, the file that has their words in order.")
        if Path(words).suffix == ".parquet":
            table = datasets.Dataset.from_parquet(str(words))
            names = table[table.column_names[0]][:limit]
        else:
            names = Path(words).read_text(encoding="utf8").split("\n")[:limit]
        return cls(list(names), np.load(path, mmap_mode="r")[:limit])

    def nearest(self, words: Iterable[str], k: int) -> dict[str, list[str]]:
        """The `k` words of largest cosine to each of `words`, itself left out; one matrix product for all of them."""
        known = [word for word in words if word in self._index]
        if not known:
            return {}
        rows = self._unit[[self._index[word] for word in known]]
        found = [
            part.topk(min(k + 1, len(self.words))).indices for part in (c @ self._unit.T for c in rows.split(512))
        ]
        names = [[self.words[i] for i in row] for row in torch.cat(found).tolist()]
        return {word: [name for name in near if name != word][:k] for word, near in zip(known, names, strict=True)}


class Augmentation:
    """Algorithm 1 of the paper: up to `copies` (N_a) variants of a text, each word replaced with probability `p` by
    one of its `k` candidates, labels inherited; called on a data set and its one or two columns of text.

    Candidates of a word that is one token: the masked language model's likeliest whole words at its place, it alone
    masked. Of others: the nearest in `vectors`, if given. Stop words, numbers and punctuation stay. Of a pair, either
    side is varied beside the clean other one. Every row depends on its text and `seed` only. Raises ValueError for a
    tokenizer without offsets or a model without a masked-LM head.
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
        self._near: dict[str, list[str]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, beside the rows."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        tokenizer |= {"truncation": None, "padding": None}  # as the last call left them
        words = [tokenizer, sorted(self.stop_words), self.vectors.words if self.vectors else None]
        digest = hashlib.sha256(json.dumps(words).encode())
        if self.vectors:
            digest.update(np.ascontiguousarray(self.vectors.vectors))
        return {"model": weights_digest(self.model), "words": digest.hexdigest()} | {
            name: getattr(self, name) for name in ("copies", "p", "k", "seed")
        }

    def __call__(self, dataset: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
        """Each row followed by its variants; progress is shown, and kept on disk where the data set is."""
        missing = [name for name in columns if name not in dataset.column_names]
        if missing:
            raise ValueError(f"The data set has no column {missing}, only {dataset.column_names}.")

        def augment(batch: dict[str, list]) -> dict[str, list]:
            variants = {column: self.variants(batch[column]) for column in columns}
            rows = []
            for index in range(len(batch[columns[0]])):
                row = {name: values[index] for name, values in batch.items()}
                rows.append(row)
                rows += [row | {column: text} for column in columns for text in variants[column][index]]
            return {name: [row[name] for row in rows] for name in batch}

        key = f"augmentation {self.settings} {list(columns)}"
        # copies make rows: batches stay small so that writing keeps up
        return sharded_map(dataset, augment, key, batch_size=500, features=dataset.features, desc="Augmenting")

    def variants(self, texts: Sequence[str]) -> list[list[str]]:
        """Up to `copies` different variants of each text, none of them the text itself."""
        return [
            replace_words(text, candidates, self.copies, self.p, random.Random(f"{self.seed} {text}"))
            for text, candidates in zip(texts, self.candidates(texts), strict=True)
        ]

    def candidates(self, texts: Sequence[str]) -> list[dict[tuple[int, int], list[str]]]:
        """Of each text: {(start, end) of a word: what may replace it}."""
        encoded = self.tokenizer(list(texts), return_offsets_mapping=True, truncation=True)
        found: list[dict[tuple[int, int], list[str]]] = [{} for _ in texts]
        masked, split = [], []
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
        words = masked_candidates(
            self.model,
            [encoded["input_ids"][row] for row, _, _ in masked],
            [position for _, _, position in masked],
            self.tokenizer.mask_token_id,
            self.tokenizer.pad_token_id,
            self._whole_words,
            self.k,
            self.batch_tokens,
        )
        for (row, span, _), ids in zip(masked, words, strict=True):
            found[row][span] = [self.tokenizer.decode([token]).strip() for token in ids]
        if self.vectors is not None:
            new = {word for _, _, word in split} - set(self._near)
            self._near |= {word: [] for word in new} | self.vectors.nearest(sorted(new), self.k)
            for row, span, word in split:
                found[row][span] = [near for near in self._near[word] if WORD.fullmatch(near)]
        return found


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
    """The `k` likeliest of the `allowed` token ids, other than the one there, at `positions[i]` of `input_ids[i]`, it
    masked. Sequences of similar length share a forward pass of at most `batch_tokens`; the head runs at the masked
    position and for the allowed tokens only.
    """
    found: list[list[int]] = [[] for _ in input_ids]
    order = sorted(range(len(input_ids)), key=lambda index: -len(input_ids[index]))
    with _head_for(model, allowed) as place:
        while order:
            length = len(input_ids[order[0]])
            size = max(1, batch_tokens // length)
            chosen, order = order[:size], order[size:]
            ids = torch.tensor([[*input_ids[i], *[pad_token_id] * (length - len(input_ids[i]))] for i in chosen])
            lengths = torch.tensor([len(input_ids[i]) for i in chosen])
            place["at"] = torch.arange(len(chosen)), torch.tensor([positions[i] for i in chosen])
            ids[place["at"]] = mask_token_id
            attention_mask = (torch.arange(length) < lengths[:, None]).long()
            logits = model(ids.to(model.device), attention_mask=attention_mask.to(model.device)).logits[:, 0]
            best = allowed[logits.topk(min(k + 1, len(allowed))).indices].tolist()
            for index, tokens in zip(chosen, best, strict=True):
                own = input_ids[index][positions[index]]
                found[index] = [token for token in tokens if token != own][:k]
    return found


@contextmanager
def _head_for(model: PreTrainedModel, allowed: torch.Tensor) -> Iterator[dict[str, Any]]:
    """The masked-LM head runs at the positions that are put `at`, (rows, columns), and for the `allowed` tokens."""
    place: dict[str, Any] = {}

    def gather(module, args, output):
        output.last_hidden_state = output.last_hidden_state[place["at"]][:, None]
        return output

    head = model.get_output_embeddings()
    few = torch.nn.Linear(head.in_features, len(allowed), bias=head.bias is not None, device="meta")
    few.weight = torch.nn.Parameter(head.weight[allowed])
    if head.bias is not None:
        few.bias = torch.nn.Parameter(head.bias[allowed])
    handle = model.base_model.register_forward_hook(gather)
    model.set_output_embeddings(few)
    try:
        yield place
    finally:
        handle.remove()
        model.set_output_embeddings(head)


def whole_words(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The ids of tokens that are a word by themselves: letters only, not a continuation, not special."""
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
    """Up to `copies` texts with each word of `candidates` replaced with probability `p`; no repeats, not `text`."""
    spans = sorted(span for span, names in candidates.items() if names)
    variants: dict[str, None] = {}
    for _ in range(copies):
        pieces, end = [], 0
        for span in spans:
            if rng.random() >= p:
                continue
            name = rng.choice(candidates[span])
            capital = text[span[0]].isupper()
            pieces += [text[end : span[0]], name.capitalize() if capital else name]
            end = span[1]
        variants["".join([*pieces, text[end:]])] = None
    variants.pop(text, None)
    return list(variants)
