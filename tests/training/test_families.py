"""The whole way of a student of MPNet and of pre-norm encoders, for every kind of prediction head."""

import copy
from inspect import signature

import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, VOCAB, build, word_tokenizer
from head_kinds import KINDS
from short_runs import arguments

from hf_tinybert import DistillationTrainer, create_student, export_onnx, load_onnx

SIZES = {"vocab_size": VOCAB, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEACHER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "type_vocab_size": 2,
}
STUDENT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
LOSSES = ["attention", "hidden", "embedding", "prediction", "task"]
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
NAMES = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}


def teacher_of(family: str, kind):
    model_class = getattr(transformers, family + kind.model_class.__name__.removeprefix("Bert"))
    return build(model_class, getattr(transformers, f"{family}Config")(**SIZES, **TEACHER, **NAMES | kind.config))


def same_weights(model, other) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "tokens", "spans", "choices", "masked tokens"])
@pytest.mark.parametrize("family", ["MPNet", "RobertaPreLayerNorm", "XLMRobertaXL"])
def test_initialised_trained_resumed_pushed_pulled_and_exported(hub, tmp_path, family, name):
    kind, tokenizer = KINDS[name], word_tokenizer(tmp_path)
    teacher, data = teacher_of(family, kind), kind.rows(tokenizer)
    start = create_student(teacher, **STUDENT, calibration_dataset=data, processing_class=tokenizer)

    def trained(checkpoint: str | None = None) -> DistillationTrainer:
        trainer = DistillationTrainer(
            copy.deepcopy(start),
            arguments(tmp_path / "out", loss_type=LOSSES, hub_model_id="user/out", **STEPS),
            data_collator=kind.collator(tokenizer),
            train_dataset=data,
            processing_class=tokenizer,
            teacher_model=teacher,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    trainer = trained()
    assert not same_weights(trainer.model, start)
    assert same_weights(trained(str(tmp_path / "out/checkpoint-2")).model, trainer.model)
    trainer.push_to_hub()
    pulled = type(start).from_pretrained("user/out").eval()
    assert same_weights(pulled, trainer.model)

    taken = [name for name in (*INPUTS, "labels") if name in data.column_names]
    batch = kind.collator(tokenizer)([*data.select(range(8)).select_columns(taken)])
    inputs = {key: batch[key] for key in taken if key in INPUTS}
    inputs.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))  # the tokenizer makes them
    with torch.no_grad():
        outputs = pulled(**{key: inputs[key] for key in signature(pulled.forward).parameters if key in inputs})
    logits = outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits], -1)
    graph = load_onnx(export_onnx(pulled, tokenizer, tmp_path / "shipped", calibration_dataset=data))
    np.testing.assert_allclose(graph(inputs), logits, atol=1e-5 * logits.abs().max().item())
