"""Whether the columns of a data set hold what a task reads in every row: checked by column, not row by row."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..models.row_checks import blocks, is_list


def check_texts(rows: datasets.Dataset, columns: Iterable[str], where: str, levels: int = 0) -> None:
    """Check that columns hold strings, or lists of strings, in every row. Empty strings are texts too.

    Args:
        rows: Rows of a split.
        columns: The names of the columns.
        where: What messages call the split.
        levels: 0 for strings, 1 for lists of strings.

    Raises:
        ValueError: If a text is missing or something else; the message names the row and the column.
    """
    for name in columns:
        check_column(rows, name, where, _is_string, "a list of strings" if levels else "a string", levels)


def check_scores(rows: datasets.Dataset, column: str, where: str) -> None:
    """Check that a column holds a finite number in every row.

    Raises:
        ValueError: If it does not; the message names the row and the column.
    """
    check_column(rows, column, where, _is_number, "a number")
    for start, table in blocks(rows, [column], every=True):
        values = table[column].combine_chunks().to_numpy(False)
        if len(wrong := np.flatnonzero(~np.isfinite(values))):
            row = wrong[0]
            raise ValueError(
                f"Row {start + row} of {where}: '{column}' is {values[row]}: remove rows without a score."
            )


def check_column(
    rows: datasets.Dataset,
    name: str,
    where: str,
    accepts: Callable[[pa.DataType], bool] = lambda dtype: True,
    kind: str = "a value",
    levels: int = 0,
) -> None:
    """Check the type of a column, and that no value of it is missing.

    Args:
        rows: Rows of a split.
        name: The name of the column.
        where: What messages call the split.
        accepts: Whether values may have a type.
        kind: What messages call such a value.
        levels: The number of lists around a value.

    Raises:
        ValueError: If a value is missing or of another type; the message names the row and the column.
    """
    for start, table in blocks(rows, [name], every=True):
        values, numbers = table[name].combine_chunks(), np.arange(len(table))
        for level in range(levels + 1):
            if len(missing := numbers[values.is_null().to_numpy(False)]):
                part = "holds None" if level else "is missing (None)"
                raise ValueError(f"Row {start + missing[0]} of {where}: '{name}' {part}: fill it, or remove the row.")
            if level < levels and is_list(values.type):
                numbers = np.repeat(numbers, pc.list_value_length(values).to_numpy(False))
                values = values.flatten()
            elif level < levels or not (accepts(values.type) or pa.types.is_null(values.type)):
                raise ValueError(f"'{name}' of {where} is of type {table[name].type}: each row needs {kind}.")


def check_answers(rows: datasets.Dataset, column: str, context: str, where: str) -> None:
    """Check that a column holds SQuAD's answers in every row: `text` and `answer_start`, two lists of equal length,
    and that each text is in the context at its start.

    Args:
        rows: Rows of a split.
        column: The name of the column of answers.
        context: The name of the column of contexts.
        where: What messages call the split.

    Raises:
        ValueError: If it does not; the message names the row and the column.
    """
    form = "{'text': [...], 'answer_start': [...]}, with empty lists if there is no answer"
    check_column(rows, column, where, _is_answers, form)
    for start, table in blocks(rows, [column, context], every=True):
        answers, lengths = table[column].combine_chunks(), []
        for part in ("text", "answer_start"):
            lists = answers.field(part)
            wrong = lists.is_null().to_numpy(False)
            if not wrong.any():
                lengths.append(pc.list_value_length(lists).to_numpy(False))
                inner = np.repeat(np.arange(len(lists)), lengths[-1])[lists.flatten().is_null().to_numpy(False)]
                wrong[inner] = True
            if wrong.any():
                raise ValueError(f"Row {start + wrong.argmax()} of {where}: '{column}' holds None, not {form}.")
        if len(wrong := np.flatnonzero(lengths[0] != lengths[1])):
            row = wrong[0]
            raise ValueError(
                f"Row {start + row} of {where}: '{column}' has {lengths[0][row]} texts and {lengths[1][row]} starts."
            )
        for row, (answer, text) in enumerate(zip(answers.to_pylist(), table[context].to_pylist(), strict=True), start):
            _check_starts(answer, text, f"Row {row} of {where}: '{column}'")


def _check_starts(answers: Mapping[str, Sequence], context: str, where: str) -> None:
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if context[start : start + len(text)] != text:
            place = context.find(text)
            advice = "the context does not have it" if place < 0 else f"it first begins at {place}"
            raise ValueError(
                f"{where} has the text {text!r} and answer_start {start}, where the context has "
                f"{context[start : start + len(text)]!r}: correct answer_start, or remove the row ({advice})."
            )


def _is_string(dtype: pa.DataType) -> bool:
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_floating(dtype) or pa.types.is_integer(dtype)


def _is_answers(dtype: pa.DataType) -> bool:
    names = {field.name: field.type for field in dtype} if pa.types.is_struct(dtype) else {}
    return all(is_list(names.get(part, pa.null())) for part in ("text", "answer_start"))
