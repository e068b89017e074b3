"""as_albert: an ALBERT that computes what a BERT computes."""

import pytest
import torch
import transformers
from conftest import bert_config, build

from hf_tinybert.models.architectures.albert import as_albert


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("Model", {}),
        ("ForSequenceClassification", {"classifier_dropout": 0.3}),
        ("ForTokenClassification", {}),
        ("ForQuestionAnswering", {"id2label": {0: "start", 1: "end"}, "label2id": {"start": 0, "end": 1}}),
        ("ForMultipleChoice", {}),
        ("ForMaskedLM", {}),
        ("ForMaskedLM", {"tie_word_embeddings": False}),
    ],
)
def test_the_albert_of_a_bert_is_the_same_function(head, changes):
    bert = build(getattr(transformers, f"Bert{head}"), bert_config(3, 24, dropout=0.1, **changes)).eval()
    albert = as_albert(bert)
    assert type(albert) is getattr(transformers, f"Albert{head}")
    assert (albert.config.id2label, albert.config.pad_token_id) == (bert.config.id2label, bert.config.pad_token_id)
    dropouts = [{m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} for model in (albert, bert)]
    assert dropouts[0] == dropouts[1]
    ids = torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "token_type_ids": ids % 2, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][0, 5:] = 0
    if head == "ForMultipleChoice":
        inputs = {name: value[None] for name, value in inputs.items()}
    with torch.no_grad():
        albert_outputs, bert_outputs = albert(**inputs), bert(**inputs)
    assert albert_outputs.keys() == bert_outputs.keys()
    for name, value in bert_outputs.items():
        torch.testing.assert_close(albert_outputs[name], value, rtol=0, atol=0)
