"""The licences of what a student was made from, as the cards of the Hub and data sets state them."""

import os
from collections.abc import Iterator
from pathlib import Path

import datasets
from huggingface_hub import DatasetCard, ModelCard
from transformers import PretrainedConfig
from transformers.utils import logging

from ..lineage import Lineage, is_hub_id

logger = logging.get_logger(__name__)


def licences_of(
    config: PretrainedConfig, rows: datasets.Dataset | None = None, teacher: str | os.PathLike | None = None
) -> list[str]:
    """A paragraph of the card that lists the licences that are known; empty if none is.

    Trainer's card has a licence of its own, that of the model that training started from. It stays as it is.

    Args:
        config: The student's configuration, whose lineage names its teachers and data.
        rows: Rows that the student is scored on, which may state their licence.
        teacher: A teacher that the lineage may not name: a folder with a card, or an id of the Hub.
    """
    known = [f"- {what}: {licence}" for what, licence in dict(_licences(config, rows, teacher)).items()]
    return ["Licences, as their cards state them:\n\n" + "\n".join(known)] if known else []


def _licences(
    config: PretrainedConfig, rows: datasets.Dataset | None, teacher: str | os.PathLike | None
) -> Iterator[tuple[str, str]]:
    """What it is → its licence."""
    lineage = Lineage.from_config(config) or Lineage()
    models = [*lineage.hub_ids, *([str(teacher)] if teacher else [])]
    for name in dict.fromkeys(models):
        if licence := _stated(ModelCard, name):
            yield f"model `{name if is_hub_id(name) else Path(name).name}`", licence
    for name in dict.fromkeys(stage.data.name for stage in lineage.stages):
        # A name without a user may be that of a file.
        if name and "/" in name and is_hub_id(name) and (licence := _stated(DatasetCard, name)):
            yield f"data `{name}`", licence
    if rows is not None and rows.info.license:
        name = rows.info.dataset_name
        yield f"data `{name}`" if name else "held-out rows", rows.info.license


def _stated(kind: type[ModelCard] | type[DatasetCard], name: str) -> str | None:
    """The licence in a card; None without one, or without a network."""
    card = Path(name, "README.md") if os.path.isdir(name) else name
    if isinstance(card, Path) and not card.is_file():
        return None
    try:
        data = kind.load(card).data
    except Exception as error:  # a card never stops a run, whatever is wrong with it or with the network
        logger.info(f"The card of '{name}' cannot be read, so that its licence stays unsaid: {error}")
        return None
    stated = data.get("license_name") or data.license
    return ", ".join(stated) if isinstance(stated, list) else stated
