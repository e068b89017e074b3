import json

import pytest
import yaml
from transformers import HfArgumentParser

from hf_tinybert import AttentionLoss, DistillationArguments, EmbeddingLoss, HiddenLoss, PredictionLoss, TaskLoss
from hf_tinybert.training.arguments import LOSSES

ALL = {"attention": AttentionLoss, "hidden": HiddenLoss, "embedding": EmbeddingLoss, "prediction": PredictionLoss}


def test_the_default_is_the_papers_objective(tmp_path):
    args = DistillationArguments(str(tmp_path))
    losses = args.build_losses()
    assert [(loss.name, type(loss)) for loss in losses] == list(ALL.items())
    assert [loss.weight for loss in losses] == [1.0] * 4
    assert (args.layer_mapping, args.temperature) == ("uniform", 1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_built_by_name_and_weight(tmp_path, name):
    (loss,) = DistillationArguments(str(tmp_path), loss_type=[name], loss_weights=[0.5]).build_losses()
    assert (loss.name, loss.weight) == (name, 0.5)


def test_heads_are_those_of_the_losses(tmp_path):
    args = DistillationArguments(
        str(tmp_path), loss_type=["relation", "attention"], relation_heads=6, attention_heads="mean"
    )
    relation, attention = args.build_losses()
    assert (relation.relation_heads, attention.needs_equal_heads) == (6, False)


def test_from_the_command_line(tmp_path):
    flags = ["--output_dir", str(tmp_path), "--loss_type", "task", "prediction", "--loss_weights", "0.25", "2"]
    flags += ["--teacher_weights", "1", "3", "--loss_schedules", "linear_growth", "linear_decay", "--balance_losses"]
    flags += ["--temperature", "3", "--layer_mapping", "3,6,9,12", "--learning_rate", "1e-4"]
    (args,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(flags)
    task, prediction = args.build_losses()
    assert isinstance(task, TaskLoss)
    assert (task.weight, prediction.weight, prediction.temperature) == (0.25, 2.0, 3.0)
    assert (args.layer_mapping, args.learning_rate) == ("3,6,9,12", 1e-4)
    assert (args.teacher_weights, args.teacher_logits, args.balance_losses) == ([1.0, 3.0], "mean", True)
    assert args.loss_schedules == ["linear_growth", "linear_decay"]


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_from_a_file(tmp_path, kind):
    values = {"output_dir": str(tmp_path), "loss_type": ["hidden"], "loss_weights": [3.0], "layer_mapping": [[1, 4]]}
    path = tmp_path / f"arguments.{kind}"
    path.write_text(json.dumps(values) if kind == "json" else yaml.safe_dump(values))
    parser = HfArgumentParser(DistillationArguments)
    (args,) = parser.parse_json_file(path) if kind == "json" else parser.parse_yaml_file(path)
    assert [(type(loss), loss.weight) for loss in args.build_losses()] == [(HiddenLoss, 3.0)]
    assert args.layer_mapping == [[1, 4]]
    assert DistillationArguments(**values).to_dict()["loss_type"] == ["hidden"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": ["attention", "logits"]}, "loss_type.*at most once, of attention"),
        ({"loss_type": ["hidden", "hidden"]}, "at most once"),
        ({"loss_type": []}, "loss_type"),
        ({"loss_weights": [1.0]}, "1 numbers for 4 losses"),
        ({"loss_schedules": ["constant", "step"]}, "loss_schedules has .'step'.: .*linear_decay"),
        ({"balance_losses": True, "torch_compile": True}, r"balance_losses .*torch_compile"),
        ({"padding_free": True, "torch_compile": True}, r"padding_free .*torch_compile"),
        ({"attention_heads": "sum"}, "attention_heads='sum'.*equal, mean"),
        ({"teacher_dtype": "int8"}, "teacher_dtype='int8'.*auto, float32, bfloat16, float16"),
        ({"loss_type": ["patience"], "layer_mapping": "skip"}, "PKD-Skip is layer_mapping='uniform'"),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            "use_reentrant",
        ),
    ],
)
def test_bad_arguments(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(str(tmp_path), **changes)
