"""Is anything lost when a run is killed? SIGKILL at random instants, until there were enough.

A run over a small pool is killed after a random time and started again until it is done; then
every file of its dataset and every row of its log must equal those of a run that nobody killed, and
the folder must hold no file more.
Kinds of run alternate: checkpoints after every step and block, and the default interval; decisions
by document and by token. The harness is that of tests/test_kill.py.

    python benchmarks/kills.py --kills 200

writes benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kill_helpers import fork_server, kill_until_done, timed_run
from run_helpers import Run, assert_same_outcome, listing, write_pool

RESULT = Path(__file__).parent / "results" / "kills.json"

TWO_PASSES = {
    "blade__passes": 2,
    "blade__sync_every": 3,
    "blade__final": "rescore",
    "blade__lambda": 0.5,
    "train__batch_tokens": 1024,
}
KINDS: dict[str, dict[str, Any]] = {
    "a checkpoint after every step and block": {
        **TWO_PASSES,
        "compute__checkpoint_minutes": 0,
    },
    "default settings": {},
    "by token, a checkpoint after every step and block": {
        "granularity": "token",
        "compute__checkpoint_minutes": 0,
    },
    "method random": {"method": "random"},
}


def main() -> None:
    """Kill until there were enough, and write down where."""
    parser = argparse.ArgumentParser(description="Kill and resume.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    context, chance = fork_server(), random.Random(options.seed)
    found: dict[str, dict[str, Any]] = {
        name: {"kills": 0, "runs": 0, "whole_seconds": 0.0, "seconds": 0.0, "after": {}}
        for name in KINDS
    }
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        inputs = write_pool(base / "inputs")
        for number, name in enumerate(KINDS):
            span = timed_run(context, inputs, base / f"whole-{number}", KINDS[name])
            found[name]["whole_seconds"] = round(span, 2)
        names = list(KINDS)
        while sum(one["kills"] for one in found.values()) < options.kills:
            number = min(range(len(names)), key=lambda i: found[names[i]]["kills"])
            row, settings = found[names[number]], KINDS[names[number]]
            out = base / f"out-{number}-{row['runs']}"
            kills = kill_until_done(
                context, inputs, out, settings, row["whole_seconds"], chance, 20
            )
            assert_same_outcome(Run(inputs, out), Run(inputs, base / f"whole-{number}"))
            assert listing(out) == listing(base / f"whole-{number}")
            row["kills"] += len(kills.stages)
            row["runs"] += 1
            row["seconds"] = round(row["seconds"] + kills.seconds_done, 2)
            row["after"] = dict(
                collections.Counter(row["after"]) + collections.Counter(kills.stages)
            )
            print(f"{names[number]}: {row['kills']} kills, {row['runs']} runs", flush=True)
    result = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "kinds": found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
