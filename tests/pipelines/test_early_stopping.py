"""Early stopping of the prediction phase: when it stops, and that a killed run stops there too."""

import json
from functools import partial

import pytest
from short_runs import QUICK, SIZE
from test_task import load, log_of
from toy_runs import (
    assert_same_weights,
    base,  # noqa: F401
    killed_at_step,
    killed_in,
    save_classifier,
    sentences,
)

from hf_tinybert import GLUE, DistillationTrainer, task_distillation
from hf_tinybert.pipelines.early_stopping import EarlyStopping

# the score of a student that hardly learns is the same in every epoch
STILL = {"learning_rate": 1e-9, "num_train_epochs": 6, "augmentation": None, "labels": {"num_train_epochs": 0}}


@pytest.fixture
def run(base, tmp_path):  # noqa: F811
    save_classifier(base)
    arguments = {**QUICK, **STILL, "student": SIZE, "init": "random"}
    return partial(task_distillation, GLUE["sst2"], sentences(tmp_path), str(base), **arguments)


def epochs(folder) -> list[float]:
    return [log["epoch"] for log in log_of(folder) if "eval_score" in log]


def test_it_stops_after_evaluations_without_a_better_score(run, tmp_path):
    run(tmp_path / "out", early_stopping=EarlyStopping(2))
    assert epochs(tmp_path / "out/student") == [1, 2, 3]
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["phases"]["prediction"]["early_stopping"] == {"patience": 2, "threshold": 0.0}
    with pytest.raises(ValueError, match="other"):
        run(tmp_path / "out", early_stopping=EarlyStopping(3))


KILLS = {
    "after two evaluations": lambda run: killed_at_step(run, "student", 8),
    "when it has stopped": lambda run: killed_in(run, DistillationTrainer, "_load_best_model"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_stops_there_too(run, tmp_path, kill):
    run(tmp_path / "whole", early_stopping=EarlyStopping(2))
    KILLS[kill](lambda: run(tmp_path / "out", early_stopping=EarlyStopping(2)))
    run(tmp_path / "out", early_stopping=EarlyStopping(2))
    assert epochs(tmp_path / "out/student") == epochs(tmp_path / "whole/student") == [1, 2, 3]
    for name in ("student", "student_last"):
        assert_same_weights(load(tmp_path / "out" / name), load(tmp_path / "whole" / name))


def test_a_phase_without_scores_cannot_stop_early(run, tmp_path):
    with pytest.raises(ValueError, match="needs the scores of the prediction phase"):
        run(tmp_path / "out", early_stopping=EarlyStopping(2), prediction={"load_best_model_at_end": False})
    with pytest.raises(ValueError, match="early_stopping_patience=0"):
        EarlyStopping(0)
    assert not (tmp_path / "out").exists()
