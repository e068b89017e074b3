"""The rows on which models are measured: in batches of similar length, and their outputs in the order of the rows."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.forward import forward_columns
from ..models.prediction_heads import prediction_head_of

Batch = dict[str, np.ndarray]


def input_columns(model: PreTrainedModel) -> list[str]:
    """The inputs that `model.forward` names, without the labels of its prediction head."""
    labels = prediction_head_of(model).label_names
    return [name for name in forward_columns(model) if name not in labels]


class EvaluationRows:
    """Tokenised rows with labels, for models with one kind of prediction head.

    Args:
        dataset: Rows of tokens, and the columns of labels that the prediction head takes.
        models: The models that read them.
        processing_class: The tokenizer, which pads.

    Attributes:
        lengths: The number of tokens of each row; in multiple choice of all choices together.
        by_length: The row numbers, shortest row first.
        typical: The number of the row whose length is nearest to the mean.
    """

    def __init__(self, dataset: Dataset, models: Sequence[PreTrainedModel], processing_class: PreTrainedTokenizerBase):
        head = prediction_head_of(models[0])
        inputs = {name for model in models for name in input_columns(model)} & {*dataset.column_names}
        self.label_names = head.label_names
        self.rows = dataset.with_format(None).select_columns([*inputs, *self.label_names])
        self._collate = head.collator(models[0], processing_class)
        self.lengths = np.array([_token_count(ids) for ids in self.rows["input_ids"]])
        self.by_length = np.argsort(self.lengths, kind="stable")
        self.typical = int(np.abs(self.lengths - self.lengths.mean()).argmin())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def token_counts(self) -> dict[str, float]:
        """Tokens of a row: `mean`, `max`, and `flops`, those of the typical row."""
        mean, longest, typical = self.lengths.mean(), self.lengths.max(), self.lengths[self.typical]
        return {"mean": float(mean), "max": int(longest), "flops": int(typical)}

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The rows with these numbers, padded."""
        batch = self._collate(list(self.rows.select(numbers)))
        return {name: np.asarray(values) for name, values in batch.items()}

    def sequences(self, count: int) -> dict[str, torch.Tensor]:
        """The inputs of the first rows for a figure, (sequences, S) each; in multiple choice each choice is one."""
        batch = self.batch(range(min(count, len(self))))
        return {
            name: torch.from_numpy(values).reshape(-1, values.shape[-1])
            for name, values in batch.items()
            if name not in self.label_names
        }

    def chunks(self, size: int) -> list[np.ndarray]:
        """The numbers of the rows of each batch, rows of similar length together."""
        return [self.by_length[start : start + size] for start in range(0, len(self), size)]

    def spread(self, count: int) -> np.ndarray:
        """The numbers of `count` rows, spread evenly over the lengths."""
        return self.by_length[np.linspace(0, len(self) - 1, count).round().astype(int)]

    def labels(self, batch: Batch) -> np.ndarray:
        """The labels of a batch: (B,), (B, S) or (B, C); (B, 2) for start and end positions."""
        columns = [batch[name] for name in self.label_names]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=-1)

    def unstack(self, values: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Logits or labels as Trainer passes them on: a tuple along the last axis for several columns of labels."""
        return values if len(self.label_names) == 1 else tuple(np.moveaxis(values, -1, 0))

    def join(self, batches: Sequence[np.ndarray], numbers: Sequence[np.ndarray], fill: float = -100) -> np.ndarray:
        """Batches of values as one array in the order of the rows.

        Args:
            batches: (B, ...) each; the sizes of the other axes may differ.
            numbers: The numbers of the rows of each batch.
            fill: The value of padding.
        """
        shape = np.max([batch.shape[1:] for batch in batches], axis=0).astype(int)
        joined = np.full((len(self), *shape), fill, dtype=batches[0].dtype)
        for batch, rows in zip(batches, numbers, strict=True):
            joined[(rows, *map(slice, batch.shape[1:]))] = batch
        return joined


def _token_count(input_ids: Sequence) -> int:
    nested = isinstance(input_ids[0], list)
    return sum(map(len, input_ids)) if nested else len(input_ids)
