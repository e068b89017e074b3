"""Whether tokenised rows fit the models that read them: checked by column, before a model runs on any of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import nn
from transformers import PreTrainedModel

COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
BLOCK, ROWS = 1000, 200_000  # longer data sets are checked in blocks that are spread evenly over them


@dataclass(frozen=True)
class InputLimits:
    """What rows may hold.

    Attributes:
        sizes: The number of rows of the embedding table of a column, for example of `input_ids`.
        positions: The most tokens of a row; None if the model counts no positions.
        pad_token_id: The token that pads; None if there is none.
        choices: Whether each row has several choices.
    """

    sizes: Mapping[str, int]
    positions: int | None = None
    pad_token_id: int | None = None
    choices: bool = False

    @classmethod
    def of_models(cls, models: Sequence[PreTrainedModel], choices: bool = False) -> "InputLimits":
        """The limits of the smallest tables of several models.

        Args:
            models: The models that read the rows.
            choices: Whether each row has several choices.
        """
        sizes: dict[str, int] = {}
        positions: list[int] = []
        for model in models:
            tables = {"input_ids": model.get_input_embeddings()}
            for name, module in model.base_model.named_modules():
                if isinstance(module, nn.Embedding) and name.endswith("token_type_embeddings"):
                    tables["token_type_ids"] = module
                elif isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
                    # RoBERTa's first position follows the row of padding
                    first = 0 if module.padding_idx is None else module.padding_idx + 1
                    positions.append(module.num_embeddings - first)
                    tables["position_ids"] = module
            for column, table in tables.items():
                sizes[column] = min(sizes.get(column, table.num_embeddings), table.num_embeddings)
        return cls(sizes, min(positions, default=None), models[0].config.pad_token_id, choices)


def check_rows(rows: Any, limits: InputLimits, where: str) -> None:
    """Check the tokens, masks, token types and positions of rows.

    Of a `datasets.Dataset` and of a list of rows whole columns are checked, of more than 200,000 rows blocks that are
    evenly spread. Streams and other data sets are not read.

    Args:
        rows: Rows of tokens.
        limits: What they may hold.
        where: What messages call the rows, for example "train_dataset".

    Raises:
        ValueError: If a column of a row does not fit; the message names row and column and says what to change.
    """
    for start, table in blocks(rows, COLUMNS):
        if "input_ids" in table.column_names:
            _check_block(table, limits, where, start)


def check_batch(inputs: Mapping[str, Any], limits: InputLimits, first: bool = True) -> None:
    """Check a batch, for rows that `check_rows` does not read.

    Args:
        inputs: The batch.
        limits: What it may hold.
        first: Whether it is the first batch. Of later ones on an accelerator only the shapes are checked, as their
            values would have to be waited for.

    Raises:
        ValueError: If a column does not fit; the message names it.
    """
    shapes = {name: tuple(inputs[name].shape) for name in COLUMNS if inputs.get(name) is not None}
    if "input_ids" not in shapes:
        return
    shape = shapes["input_ids"]
    for name, other in shapes.items():
        if other != shape and name != "position_ids":
            raise ValueError(
                f"'{name}' of a batch has the shape {other} and input_ids {shape}: give one number for each token."
            )
    if limits.positions is not None and shape[-1] > limits.positions:
        raise ValueError(
            f"A batch has rows of {shape[-1]} tokens, more than the {limits.positions} positions of the model: "
            f"truncate rows with tokenizer(..., truncation=True, max_length={limits.positions})."
        )
    values = first or inputs["input_ids"].device.type == "cpu"
    for name in (name for name in shapes if values and name in limits.sizes and inputs[name].numel()):
        lowest, highest = inputs[name].min().item(), inputs[name].max().item()
        if lowest < 0 or highest >= limits.sizes[name]:
            raise ValueError(
                f"'{name}' of a batch holds {lowest if lowest < 0 else highest}, which is none of the "
                f"{limits.sizes[name]} rows of the model's embedding table: use the tokenizer of the model."
            )


def blocks(rows: Any, names: Sequence[str], every: bool = False) -> Iterator[tuple[int, pa.Table]]:
    """Columns of a `datasets.Dataset` or list as tables with the number of their first row.

    Args:
        rows: Any data set; others yield nothing, as reading them may change what they return next.
        names: The columns; those that the rows lack are left out.
        every: Whether to read all rows. By default blocks are left out of more than 200,000.
    """
    if isinstance(rows, datasets.Dataset) and rows.format["type"] != "custom":
        arrow = rows.with_format("arrow").select_columns([name for name in names if name in rows.column_names])
        for start in _starts(len(rows), every):
            yield start, arrow[start : start + BLOCK]
    elif isinstance(rows, list) and rows and isinstance(rows[0], Mapping):
        present = [name for name in names if name in rows[0]]
        for start in _starts(len(rows), every):
            block = rows[start : start + BLOCK]
            columns = {name: _column([row.get(name) for row in block]) for name in present}
            yield start, pa.table({name: column for name, column in columns.items() if column is not None})


def _starts(count: int, every: bool) -> Sequence[int]:
    starts = range(0, count, BLOCK)
    if every or count <= ROWS:
        return starts
    return [starts[number] for number in np.linspace(0, len(starts) - 1, ROWS // BLOCK).astype(int).tolist()]


def _column(values: list) -> pa.Array | None:
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # objects of the user's, which a collator may understand
        return None


def take_rows(rows: Iterable[Mapping[str, Any]], names: Sequence[str], count: int | None = None) -> list[dict]:
    """Columns of rows as lists of numbers: of the first `count` rows, or of `count` rows that are evenly spread if the
    number of rows is known.

    Args:
        rows: Tokenised rows.
        names: The columns; those that a row lacks are left out.
        count: The number of rows; None takes all.

    Raises:
        TypeError: If these are no rows, or if one of them has no columns.
    """
    if not isinstance(rows, Iterable) and not hasattr(rows, "__getitem__"):
        raise TypeError(f"{type(rows).__name__} is no data set: pass tokenised rows, each with input_ids.")
    chosen: Iterable[Mapping[str, Any]] = islice(rows, count)
    if count is not None and hasattr(rows, "__getitem__") and hasattr(rows, "__len__"):
        numbers = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        chosen = (rows[number] for number in numbers.tolist())
    taken = []
    for number, row in enumerate(chosen):
        if not isinstance(row, Mapping):
            raise TypeError(f"Row {number} is {type(row).__name__}: pass tokenised rows, each with input_ids.")
        taken.append({name: _as_list(row[name]) for name in names if name in row})
    return taken


def _as_list(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else list(values) if isinstance(values, Iterable) else values


# ---- One block ----


def _check_block(table: pa.Table, limits: InputLimits, where: str, start: int) -> None:
    columns = [
        Column(table[name], name, where, start, levels=2 if limits.choices else 1)
        for name in COLUMNS
        if name in table.column_names
    ]
    tokens, *others = columns
    tokens.check_not_empty()
    if limits.positions is not None:
        tokens.check_length(limits.positions)
    for column in others:
        column.check_one_each(tokens)
    for column in columns:
        if column.name in limits.sizes:
            column.check_range(limits.sizes[column.name])
        elif column.name == "attention_mask":
            column.check_any_token()
    if "attention_mask" not in table.column_names and limits.pad_token_id is not None:
        tokens.check_unpadded(limits.pad_token_id)


class Column:
    """A column of lists of integers, one sequence a row, or one a choice.

    Args:
        array: The column.
        name: Its name.
        where: What messages call the data set.
        start: The number of the first row.
        levels: 1, or 2 for choices.

    Raises:
        ValueError: If it is of another type or if a value is missing.
    """

    def __init__(self, array: pa.ChunkedArray, name: str, where: str, start: int, levels: int):
        self.name, self.where, self.start, self.levels, self.type = name, where, start, levels, array.type
        values, rows = array.combine_chunks(), np.arange(len(array))
        self.row_count = len(array)
        for _ in range(levels):
            self.refuse(rows[_missing(values)], "is missing (None): remove the row or tokenise it again")
            if not is_list(values.type):
                self._refuse_type(values.type)
            self.lengths, self.rows_of_sequences = pc.list_value_length(values).to_numpy(False), rows
            values, rows = values.flatten(), np.repeat(rows, self.lengths)
        numbers = pa.types.is_integer(values.type) or pa.types.is_boolean(values.type) or not len(values)
        if not numbers and not (pa.types.is_floating(values.type) and name == "attention_mask"):
            self._refuse_type(values.type)
        self.refuse(rows[_missing(values)], "holds None: tokenise the row again")
        self.values, self.rows_of_values = values.to_numpy(False), rows

    def refuse(self, rows: np.ndarray, reason: str) -> None:
        """Raise ValueError that names the first of `rows`, if there is one."""
        if len(rows):
            raise ValueError(f"Row {self.start + rows[0]} of {self.where}: '{self.name}' {reason}.")

    def _refuse_type(self, dtype: pa.DataType) -> None:
        kind = "a list of integers for each choice of a row" if self.levels == 2 else "one list of integers a row"
        more = ": masks of (S, S) are not supported" if is_list(dtype) and "mask" in self.name else ""
        raise ValueError(f"'{self.name}' of {self.where} is of type {self.type}, not {kind}{more}.")

    def check_not_empty(self) -> None:
        """Every sequence has a token."""
        self.refuse(self.rows_of_sequences[self.lengths == 0], "is empty: remove rows without tokens")

    def check_length(self, positions: int) -> None:
        """No sequence has more tokens than there are positions."""
        wrong = self.lengths > positions
        reason = "has {} tokens, more than the {} positions of the model: truncate rows with tokenizer(..., {})"
        self.refuse(
            self.rows_of_sequences[wrong],
            reason.format(self.lengths.max(initial=0), positions, f"truncation=True, max_length={positions}"),
        )

    def check_one_each(self, tokens: "Column") -> None:
        """Every row has as many numbers as it has tokens."""
        counts = [np.bincount(column.rows_of_values, minlength=self.row_count) for column in (self, tokens)]
        wrong = np.flatnonzero(counts[0] != counts[1])
        reason = "has {} numbers for {} tokens: give one for each token".format(*(c[wrong[:1]].sum() for c in counts))
        self.refuse(wrong, reason)

    def check_range(self, size: int) -> None:
        """Every value is from 0 to `size` − 1."""
        wrong = (self.values < 0) | (self.values >= size)
        value = self.values[wrong][0] if wrong.any() else None
        reason = f"holds {value}, and the model has a table of {size} (0 to {size - 1}): use the model's own tokenizer"
        self.refuse(self.rows_of_values[wrong], reason)

    def check_any_token(self) -> None:
        """Every row has a token that is not masked."""
        real = np.bincount(self.rows_of_values[self.values != 0], minlength=self.row_count)
        self.refuse(np.flatnonzero(real == 0), "is 0 at every token: remove rows without tokens")

    def check_unpadded(self, pad_token_id: int) -> None:
        """No sequence begins or ends with padding."""
        ends = self.lengths.cumsum() - 1
        padded = (self.values[ends] == pad_token_id) | (self.values[ends - self.lengths + 1] == pad_token_id)
        self.refuse(
            self.rows_of_sequences[padded],
            f"is padded with {pad_token_id} and there is no column attention_mask, so that padding would be attended "
            "to: keep the tokenizer's attention_mask, or do not pad rows before they are batched",
        )


def _missing(array: pa.Array) -> np.ndarray:
    return array.is_null().to_numpy(False)


def is_list(dtype: pa.DataType) -> bool:
    """Whether values are lists."""
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
