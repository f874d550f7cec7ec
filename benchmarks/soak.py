"""Does anything pile up? Runs without a pause, damaged shards and random kills among them.

One process goes on for as long as asked. In each cycle it curates a pool with damaged shards by the
command line's own functions, verifies, queries and exports the output, and has another run killed
at random instants until it is done, whose outcome must equal the uninterrupted one and whose folder
must hold no file more. Then it deletes what it made and measures itself: resident memory, open
files, threads, child processes, and what is left in the working and the temporary folder.

    python benchmarks/soak.py --minutes 60

writes benchmarks/results/soak.json: every measure after a warm-up of a sixth of the time, and at
the end (the median of as many cycles). Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kill_helpers import fork_server, kill_until_done, timed_run
from machine import describe_machine
from run_helpers import Run, assert_same_outcome, curate, listing, run_arguments, write_pool

RESULT = Path(__file__).parent / "results" / "soak.json"
KINDS: list[dict[str, Any]] = [
    {},
    {"granularity": "token", "compute__checkpoint_minutes": 0},
    {"blade__passes": 2, "blade__final": "rescore", "compute__checkpoint_minutes": 0},
    {"method": "dsir"},
    {"method": "classifier"},
    {"method": "color"},
]
DAMAGED = {"max_bad_fraction": 0.9}


def damage(pool: Path) -> None:
    """Put a truncated shard, one with zeros in it and an empty one beside the sound ones."""
    sound = (pool / "shard-0.parquet").read_bytes()
    (pool / "shard-3.parquet").write_bytes(sound[:-40])
    (pool / "shard-4.parquet").write_bytes(sound[:60] + bytes(300) + sound[360:])
    (pool / "shard-5.parquet").write_bytes(b"")


def cycle(inputs: Path, base: Path, settings: dict[str, Any]) -> None:
    """Curate, verify, ask and export, in this process."""
    out = base / "out"
    for arguments in (
        run_arguments(inputs, out, **settings),
        ["verify", str(out), "--full"],
        ["log", str(out), "--sql", "FROM keep_rate_by_source"],
        ["log", str(out), "--why", "0:1"],
        ["export", str(out), "--to", "parquet", "--dest", str(base / "exported")],
    ):
        done = curate(*arguments)
        if done.exit_code:
            raise SystemExit(f"{arguments[0]} ended with {done.exit_code}: {done.output}")
    shutil.rmtree(out)
    shutil.rmtree(base / "exported")


def measure(base: Path, scratch: Path) -> dict[str, float]:
    """What this process holds, and what lies in its folders."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    files = [path for path in base.rglob("*") if path.is_file()]
    return {
        "resident_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        "open_files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 (its entries vanish)
        "threads": threading.active_count(),
        "processes": len(children),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "temporary_files": len(listing(scratch)),
    }


def main() -> None:
    """Go on until the time is over, and write down what was measured."""
    parser = argparse.ArgumentParser(description="Run without a pause.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="curate-soak-"))
    base, scratch = home / "base", home / "scratch"
    for folder in (base, scratch):
        folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    inputs = write_pool(base / "inputs")
    damage(inputs / "pool")
    context, chance = fork_server(), random.Random(options.seed)
    wholes = [
        timed_run(context, inputs, base / f"whole-{number}", {**DAMAGED, **settings})
        for number, settings in enumerate(KINDS)
    ]
    started, kills, rows = time.monotonic(), 0, []
    for number in itertools.cycle(range(len(KINDS))):
        settings = {**DAMAGED, **KINDS[number]}
        cycle(inputs, base, settings)
        out, whole = base / "killed", base / f"whole-{number}"
        killed = kill_until_done(context, inputs, out, settings, wholes[number], chance, 5)
        assert_same_outcome(Run(inputs, out), Run(inputs, whole))
        assert listing(out) == listing(whole)
        shutil.rmtree(out)
        kills += len(killed.stages)
        minutes = (time.monotonic() - started) / 60
        rows.append({"minutes": round(minutes, 2), **measure(base, scratch)})
        print(len(rows), kills, rows[-1], flush=True)
        if minutes > options.minutes:
            break
    few = max(1, len(rows) // 6)
    summary = {
        name: {
            "after_warm_up": statistics.median(row[name] for row in rows[few : 2 * few]),
            "at_the_end": statistics.median(row[name] for row in rows[-few:]),
            "most": max(row[name] for row in rows),
        }
        for name in rows[0]
        if name != "minutes"
    }
    result = {
        **describe_machine("torch", "pyarrow", "duckdb", "transformers"),
        "minutes": options.minutes,
        "cycles": len(rows),
        "runs": 2 * len(rows) + kills,
        "kills": kills,
        "measures": summary,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    shutil.rmtree(base)  # what is in scratch is of the processes that still run


if __name__ == "__main__":
    main()
