"""A loss, an architecture and a kind of prediction head as a user would write them outside the package."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertLayer

from hf_tinybert import DistillationLoss, TextClassification
from hf_tinybert.models.architectures import Architecture, Attention, Block, FeedForward
from hf_tinybert.models.prediction_heads import PredictionHead, soft_binary_cross_entropy


class ScaledLogits(DistillationLoss):
    """‖a·z_S + b − z_T‖² with a learned factor a and learned offsets b."""

    name = "scaled_logits"
    reads = frozenset({"logits"})
    citation = "A. User (2026). Logits to scale."

    def __init__(self, weight: float = 1.0, start: float = 1.0, classes: int = 3):
        super().__init__(weight)
        self.start = start
        self.factor, self.offset = nn.Parameter(torch.tensor(start)), nn.Parameter(torch.zeros(classes))

    @property
    def settings(self):
        return {"start": self.start, "classes": len(self.offset)}

    def forward(self, student, teacher, layer_mapping):
        return (self.factor * student.logits + self.offset - teacher.logits).square().mean(-1)


class StackedConfig(BertConfig):
    model_type = "stacked-bert"


class Stack(nn.Module):
    """BERT's layers in a list of another name."""

    def __init__(self, config):
        super().__init__()
        self.floors = nn.ModuleList(BertLayer(config, layer_idx=index) for index in range(config.num_hidden_layers))

    def forward(self, hidden_states, attention_mask=None, use_cache=None, **kwargs):
        for floor in self.floors:
            hidden_states = floor(hidden_states, attention_mask, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


class StackedModel(BertModel):
    """BERT with this stack for an encoder."""

    config_class = StackedConfig

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.encoder = Stack(config)
        self.post_init()


class Stacked(Architecture):
    """What hf_tinybert has to know of it."""

    model_types = ("stacked-bert",)
    fits_students = True
    computes_tokens_separately = True

    def blocks(self, model):
        return [
            Block(
                Attention(
                    query=floor.attention.self.query,
                    key=floor.attention.self.key,
                    value=floor.attention.self.value,
                    output=floor.attention.output.dense,
                    norm=floor.attention.output.LayerNorm,
                    num_heads=model.config.num_attention_heads,
                ),
                FeedForward(
                    intermediate=floor.intermediate.dense,
                    activation=floor.intermediate.intermediate_act_fn,
                    output=floor.output.dense,
                    norm=floor.output.LayerNorm,
                ),
            )
            for floor in self.encoder(model).floors
        ]


class StackedForOrdinal(BertForSequenceClassification):
    """C ordered classes by C − 1 logits: z_k says whether the class is above k."""

    config_class = StackedConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = StackedModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels - 1)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, **kwargs)
        loss = None
        if labels is not None:
            above = (labels[:, None] > torch.arange(outputs.logits.shape[-1], device=labels.device)).float()
            loss = F.binary_cross_entropy_with_logits(outputs.logits, above)
        return SequenceClassifierOutput(loss, outputs.logits, outputs.hidden_states, outputs.attentions)


class Ordinal(PredictionHead):
    """A sigmoid for each threshold between ordered classes, (B, C − 1)."""

    name = "ordered classes"

    @classmethod
    def matches(cls, model):
        return isinstance(model, StackedForOrdinal)

    def soft_loss(self, student_logits, teacher_logits, temperature=1.0, mask=None):
        return soft_binary_cross_entropy(student_logits, teacher_logits, temperature)


class OrdinalClassification(TextClassification):
    """Its task: the predicted class is the number of thresholds below."""

    auto_class = StackedForOrdinal

    def compute_metrics(self, prediction):
        predicted = (prediction.predictions > 0).sum(-1)
        return self.scored({"accuracy": float((predicted == prediction.label_ids).mean())})


AutoConfig.register("stacked-bert", StackedConfig)
