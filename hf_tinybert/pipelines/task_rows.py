"""The rows that the phases of a task distillation read: labelled rows, transfer rows and their variants."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import datasets
import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..sound_caches import with_sound_caches
from ..tasks import Augmentation, Task
from ..tasks.transfer import TransferData
from ..teachers.logit_cache import cache_logits
from ..teachers.teacher import TEACHER_LOGITS
from .data import held_out_count
from .phase import Phase
from .runs import TrainingData

logger = logging.get_logger(__name__)
SAMPLED_ROWS = 1000


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task distillation.

    Args:
        task: The task.
        data: Its splits; without `train` if no row has a label.
        tokenizer: The tokenizer.
        transfer: The transfer rows; None if there are none.
        augmentation: Makes variants of the rows; None for none.
        augmented: The columns in which it changes words.
    """

    task: Task
    data: datasets.DatasetDict
    tokenizer: PreTrainedTokenizerBase
    transfer: TransferData | None = None
    augmentation: Augmentation | None = None
    augmented: Sequence[str] = ()

    @property
    def transfer_rows(self) -> datasets.Dataset | None:
        """The transfer rows that the teacher has to label."""
        return None if self.transfer is None or self.transfer.has_logits else self.transfer.rows

    def tokens(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Rows after `Task.tokenize`."""
        with PartialState().main_process_first():
            return with_sound_caches(rows, partial(self.task.tokenize, rows, self.tokenizer))

    def plain(self, labelled: bool = False) -> datasets.Dataset | None:
        """The rows without variants: those with labels alone, or with the transfer rows that the teacher labels."""
        train = self.data.get("train")
        if labelled or self.transfer_rows is None:
            return train
        if train is None:
            return self.transfer_rows
        text = datasets.Features({name: datasets.Value("string") for name in self.task.text})  # files have other ones
        parts = [part.select_columns([*text]).cast(text) for part in (train, self.transfer_rows)]
        return datasets.concatenate_datasets(parts)

    @property
    def texts(self) -> datasets.Dataset:
        """The rows without variants, or those of another model if there are no others."""
        plain = self.plain()
        return self.transfer.rows if plain is None else plain

    def sample(self) -> datasets.Dataset:
        """Up to 1,000 of `texts` after `Task.tokenize`, evenly spaced."""
        texts = self.texts
        return self.tokens(texts.select(range(0, len(texts), math.ceil(len(texts) / SAMPLED_ROWS))))

    def reads_soft_labels(self, phase: Phase) -> bool:
        """Whether a phase trains on rows that another model has labelled: if its losses read logits alone."""
        return self.transfer is not None and self.transfer.has_logits and phase.reads == {"logits"}

    def for_phase(self, phase: Phase, teachers: Sequence[PreTrainedModel]) -> TrainingData:
        """What a phase trains on: labelled rows if its losses read labels, otherwise all rows; with their variants if
        it is `augmented`; with the teachers' logits if its losses read them."""
        augmentation = self.augmentation if phase.augmented else None
        parts = []
        if teachers or "logits" not in phase.reads:
            for rows in map(self.tokens, self._sources(augmentation, labelled="loss" in phase.reads)):
                parts.append(self._with_logits(rows, phase, teachers) if "logits" in phase.reads else rows)
        if self.reads_soft_labels(phase):
            parts.append(self._soft_labelled())
        return replace(
            self.selecting(),
            rows=_joined(parts),
            augmentation=augmentation.record if augmentation else None,
        )

    def _sources(self, augmentation: Augmentation | None, labelled: bool) -> list[datasets.Dataset]:
        """Rows and their variants, or, without variants, labelled rows and transfer rows apart: the logits of the
        labelled rows, which two phases read, are then computed once."""
        if augmentation is not None:
            plain = self.plain(labelled)
            return [] if plain is None else [augmentation(plain, self.augmented)]
        sources = (self.data.get("train"), None if labelled else self.transfer_rows)
        return [rows for rows in sources if rows is not None]

    def labelled(self) -> TrainingData:
        """The rows with labels, without variants."""
        return replace(self.selecting(), rows=self.tokens(self.plain(labelled=True)))

    def _with_logits(
        self, rows: datasets.Dataset, phase: Phase, teachers: Sequence[PreTrainedModel]
    ) -> datasets.Dataset:
        return cache_logits(
            teachers,
            rows,
            self.tokenizer,
            data_collator=self.task.collator(self.tokenizer),
            weights=phase.arguments.get("teacher_weights"),
            how=phase.arguments.get("teacher_logits", "mean"),
            dtype=phase.arguments.get("teacher_dtype"),
        )

    def _soft_labelled(self) -> datasets.Dataset:
        """The tokens and the logits of transfer rows that another model has labelled."""
        rows = self.transfer.rows
        logits = rows.select_columns([TEACHER_LOGITS])
        return datasets.concatenate_datasets([self.tokens(rows), logits], axis=1)

    def selecting(self) -> TrainingData:
        """The split that selects the student, with nothing to train on."""
        name = self.task.validation[0]
        tokens = self.tokens(self.data[name])
        collator = self.task.collator(self.tokenizer)
        score = self.task.scorer(self.data[name], tokens)
        return TrainingData(None, self.tokenizer, collator, tokens, score, self.task.name)

    def with_validation(self, teachers: Sequence[PreTrainedModel], phase: Phase) -> "TaskRows":
        """The same with some of the transfer rows held out, which a student is scored on by its agreement with the
        teachers, or with the other model that labelled them."""
        rows = self.transfer.rows
        chosen = np.random.default_rng(0).permutation(len(rows))[: held_out_count(len(rows))]
        held_out = rows.select(sorted(chosen.tolist()))
        if not self.transfer.has_logits:
            logits = self._with_logits(self.tokens(held_out), phase, teachers).select_columns([TEACHER_LOGITS])
            held_out = datasets.concatenate_datasets([held_out, logits], axis=1)
        logger.info(f"No labels: the student is scored by its agreement on {len(held_out)} held-out transfer rows.")
        training = rows.select(sorted({*range(len(rows))} - {*chosen.tolist()}))
        data = datasets.DatasetDict({**self.data, self.task.validation[0]: self.task.with_answers(held_out)})
        return replace(self, data=data, transfer=replace(self.transfer, rows=training))


def token_sequences(tokens: datasets.Dataset) -> list[list[int]]:
    """The token ids of each sequence; a row of multiple choice has several."""
    sequences = tokens["input_ids"][:]
    return list(chain.from_iterable(sequences)) if isinstance(sequences[0][0], list) else sequences


def _joined(parts: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """The rows of all parts, in the columns that they share."""
    shared = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    parts = [part.select_columns(shared) for part in parts]
    return datasets.concatenate_datasets([parts[0], *(part.cast(parts[0].features) for part in parts[1:])])
