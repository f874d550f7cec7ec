"""SIGKILL at random instants: not a byte of the dataset nor a row of the log differs after it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kill_helpers import fork_server, kill_until_done, timed_run
from run_helpers import Run, assert_same_outcome, listing, write_plain_pool
from test_resume import SETTINGS

KILLS = 5
"""Of each kind of run, at least."""

EVERY_PART = {**SETTINGS, "compute__checkpoint_minutes": 0}
"""A checkpoint after every step and block, so that kills fall into the writing of them."""


@pytest.mark.parametrize("settings", [EVERY_PART, SETTINGS], ids=["parts", "stages"])
def test_killed_at_random(settings: dict[str, object], tmp_path: Path) -> None:
    context, chance = fork_server(), random.Random(0)
    inputs = write_plain_pool(tmp_path / "inputs")
    whole = timed_run(context, inputs, tmp_path / "whole", settings)
    kills = 0
    while kills < KILLS:
        out = tmp_path / f"out-{kills}"
        found = kill_until_done(context, inputs, out, settings, whole, chance, KILLS - kills)
        kills += len(found.stages)
        assert_same_outcome(Run(inputs, out), Run(inputs, tmp_path / "whole"))
        assert listing(out) == listing(tmp_path / "whole")
