"""Whether the rows of a trainer fit its models and losses: checked by column before training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, default_data_collator

from ..models.prediction_heads import (
    Choices,
    Classes,
    Labels,
    MaskedTokens,
    PredictionHead,
    Regression,
    TokenClasses,
    prediction_head_of,
)
from ..models.row_checks import InputLimits, blocks, check_rows

LABELS = ("labels", "label", "label_ids")
IGNORED = -100


def check_data(trainer: Trainer, teachers: Sequence[PreTrainedModel]) -> None:
    """Check the training rows, and the evaluation rows if training evaluates.

    Streams are not read. Rows that a data collator of the user's batches are not checked here, as it may change them:
    their first batch is.

    Args:
        trainer: The trainer.
        teachers: The teachers.

    Raises:
        ValueError: If a row does not fit; the message names row and column and says what to change.
    """
    if not type(trainer.data_collator).__module__.startswith("transformers") and (
        trainer.data_collator is not default_data_collator
    ):
        return
    named = {"train_dataset": trainer.train_dataset}
    if trainer.args.eval_strategy != "no":
        evaluated = trainer.eval_dataset
        names = evaluated if isinstance(evaluated, Mapping) else {}
        named |= {f"eval_dataset['{name}']": evaluated[name] for name in names} or {"eval_dataset": evaluated}
    models = [trainer.model, *teachers]
    head, pads = prediction_head_of(models[0]), trainer.data_collator is not default_data_collator
    limits = InputLimits.of_models(models, choices="choices" in head.input_axes)
    label_loss = any("loss" in loss.reads for loss in trainer.losses)
    for where, dataset in named.items():
        check_tokenised(dataset, where)
        check_rows(dataset, limits, where)
        check_labels(dataset, head, models[0].config, where, read=label_loss or where != "train_dataset")
        if not pads:
            check_equal_lengths(dataset, where)


def check_tokenised(rows: Any, where: str) -> None:
    """Check that a data set has tokens.

    Raises:
        ValueError: If it has none.
    """
    columns = getattr(rows, "column_names", None) or []
    if columns and not {"input_ids", "inputs_embeds"} & {*columns}:
        raise ValueError(f"{where} has no column input_ids, only {columns}: tokenise it first.")


def check_equal_lengths(rows: Any, where: str) -> None:
    """Check that rows that nothing pads are equally long.

    Raises:
        ValueError: If they are not.
    """
    lengths: set[int] = set()
    for _, table in blocks(rows, ["input_ids"]):
        for column in table.columns:
            lengths |= set(np.unique(column.combine_chunks().value_lengths().to_numpy(False)))
    if len(lengths) > 1:
        raise ValueError(
            f"Rows of {where} have {min(lengths)} to {max(lengths)} tokens and nothing pads them: pass "
            "processing_class=tokenizer, or a data_collator that pads."
        )


def check_labels(rows: Any, head: PredictionHead, config: PreTrainedConfig, where: str, read: bool) -> None:
    """Check the labels of rows.

    Args:
        rows: The rows; a stream is not read.
        head: The kind of the student's prediction head.
        config: The student's configuration.
        where: What messages call the rows.
        read: Whether a loss is computed from the labels, so that they have to be labels of the head.

    Raises:
        ValueError: If a label is missing or of another type; if they are read, also if it is not finite or none of the
            head's, or if all are −100.
    """
    names = LABELS if head.label_names == ("labels",) else head.label_names
    predicted = {}
    for start, table in blocks(rows, ["input_ids", *names]):
        for name in (name for name in names if name in table.column_names):
            place = f"of {where}: '{name}'"
            values, numbers = _flat(table[name].combine_chunks(), place, start)
            if isinstance(head, (TokenClasses, MaskedTokens)):
                _check_one_each(table, name, place, start)
            if read and len(values):
                _check_values(values, numbers, head, config, place, start)
                predicted[name] = predicted.get(name, False) or bool((values != IGNORED).any())
    for name, some in predicted.items():
        if not some:
            raise ValueError(f"'{name}' of {where} is {IGNORED} everywhere, so that there is nothing to predict.")


def _flat(array: pa.Array, place: str, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Every label, and the number of its row in the block."""
    rows = np.arange(len(array))
    while True:
        missing = rows[array.is_null().to_numpy(False)]
        if len(missing):
            raise ValueError(f"Row {start + missing[0]} {place} is missing (None): remove rows without a label.")
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            break
        rows, array = np.repeat(rows, array.value_lengths().to_numpy(False)), array.flatten()
    numeric = pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)
    if not numeric and len(array):
        raise ValueError(f"Row {start} {place} is of type {array.type}: give label ids, or numbers to regress.")
    return array.to_numpy(False), rows


def _check_one_each(table: pa.Table, name: str, place: str, start: int) -> None:
    lists = [table[column].combine_chunks() for column in (name, "input_ids") if column in table.column_names]
    if len(lists) == 2 and all(hasattr(array, "value_lengths") for array in lists):
        labels, tokens = (array.value_lengths().to_numpy(False) for array in lists)
        wrong = np.flatnonzero(labels != tokens)
        if len(wrong):
            row = wrong[0]
            raise ValueError(
                f"Row {start + row} {place} has {labels[row]} labels for {tokens[row]} tokens: give one for each "
                f"token, {IGNORED} where there is none."
            )


def _check_values(
    values: np.ndarray, numbers: np.ndarray, head: PredictionHead, config: PreTrainedConfig, place: str, start: int
) -> None:
    if values.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise ValueError(
                f"Row {start + numbers[wrong[0]]} {place} is {values[wrong[0]]}: remove rows without a label."
            )
    size = _label_count(head, config)
    if size is not None and values.dtype.kind in "iu":
        wrong = np.flatnonzero(((values < 0) | (values >= size)) & (values != IGNORED))
        if len(wrong):
            raise ValueError(
                f"Row {start + numbers[wrong[0]]} {place} is {values[wrong[0]]}, and the student has {size} labels, 0 "
                f"to {size - 1}: set num_labels of the models, or number the labels from 0."
            )


def _label_count(head: PredictionHead, config: PreTrainedConfig) -> int | None:
    if isinstance(head, (Regression, Labels, Choices)):
        return None
    if isinstance(head, MaskedTokens):
        return config.vocab_size
    return config.num_labels if isinstance(head, (Classes, TokenClasses)) else None
