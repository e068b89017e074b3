"""Plain text as sequences of tokens."""

from itertools import chain

import datasets
from transformers import PreTrainedTokenizerBase

from ..tasks.column_checks import check_texts


def tokenize_text(
    data: datasets.Dataset | datasets.IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    text: str = "text",
    max_length: int = 128,
    packed: bool = True,
) -> datasets.Dataset | datasets.IterableDataset:
    """Tokenise plain text.

    Args:
        data: Rows with a column of text.
        tokenizer: The tokenizer; its special tokens surround every sequence.
        text: The name of the column, default "text".
        max_length: The most tokens of a sequence, special tokens included; default 128.
        packed: Whether texts are joined, separated by the special tokens that end a text, and split into sequences of
            `max_length` tokens. Otherwise each text is one sequence, truncated to `max_length` tokens.

    Returns:
        The sequences as `input_ids`; if they are not packed, with the tokenizer's other columns.

    Raises:
        ValueError: If the data has no such column, if a row has no text in it, or if `max_length` leaves no room for
            text.
    """
    # a stream from a generator, from text files or after a map does not know its columns: the first row does
    columns = list(data.column_names or next(iter(data), {}))
    if text not in columns:
        raise ValueError(f"The data set has no column '{text}', only {columns}: name the column of the text.")
    prefix, suffix = _special_tokens(tokenizer)
    length = max_length - len(prefix) - len(suffix)
    if length < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room beside the {len(prefix) + len(suffix)} special tokens of a "
            f"sequence: give at least {len(prefix) + len(suffix) + 1}."
        )
    if isinstance(data, datasets.Dataset):
        check_texts(data, [text], "the data")

    def check(texts):  # a stream is read only once
        for value in texts:
            if not isinstance(value, str):
                raise ValueError(f"A row of the stream has {value!r} in '{text}': filter rows without text.")

    def truncate(batch):
        check(batch[text])
        return tokenizer(batch[text], truncation=True, max_length=max_length)

    def pack(batch):
        check(batch[text])
        documents = tokenizer(batch[text], add_special_tokens=False, verbose=False)["input_ids"]
        joined = list(chain.from_iterable([*ids, *suffix] for ids in documents))[: -len(suffix) or None]
        return {"input_ids": [[*prefix, *joined[i : i + length], *suffix] for i in range(0, len(joined), length)]}

    tokenise = pack if packed else truncate
    if isinstance(data, datasets.IterableDataset):
        return data.map(tokenise, batched=True, remove_columns=columns)
    return data.map(tokenise, batched=True, remove_columns=columns, desc="Tokenising")


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after the tokens of one text."""
    word, sentence = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = sentence.index(word[0])
    return sentence[:start], sentence[start + len(word) :]
