"""General distillation at toy size: layers alone, masked language models, losses of a user's own, killed runs."""

import json

import pytest
import torch
from conftest import bert_config, build
from short_runs import QUICK, SIZE
from toy_runs import HalfLabels, MappedState, SoftLabels, assert_same_weights, base, killed_at_step, sentences, texts  # noqa: F401
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel

from hf_tinybert import GLUE, HiddenLoss, general_distillation, task_distillation
from hf_tinybert.lineage import Lineage

RUN = {"student": SIZE, "max_length": 12, "calibration_rows": 8, **QUICK}


def log_of(folder) -> dict:
    """The first entry of the log."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"][0]


def save_masked_lm(folder) -> BertForMaskedLM:
    teacher = build(BertForMaskedLM, bert_config(4, 32, vocab_size=20)).eval()
    teacher.save_pretrained(folder)
    return teacher


def test_general_distillation_then_the_task(base, tmp_path):  # noqa: F811
    student = general_distillation(texts(), str(base), tmp_path / "general", **RUN)
    assert type(student) is BertModel
    losses = {name for name in log_of(tmp_path / "general") if name.endswith("_loss")}
    assert losses == {"attention_loss", "hidden_loss", "embedding_loss"}
    results = task_distillation(
        GLUE["sst2"], sentences(tmp_path), str(base), tmp_path / "task", student=tmp_path / "general", **QUICK
    )
    assert results["parameters"]["student"] < results["parameters"]["teacher"]


def test_masked_language_models(base, tmp_path):  # noqa: F811
    run = RUN | {
        "calibration_rows": 500,
        "mlm_probability": 0.3,
        "loss_type": ["attention", "hidden", "embedding", "prediction"],
    }
    with pytest.raises(ValueError, match="no masked language model, it lacks"):
        general_distillation(texts(), str(base), tmp_path / "headless", **run)
    teacher = save_masked_lm(base)
    general_distillation(texts(), str(base), tmp_path / "out", **run)
    student, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert student.config.hidden_size == 16
    assert {f"{name}_loss" for name in run["loss_type"]} <= set(log_of(tmp_path / "out"))

    # the prediction head is initialised from the teacher too, so that the student predicts its tokens from the start
    start = general_distillation(texts(), str(base), tmp_path / "start", **run, learning_rate=0.0, max_steps=1)
    ids = torch.randint(5, 20, (32, 10), generator=torch.Generator().manual_seed(0))
    student_tokens, teacher_tokens = (model.eval()(input_ids=ids).logits.argmax(-1) for model in (start, teacher))
    assert (student_tokens == teacher_tokens).float().mean() > 0.5


def test_losses_of_a_users_own_decide_by_what_they_read(base, tmp_path):  # noqa: F811
    """Whatever their names, logits and labels need masked language models, and labels alone no teacher."""
    loss = MappedState()
    student = general_distillation(texts(), str(base), tmp_path / "layers", **RUN, losses=[loss, HiddenLoss()])
    assert type(student) is BertModel
    assert {"mapped_state_loss", "hidden_loss"} <= set(log_of(tmp_path / "layers"))
    assert torch.equal(loss.map, MappedState().map)  # a copy was trained
    for other in (MappedState(0.5), MappedState(power=1)):
        with pytest.raises(ValueError, match=r"other \['losses'\]"):
            general_distillation(texts(), str(base), tmp_path / "layers", **RUN, losses=[other, HiddenLoss()])

    for loss in (SoftLabels(), HalfLabels()):
        with pytest.raises(ValueError, match="no masked language model"):
            general_distillation(texts(), str(base), tmp_path / f"headless {loss.name}", **RUN, losses=[loss])
    save_masked_lm(base)
    for loss, teachers in ((SoftLabels(), ["./base"]), (HalfLabels(), [])):
        student = general_distillation(texts(), str(base), tmp_path / loss.name, **RUN, losses=[loss])
        assert type(student) is BertForMaskedLM
        assert f"{loss.name}_loss" in log_of(tmp_path / loss.name)
        (stage,) = Lineage.from_config(student.config).stages
        assert [teacher.model.name for teacher in stage.teachers] == teachers


@pytest.mark.parametrize("streamed", [False, True])
def test_a_killed_run_ends_with_the_same_student(base, tmp_path, streamed):  # noqa: F811
    data = texts().to_iterable_dataset(num_shards=2) if streamed else texts()

    def run(output_dir="out"):
        often = {"save_steps": 2, "max_steps": 6}
        return general_distillation(data, str(base), tmp_path / output_dir, **RUN | often)

    killed_at_step(run, "out", 5)
    assert_same_weights(run(), run("whole"))


@pytest.mark.slow
def test_a_killed_run_of_masked_language_models(base, tmp_path):  # noqa: F811
    """The masks after a checkpoint are those of a run that was not killed, although batches are collated ahead."""
    save_masked_lm(base)
    often = {"save_steps": 2, "max_steps": 9, "per_device_train_batch_size": 4, "loss_type": ["prediction", "task"]}

    def run(output_dir):
        return general_distillation(texts(60), str(base), tmp_path / output_dir, **RUN | often)

    whole = run("whole")
    for step in (3, 6):
        killed_at_step(lambda step=step: run(f"out {step}"), f"out {step}", step)
        assert_same_weights(run(f"out {step}"), whole)
