r"""Does a run take what its dry run said?

For each case a dry run and then the run itself, in processes of their own: seconds, peak memory and
tokens, and each of the run's over the dry run's. The run's seconds are those of the whole command;
some four of them are Python loading libraries, which no dry run counts.

    python benchmarks/dry_run.py --pool POOL --target TARGET --work WORK
    python benchmarks/dry_run.py ... --megabytes 18 --cases document token

Finished cases are lines of benchmarks/results/dry-run.jsonl and are not made again by the same
code. Writes benchmarks/results/dry-run.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from growth import microseconds, run
from machine import code_version, describe_machine
from text_pool import write_pool

RESULTS = Path(__file__).parent / "results"
CASES: dict[str, dict[str, Any]] = {
    "document": {"model.name": "tiny"},
    "token": {"model.name": "tiny", "granularity": "token"},
    "nano": {"model.name": "nano"},
    "rescore": {"model.name": "nano", "blade.final": "rescore", "blade.lambda": 0.5},
    "rho1": {"model.name": "nano", "method": "rho1"},
    "color": {"model.name": "nano", "method": "color"},
    "dsir": {"method": "dsir"},
    "classifier": {"method": "classifier"},
}
_PROGRAM = (
    "import dataclasses, json, sys, curate; "
    "found = curate.estimate(curate.load_config(flags=json.loads(sys.argv[1]))); "
    "print(json.dumps(dataclasses.asdict(found), default=str))"
)


def dry_run(settings: dict[str, Any]) -> dict[str, Any]:
    """What `curate.estimate` says in a process of its own."""
    line = [sys.executable, "-c", _PROGRAM, json.dumps(settings)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """One case: what was said, what was taken, and the ratios."""
    shutil.rmtree(out, ignore_errors=True)
    said = dry_run({**settings, "out": str(out)})
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    took = run(Path(settings["pool"]), out, flags)
    pairs = {
        "seconds": (sum(said["seconds"].values()), microseconds(took) / 1e6),
        "memory_bytes": (said["memory_bytes"], took["peak_bytes"]),
        "tokens": (said["pool_tokens"], took["tokens"]),
        "documents": (said["pool_documents"], took["documents"]),
    }
    return {
        "said": {name: round(pair[0], 2) for name, pair in pairs.items()},
        "took": {name: round(pair[1], 2) for name, pair in pairs.items()},
        "ratios": {name: round(pair[1] / pair[0], 3) for name, pair in pairs.items()},
        "trial_seconds": round(said["trial_seconds"], 1),
        "said_by_stage": {name: round(one, 2) for name, one in said["seconds"].items()},
        "took_by_activity": {n: round(one, 2) for n, one in took["activity_seconds"].items()},
    }


def main() -> None:
    """Compare what was asked for, and write it down."""
    parser = argparse.ArgumentParser(description="Compare dry runs with runs.")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    pool = options.work / f"pool-{options.megabytes:g}"
    if not pool.exists():
        begun = pool.with_suffix(".tmp")
        shutil.rmtree(begun, ignore_errors=True)
        write_pool(options.pool, begun, options.megabytes * 1e6)
        begun.rename(pool)
    inputs = {"pool": str(pool), "target": str(options.target)}
    done = RESULTS / "dry-run.jsonl"
    lines = done.read_text().splitlines() if done.exists() else []
    rows = {(row["case"], row["megabytes"], row["code"]): row for row in map(json.loads, lines)}
    for case in options.cases:
        key = (case, options.megabytes, code_version())
        if key in rows:
            continue
        found = compare({**inputs, **CASES[case]}, options.work / "out-dry-run")
        about = dict(zip(("case", "megabytes", "code"), key, strict=True))
        rows[key] = {**about, **describe_machine("torch"), **found}
        with done.open("a") as file:
            file.write(json.dumps(rows[key]) + "\n")
        print(json.dumps(rows[key]), flush=True)
    mine = [row for (_, _, code), row in rows.items() if code == code_version()]
    (RESULTS / "dry-run.json").write_text(json.dumps(mine, indent=1) + "\n")


if __name__ == "__main__":
    main()
