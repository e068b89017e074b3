"""Where memory runs out, in whatever part of the training, batches get smaller and nothing is left of the attempts."""

import copy

import pytest
import torch
from conftest import rows
from short_runs import assert_same_run, distil

FITS = 3
RUN = {"per_device_train_batch_size": 4, "max_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-3}


class Memory:
    """Lets a module fail in batches of more than `FITS` rows, as CUDA would."""

    def __init__(self, module):
        self.sizes = []
        module.register_forward_pre_hook(self._check)

    def _check(self, module, args):
        self.sizes.append(len(args[0]))
        if len(args[0]) > FITS:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def runs(folder, student, teacher, memory_of, **changes):
    """A run that finds its batch size, and one that begins with it."""
    data, options = rows(4 if "teacher_cache_gb" in changes else 24), RUN | changes
    first = copy.deepcopy(student), copy.deepcopy(teacher)
    memory = Memory(memory_of.get_input_embeddings())
    found = distil(folder / "found", student, teacher, train_dataset=data, auto_find_batch_size=True, **options)
    fitting = options | {"per_device_train_batch_size": FITS}
    plain = distil(folder / "plain", *first, train_dataset=data, **fitting)
    return found, plain, memory


@pytest.mark.slow
@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("losses", [["hidden", "prediction"], ["prediction"]], ids=["fit", "step"])
def test_the_run_is_that_of_the_batch_size_that_fits(tmp_path, student, teacher, part, losses):
    found, plain, memory = runs(
        tmp_path, student, teacher, {"teacher": teacher, "student": student}[part], loss_type=losses
    )
    assert memory.sizes[:2] == [4, FITS]  # accelerate takes a tenth off, and rounds down
    assert found[0].state.train_batch_size == FITS
    assert_same_run(found, plain, rtol=1e-5)
    (stage,) = student.config.distillation["stages"]
    assert stage["batch_size"] == FITS


@pytest.mark.slow
def test_the_pass_that_caches_activations_gets_smaller_batches(tmp_path, student, teacher):
    options = {"loss_type": ["attention", "hidden"], "teacher_cache_gb": 1.0, "max_steps": 4}
    found, plain, memory = runs(tmp_path, student, teacher, teacher, **options)
    assert memory.sizes.count(4) == 3  # in the fit, in the pass and in training
    assert_same_run(found, plain, rtol=1e-5)


def test_a_batch_size_that_training_keeps_is_no_limit_for_the_other_passes(tmp_path, student, teacher):
    """Without `auto_find_batch_size` too: the size of these passes is no argument of the user's."""
    memory = Memory(teacher.get_input_embeddings())
    options = {"loss_type": ["hidden"], "teacher_cache_gb": 1.0, "max_steps": 4, "per_device_train_batch_size": FITS}
    distil(tmp_path, student, teacher, train_dataset=rows(4), **options)
    assert memory.sizes[-1] == FITS


def test_memory_that_does_not_suffice_for_a_row_ends_the_run(tmp_path, student, teacher, monkeypatch):
    monkeypatch.setattr(f"{__name__}.FITS", 0)
    Memory(teacher.get_input_embeddings())
    plain = copy.deepcopy(student.state_dict())
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        distil(tmp_path, student, teacher, auto_find_batch_size=True, per_device_train_batch_size=2)
    assert all(torch.equal(value, plain[name]) for name, value in student.state_dict().items())
