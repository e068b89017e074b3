"""Sentence embeddings of an encoder, for example of a student that was trained with `SentenceLoss`."""

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
    """The pooled last hidden states of texts. The prediction head of the model does not run.

    Args:
        model: An encoder, with or without a prediction head. It runs in eval mode and has its mode back afterwards.
        tokenizer: Its tokenizer.
        texts: N texts.
        pooling: "mean" over real tokens (default) or "first", the first token.
        max_length: Tokens of a text, at most (default 128); longer texts are truncated.
        batch_size: Texts in a forward pass (default 64).

    Returns:
        (N, D) in float32 on the CPU.

    Raises:
        ValueError: For an unknown pooling.
    """
    encoder, embeddings = model.base_model, torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
    with evaluation_mode(encoder):
        for start in tqdm(range(0, len(texts), batch_size), desc="Embedding"):
            chosen = order[start : start + batch_size]
            batch = [texts[index] for index in chosen]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            inputs = inputs.to(model.device)
            hidden = encoder(**inputs).last_hidden_state
            embeddings[chosen] = pool(hidden, inputs["attention_mask"], pooling).float().cpu()
    return embeddings
