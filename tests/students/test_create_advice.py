"""Errors of `create_student` say what to change: here it is changed."""

import pytest
from conftest import build, rows
from transformers import (
    MegatronBertConfig,
    MegatronBertForSequenceClassification,
    XLMConfig,
    XLMForSequenceClassification,
)

from hf_tinybert import create_student

DATA = rows(8).to_list()


@pytest.mark.parametrize(
    ("options", "says", "advised"),
    [
        ({"hidden_size": 18}, "not a multiple of num_attention_heads=4", {"num_attention_heads": 2}),
        ({"hidden_size": 16, "init": "layers"}, "leave it at None", {"hidden_size": None}),
        ({"hidden_size": 16, "init": "layers"}, "init='teacher' with a calibration_dataset", {"init": "teacher"}),
        ({"hidden_size": 16, "init": "layers"}, "or init='random'", {"init": "random"}),
        ({"hidden_size": 16, "calibration_dataset": None}, "pass calibration_dataset", {"calibration_dataset": DATA}),
        ({"hidden_size": 16, "calibration_dataset": None}, "or use init='random'", {"init": "random"}),
        ({"calibration_dataset": []}, "pass tokenised rows", {"calibration_dataset": DATA}),
        ({"num_hidden_layers": 9}, "must lie between 1 and the teacher's 4", {"num_hidden_layers": 4}),
        ({"layer_mapping": [(1, 4)]}, "one teacher layer for each of the 2", {"layer_mapping": [(1, 2), (2, 4)]}),
        ({"layer_mapping": [(1, 4), (2, 1)]}, "teacher layers that increase", {"layer_mapping": [(1, 1), (2, 4)]}),
        ({"init": "copy"}, "choose one of 'teacher', 'layers', 'random'", {"init": "layers"}),
        ({"dropout": 1.0}, r"must lie in \[0, 1\)", {"dropout": 0.5}),
    ],
)
def test_advice_works(teacher, options, says, advised):
    options = {"num_hidden_layers": 2, "calibration_dataset": DATA} | options
    with pytest.raises(ValueError, match=says):
        create_student(teacher, **options)
    assert create_student(teacher, **options | advised).training


def test_architectures_that_least_squares_cannot_initialise():
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3}
    listed = build(MegatronBertForSequenceClassification, MegatronBertConfig(intermediate_size=32, **sizes))
    unlisted = build(XLMForSequenceClassification, XLMConfig(vocab_size=50, emb_dim=16, n_layers=3, n_heads=4))
    for teacher, init in ((listed, "layers"), (listed, "random"), (unlisted, "random")):
        with pytest.raises(ValueError, match=rf"init='teacher' supports.*init='{init}'.* if it has a list of layers"):
            create_student(teacher, num_hidden_layers=2)
        assert create_student(teacher, num_hidden_layers=2, init=init).config.num_hidden_layers == 2
