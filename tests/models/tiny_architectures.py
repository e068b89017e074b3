"""Tiny models of many architectures for the tests of this folder: {model type: (class, configuration)}."""

import gc
from contextlib import contextmanager

import torch
import transformers
from conftest import VOCAB, build

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
DISTILBERT = {
    "vocab_size": VOCAB,
    "initializer_range": 0.3,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
MODERN = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64, "initializer_range": 0.3}
OPT = {"word_embed_proj_dim": 16, "ffn_dim": 32, "dropout": 0.0, "init_std": 0.3}


def _tiny(prefix: str, suffix: str = "ForSequenceClassification", **config):
    return getattr(transformers, prefix + suffix), getattr(transformers, f"{prefix}Config")(**config)


THROUGH_THE_INTERFACE = {
    "bert": _tiny("Bert", **SIZES),
    "roberta": _tiny("Roberta", **SIZES),
    "xlm-roberta": _tiny("XLMRoberta", **SIZES),
    "camembert": _tiny("Camembert", **SIZES),
    "distilbert": _tiny("DistilBert", **DISTILBERT),
    "electra": _tiny("Electra", embedding_size=8, **SIZES),
    "albert": _tiny("Albert", embedding_size=8, **SIZES),
    "modernbert": _tiny("ModernBert", **SIZES, **MODERN),
    "roberta-prelayernorm": _tiny("RobertaPreLayerNorm", **SIZES),
    "xlm-roberta-xl": _tiny("XLMRobertaXL", **SIZES),
}
BY_FALLBACK = {
    "deberta-v2": _tiny("DebertaV2", norm_rel_ebd="layer_norm", conv_kernel_size=3, **SIZES, **RELATIVE),
}
BY_LINEAR_MAPS = {"mpnet": _tiny("MPNet", **SIZES)}
ALL = THROUGH_THE_INTERFACE | BY_LINEAR_MAPS | BY_FALLBACK
# Their last hidden state passes a norm after the last layer.
WITH_FINAL_NORM = {
    "modernbert": ALL["modernbert"],
    "megatron-bert": _tiny("MegatronBert", **SIZES),
    "roberta-prelayernorm": ALL["roberta-prelayernorm"],
    "xlm-roberta-xl": ALL["xlm-roberta-xl"],
    "xmod": _tiny("Xmod", **SIZES, pre_norm=True, default_language="en_XX"),
    "esm": _tiny("Esm", **SIZES, mask_token_id=4),
    "eurobert": _tiny("EuroBert", **SIZES),
    "gpt2": _tiny("GPT2", "Model", **GPT2),
    "opt": _tiny("OPT", "Model", **SIZES, **OPT),
}


def drawn(model_class, config):
    """A model with random weights in eval mode; its norms and biases are random as well, so that none are equal."""
    model, generator = build(model_class, config).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for vector in (parameter for parameter in model.parameters() if parameter.dim() == 1):
            vector.add_(0.2 * torch.randn(vector.shape, generator=generator))
    return model


def tiny_model(model_type: str):
    """`drawn` of a model type."""
    return drawn(*(ALL | WITH_FINAL_NORM)[model_type])


@contextmanager
def forgotten(namespace: dict):
    """At the end the classes in `namespace` no longer exist, so that a walk over subclasses does not find them."""
    try:
        yield
    finally:
        namespace.clear()
        gc.collect()
