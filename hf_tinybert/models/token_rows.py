"""The rows of a model's token embeddings, and of a head that predicts tokens, for another vocabulary."""

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


def with_rows(model: PreTrainedModel, sources: Sequence[Sequence[int]], new_ids: Mapping[int, int]) -> PreTrainedModel:
    """A copy of a model with other rows for its tokens.

    Args:
        model: The model. It does not change.
        sources: For each new token, the old ids whose rows it takes the mean of; the mean of all rows if there are
            none.
        new_ids: Old id → new id, for the special tokens that the configuration names.

    Returns:
        A model whose vocabulary has as many tokens as `sources` has entries.
    """
    new = copy.deepcopy(model)
    new.name_or_path = ""  # the tokenizer that is stored there is not this model's
    padded = model.get_input_embeddings().padding_idx is not None
    new.resize_token_embeddings(len(sources), mean_resizing=False)
    flat, lengths = torch.tensor([old for rows in sources for old in rows]), torch.tensor([*map(len, sources)])
    with torch.no_grad():
        for table, new_table in zip(_tables(model), _tables(new), strict=True):
            rows = table.view(len(table), -1)  # a bias is a column
            starts = lengths.cumsum(0) - lengths
            means = F.embedding_bag(flat.to(rows.device), rows, starts.to(rows.device), mode="mean")
            means[(lengths == 0).to(rows.device)] = rows.mean(0)
            new_table.copy_(means.view_as(new_table))
    for name, old in _special_token_ids(model).items():
        setattr(new.config, name, new_ids.get(old))
    if padded:
        new.get_input_embeddings().padding_idx = new.config.pad_token_id
    return new


def ids_to_keep(model: PreTrainedModel) -> set[int]:
    """The ids that the configuration names, and those up to padding if positions are counted from it."""
    # MPNet counts from the id 1 whatever its configuration says.
    last = max([*_counted_from(model), -1])
    return set(_special_token_ids(model).values()) | set(range(last + 1))


def counts_positions_from_padding(model: PreTrainedModel) -> bool:
    """Whether the first token's position follows a row for padding, as in RoBERTa."""
    return bool(_counted_from(model))


def _counted_from(model: PreTrainedModel) -> list[int]:
    """The padding rows of the tables beside the token embeddings."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    paddings = [table.padding_idx for table in tables if table is not model.get_input_embeddings()]
    return [padding for padding in paddings if padding is not None]


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The token embeddings, and weight and bias of a head that predicts tokens."""
    head = model.get_output_embeddings()
    tables = [] if head is None else [head.weight] if head.bias is None else [head.weight, head.bias]
    return [model.get_input_embeddings().weight, *tables]


def _special_token_ids(model: PreTrainedModel) -> dict[str, int]:
    """The entries of the configuration such as pad_token_id."""
    named = model.config.to_dict().items()
    return {name: value for name, value in named if name.endswith("_token_id") and value is not None}
