"""Run by torchrun from test_finite.py: the teacher of one process fails in the second step."""

import argparse
import os
from pathlib import Path

from accelerate import PartialState
from conftest import bert_config, build
from short_runs import distil
from test_finite import BreaksAtMark, is_finite, marked_rows
from transformers import BertForSequenceClassification

from hf_tinybert import PredictionLoss

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    assert os.environ["WORLD_SIZE"] == "2"
    student, teacher = (build(BertForSequenceClassification, bert_config(2, 16), seed) for seed in (1, 2))
    options = {"max_steps": 2, "per_device_train_batch_size": 2}
    options |= {"callbacks": [BreaksAtMark(teacher, "classifier")]}
    try:
        distil(folder, student, teacher, [PredictionLoss()], marked_rows(row=5), **options)
    except ValueError as error:
        (folder / f"rank{os.environ['RANK']}.txt").write_text(str(error))
    assert is_finite(student)
    PartialState().destroy_process_group()
