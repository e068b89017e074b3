"""What is passed as a model and is something else: one line says what it is, and what it advises works."""

import json
import re

import pytest
import torch
from conftest import WORDS, bert_config, build, pad, rows, word_tokenizer
from short_runs import arguments
from torch import nn
from transformers import AutoModel, BertForSequenceClassification, BertModel, pipeline

from hf_tinybert import DistillationTrainer, create_student
from hf_tinybert.models.loading import from_pretrained, load_config, load_tokenizer
from hf_tinybert.models.sources import transformers_model
from hf_tinybert.teachers import load_teacher

VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


class SentenceTransformer(nn.Sequential):
    """The attributes that sentence_transformers documents: its first module has the encoder as `auto_model`."""


class Transformer(nn.Module):
    def __init__(self, auto_model):
        super().__init__()
        self.auto_model = auto_model


class Pooling(nn.Module):
    pass


class PeftModelForSequenceClassification(nn.Module):
    """The attributes that peft documents."""

    def __init__(self, base_model):
        super().__init__()
        self.base_model, self.peft_config = base_model, {"default": object()}

    def merge_and_unload(self):
        return self.base_model


def holding(folder, **files):
    """A folder with files of a text each; `__` stands for a dot, as in `config__json`."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def folders(tmp_path, model):
    """Folders that are no models, by what they are, with what the message says."""
    trained = tmp_path / "run"
    for step in (9, 10):
        model.save_pretrained(trained / f"checkpoint-{step}")
    finished = holding(tmp_path / "finished", config__json=model.config.to_json_string())
    model.save_pretrained(finished / "checkpoint-3")
    config, adapter = model.config.to_json_string(), json.dumps({"base_model_name_or_path": "user/base"})
    return {
        "adapters": (holding(tmp_path / "a", adapter_config__json=adapter), "holds PEFT adapters to 'user/base'"),
        "broken adapters": (holding(tmp_path / "b", adapter_config__json="{"), "holds PEFT adapters, not a model"),
        "empty": (holding(tmp_path / "e"), "is empty"),
        "checkpoints": (trained, f"pass the newest, '{trained}/checkpoint-10'"),
        "tokenizer": (holding(tmp_path / "t", vocab__txt=VOCABULARY), "holds a tokenizer but no model"),
        "other files": (holding(tmp_path / "o", notes__txt=""), "has no config.json"),
        "ONNX": (holding(tmp_path / "x", config__json=config, model__onnx=""), "holds a model for ONNX alone"),
        "TensorFlow": (holding(tmp_path / "h", config__json=config, tf_model__h5=""), "for TensorFlow alone"),
        "no weights": (holding(tmp_path / "c", config__json=config), "has a config.json but no weights"),
        "unsaved": (finished, f"the newest checkpoint in it, '{finished}/checkpoint-3'"),
        "a file": (
            trained / "checkpoint-9/model.safetensors",
            f"pass the folder of the model, '{trained}/checkpoint-9'",
        ),
    }


def test_folders_that_are_no_models(tmp_path, student):
    for kind, (folder, says) in folders(tmp_path, student).items():
        for load in (lambda name: from_pretrained(None, name), load_teacher, create_student):
            with pytest.raises(ValueError, match=re.escape(says)) as error:
                load(str(folder))
            assert "\n" not in str(error.value), kind
            if advised := re.search(r"'([^']*checkpoint-\d+)'", str(error.value)):
                assert create_student(advised[1]).config.num_hidden_layers == 2
        if kind not in ("tokenizer", "ONNX", "TensorFlow", "no weights", "unsaved"):
            with pytest.raises(ValueError, match=re.escape(says)):
                load_tokenizer(folder)


def test_repositories_of_adapters_and_of_nothing(hub):
    hub.add("model", "user/adapters", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    with pytest.raises(ValueError, match=r"'user/adapters' holds PEFT adapters, not a model.*merge_and_unload\(\)"):
        create_student("user/adapters")
    hub.add("model", "user/nothing", {"README.md": b""})
    for name in ("user/nothing", "user/missing"):
        with pytest.raises(OSError, match=f"Cannot load '{name}'"):
            create_student(name)


def test_a_name_given_to_create_student_is_loaded(hub, tmp_path, teacher):
    teacher.save_pretrained(tmp_path / "teacher")
    files = {path.name: path.read_bytes() for path in (tmp_path / "teacher").iterdir()}
    hub.add("model", "user/model", files)
    expected = create_student(teacher, num_hidden_layers=2).state_dict()
    for name in ("user/model", str(tmp_path / "teacher"), tmp_path / "teacher"):
        student = create_student(name, num_hidden_layers=2)
        torch.testing.assert_close(student.state_dict(), expected, rtol=0, atol=0)
    teacher.base_model.save_pretrained(tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    (tmp_path / "teacher/config.json").write_text(json.dumps(config | {"architectures": [type(teacher).__name__]}))
    with pytest.raises(ValueError, match="lacks weights for"):
        create_student(tmp_path / "teacher", num_hidden_layers=2)


@pytest.mark.parametrize("path", ["", "0_Transformer"])
def test_a_sentence_transformer_folder_is_its_encoder(tmp_path, path):
    encoder = build(BertModel, bert_config(2, 16))
    folder = tmp_path / "sentences" / path
    encoder.save_pretrained(folder)
    word_tokenizer(tmp_path).save_pretrained(folder)
    modules = [
        ("", path, "sentence_transformers.models.Transformer"),
        ("", "1_Pooling", "sentence_transformers.models.Pooling"),
    ]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (_, path, kind) in enumerate(modules)]
    (tmp_path / "sentences/modules.json").write_text(json.dumps(modules))
    for model in (from_pretrained(AutoModel, tmp_path / "sentences"), create_student(str(tmp_path / "sentences"))):
        torch.testing.assert_close(model.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    assert load_config(tmp_path / "sentences").hidden_size == 16
    assert load_tokenizer(tmp_path / "sentences").vocab_size == len(VOCABULARY.split("\n"))


def test_objects_that_hold_a_model(tmp_path, teacher):
    sentences = SentenceTransformer(Transformer(teacher.base_model), Pooling())
    assert transformers_model(sentences, "teacher") is teacher.base_model
    assert create_student(sentences, num_hidden_layers=1).config.num_hidden_layers == 1
    assert transformers_model(torch.compile(teacher, backend="eager"), "teacher") is teacher
    classifier = pipeline("text-classification", model=teacher, tokenizer=word_tokenizer(tmp_path))
    assert transformers_model(classifier, "teacher") is teacher


def test_objects_that_are_no_models(tmp_path, student, teacher):
    trainer = DistillationTrainer(student, arguments(tmp_path), pad, rows(8), teacher_model=teacher)
    adapted = PeftModelForSequenceClassification(teacher)
    for passed, says in (
        (
            adapted,
            r"PeftModelForSequenceClassification with PEFT adapters: pass what its merge_and_unload\(\) returns",
        ),
        (BertForSequenceClassification, r"the class BertForSequenceClassification: .*\.from_pretrained\(folder\)"),
        (trainer, "DistillationTrainer: pass its attribute .model"),
        (nn.Linear(2, 2), "Linear"),
        ({"a": 1}, "dict"),
    ):
        for take in (lambda it: DistillationTrainer(student, arguments(tmp_path), teacher_model=it), create_student):
            with pytest.raises(TypeError, match=rf"^The teacher must be .*PreTrainedModel, not {says}"):
                take(passed)
    with pytest.raises(TypeError, match=r"^The student must be .*merge_and_unload\(\)"):
        DistillationTrainer(adapted, arguments(tmp_path), pad, rows(8), teacher_model=teacher)
    assert create_student(adapted.merge_and_unload(), num_hidden_layers=1)
    teacher.peft_config = {"default": object()}
    with pytest.raises(ValueError, match=r"has PEFT adapters in its layers.*merge_and_unload\(\)"):
        create_student(teacher, num_hidden_layers=1)
