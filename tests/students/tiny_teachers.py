"""Tiny teachers with random weights, and calibration rows for them."""

import copy

import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormForSequenceClassification,
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForSequenceClassification,
)

SIZES = {"vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.2}
BERT = SIZES | {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
ROBERTA = BERT | {"pad_token_id": 1}
DISTILBERT = SIZES | {"dim": 24, "n_layers": 4, "n_heads": 4, "hidden_dim": 48}
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 40}
# Every adapter, every kind of prediction head, embeddings with and without a projection, tied and untied tables.
TEACHERS = {
    "bert": (BertForSequenceClassification, BertConfig(**BERT, num_labels=3)),
    "bert-tokens": (BertForTokenClassification, BertConfig(**BERT, num_labels=3)),
    "bert-spans": (BertForQuestionAnswering, BertConfig(**BERT)),
    "bert-choices": (BertForMultipleChoice, BertConfig(**BERT)),
    "bert-mlm": (BertForMaskedLM, BertConfig(**BERT)),
    "bert-mlm-untied": (BertForMaskedLM, BertConfig(**BERT, tie_word_embeddings=False)),
    "bert-pretraining": (BertForPreTraining, BertConfig(**BERT)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**ROBERTA)),
    "roberta-mlm": (RobertaForMaskedLM, RobertaConfig(**ROBERTA)),
    "electra": (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=24)),
    "electra-projected": (ElectraForSequenceClassification, ElectraConfig(**BERT, embedding_size=10)),
    "electra-mlm": (ElectraForMaskedLM, ElectraConfig(**BERT, embedding_size=16)),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(**DISTILBERT)),
    "distilbert-mlm": (DistilBertForMaskedLM, DistilBertConfig(**DISTILBERT)),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig(**ROBERTA)),
    "mpnet-tokens": (MPNetForTokenClassification, MPNetConfig(**ROBERTA, num_labels=3)),
    "mpnet-mlm": (MPNetForMaskedLM, MPNetConfig(**ROBERTA)),
    "prelayernorm": (RobertaPreLayerNormForSequenceClassification, RobertaPreLayerNormConfig(**ROBERTA)),
    "prelayernorm-mlm": (RobertaPreLayerNormForMaskedLM, RobertaPreLayerNormConfig(**ROBERTA)),
    "xlm-roberta-xl": (XLMRobertaXLForSequenceClassification, XLMRobertaXLConfig(**ROBERTA)),
    "xlm-roberta-xl-mlm": (XLMRobertaXLForMaskedLM, XLMRobertaXLConfig(**ROBERTA)),
    "albert": (AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=10, num_hidden_groups=4)),
    "albert-wide": (AlbertForSequenceClassification, AlbertConfig(**BERT, embedding_size=24, num_hidden_groups=4)),
}


def build(model_class, config):
    """A model in eval mode whose weights do not depend on the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(copy.deepcopy(config)).eval()


def rows(count=96, seed=0):
    """Rows of 4 to 11 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(5, 60, (length,), generator=generator).tolist()} for length in lengths]


def outputs(model, dataset):
    """The first output for all rows, one tensor for each length, so that nothing is padded."""
    lengths = sorted({len(row["input_ids"]) for row in dataset})
    batches = [[row["input_ids"] for row in dataset if len(row["input_ids"]) == length] for length in lengths]
    batches = [torch.tensor(batch) for batch in batches]
    if isinstance(model, BertForMultipleChoice):
        batches = [batch[:, None] for batch in batches]
    with torch.no_grad():
        return [model.eval()(input_ids=batch)[0] for batch in batches]


def distance(student, teacher, dataset):
    """The mean square of the difference of all outputs."""
    student_outputs, teacher_outputs = (
        torch.cat([output.flatten() for output in outputs(model, dataset)]) for model in (student, teacher)
    )
    return (student_outputs - teacher_outputs).square().mean()
