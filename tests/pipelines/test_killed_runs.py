"""Runs that are killed at random moments end with the student of a run that was left alone."""

import os

import pytest
from killed_runs import kill_and_compare

KILLS = int(os.environ.get("KILLS", "8"))


@pytest.mark.slow
def test_killed_at_random_moments_of_every_phase(tmp_path):
    kills = kill_and_compare(tmp_path, KILLS)
    assert kills.count >= KILLS
    assert len(kills.phases) >= min(KILLS, 9) // 2
