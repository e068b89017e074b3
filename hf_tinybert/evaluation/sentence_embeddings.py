"""Sentence embeddings of an encoder, to look at what `SentenceLoss` has taught."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..losses.sentence import pool
from ..models.forward import evaluation_mode


@torch.no_grad()
def sentence_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pooling: str = "mean",
    max_length: int = 128,
    batch_size: int = 64,
) -> Tensor:
    """The embeddings of `texts`, (N, D) in float32 on the CPU: pooled last hidden states (`pool`), texts cut to
    `max_length` tokens. A head, if any, is left out; the model's mode stays. Raises ValueError for an unknown pooling.
    """
    encoder, embeddings = model.base_model, torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
    options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    with evaluation_mode(encoder):
        for start in tqdm(range(0, len(texts), batch_size), desc="Embedding"):
            chosen = order[start : start + batch_size]
            inputs = tokenizer([texts[index] for index in chosen], **options).to(model.device)
            hidden = encoder(**inputs).last_hidden_state
            embeddings[chosen] = pool(hidden, inputs["attention_mask"], pooling).float().cpu()
    return embeddings
