"""Is anything lost when a run is killed? SIGKILL at random instants, until there were enough.

A run over a small pool is killed and started again until it is done, half the time at a random
instant and half just before or after a file is renamed into place, whichever file that is; then
every file of its dataset and every row of its log must equal those of a run that nobody killed, and
the folder must hold no file more.
Kinds of run alternate: checkpoints after every step and block, and the default interval; decisions
by document and by token. The harness is that of tests/test_kill.py. It counts work, in tokens
passed through models and bytes tokenized: what all starts of a run did beyond what an uninterrupted
run does is what the kills cost. The result says how much that was, beside the longest stretch of
work between two records in the manifest, which a kill may cost at most.

    python benchmarks/kills.py --kills 200

writes benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kill_helpers import fork_server, kill_until_done, timed_run
from machine import describe_machine
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
        name: {"kills": 0, "runs": 0, "work_again": 0, "most_again_per_kill": 0} for name in KINDS
    }
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        inputs = write_pool(base / "inputs")
        timed_run(context, inputs, base / "first", {})  # reads the code, which later ones need not
        wholes = []
        for number, (name, row) in enumerate(found.items()):
            wholes.append(timed_run(context, inputs, base / f"whole-{number}", KINDS[name]))
            row["work"] = wholes[number].work
            row["longest_stretch"] = wholes[number].stretch
        names = list(KINDS)
        while sum(one["kills"] for one in found.values()) < options.kills:
            number = min(range(len(names)), key=lambda i: found[names[i]]["kills"])
            row, whole = found[names[number]], wholes[number]
            out = base / f"out-{number}-{row['runs']}"
            kills = kill_until_done(context, inputs, out, KINDS[names[number]], whole, chance, 20)
            assert_same_outcome(Run(inputs, out), Run(inputs, base / f"whole-{number}"))
            assert listing(out) == listing(base / f"whole-{number}")
            again, times = kills.work_again, len(kills.stages)
            row["kills"] += times
            row["runs"] += 1
            row["work_again"] += again
            row["most_again_per_kill"] = max(row["most_again_per_kill"], again // max(times, 1))
            for what, where in (("under_way", kills.stages), ("at_rename_of", kills.renamed)):
                tally = collections.Counter(_kind(one) for one in where)
                row[what] = dict(collections.Counter(row.get(what, {})) + tally)
            print(f"{names[number]}: {row['kills']} kills, {row['runs']} runs", flush=True)
    result = {**describe_machine("torch", "pyarrow"), "kinds": found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def _kind(name: str) -> str:
    """A stage or a file without its numbers."""
    return re.sub(r"\d+", "N", name)


if __name__ == "__main__":
    main()
