"""The order in which Trainer evaluates rows, which are recognised by their tokens."""

from collections.abc import Sequence

import numpy as np
from transformers import EvalPrediction

INPUTS = {"include_for_metrics": ["inputs"]}  # arguments of Trainer that `row_order` needs


def row_order(prediction: EvalPrediction, rows: Sequence[Sequence[int]]) -> list[int]:
    """Where each row is in a prediction of Trainer, which may have evaluated them in another order.

    Args:
        prediction: The prediction, with its inputs.
        rows: The tokens of the rows, unpadded; all end with the same separator.

    Raises:
        ValueError: If the prediction does not hold its inputs.
    """
    if prediction.inputs is None:
        raise ValueError("These rows are scored with include_for_metrics=['inputs'] in the arguments.")
    separator = rows[0][-1]
    places = {_key(ids, separator): index for index, ids in enumerate(prediction.inputs)}
    return [places[_key(ids, separator)] for ids in rows]


def _key(ids: Sequence[int], separator: int) -> bytes:
    """Bytes that are equal for equal tokens, whatever the padding after them."""
    ids = np.asarray(ids, "i8")
    return ids[: 1 + np.flatnonzero(ids == separator)[-1]].tobytes()
