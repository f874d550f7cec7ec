r"""Do memory and time per token stay the same as the pool grows?

Runs of the command line over pools of several times a size, each in a process of its own that
reports its peak resident memory. Sizes alternate; ratios to the smallest pool are taken within each
repeat, and are medians over the repeats. Pools larger than the one given repeat its documents.

Time per token can be constant only where the work per token is. On pools below some 20 million
tokens a sync takes 120 steps whatever their size, so K is set, and small, for the question of time;
then some 15 seconds of a run are still its start and the measuring of samples, which do not grow.
So the result also has the time per further token: of a pool's tokens beyond the smallest pool's.

    python benchmarks/growth.py --pool POOL --target TARGET --work WORK --name time \
        --megabytes 18 --sizes 1 2 4 8 --set blade.reference_steps=5
    python benchmarks/growth.py --pool POOL --target TARGET --work WORK --name memory \
        --megabytes 4 --sizes 1 10
    python benchmarks/growth.py --pool POOL --target TARGET --work WORK --name gigabyte \
        --megabytes 1000 --sizes 1 --repeats 1 --set blade.warmup_tokens=1000000 \
        --set blade.round_share=0.01 --set blade.reference_steps=20      # hours, for its peak alone

Finished runs are lines of benchmarks/results/growth-NAME.jsonl and are not made again by the same
code, so the benchmark runs in pieces. Peak memory is that of the largest process; on a CPU, and
with the default method, curate starts no other.
Writes benchmarks/results/growth-NAME.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import code_version, describe_machine
from text_pool import write_pool

from curate.log.query import summary

RESULTS = Path(__file__).parent / "results"


def run(pool: Path, out: Path, arguments: list[str]) -> dict[str, Any]:
    """Seconds and peak memory of `curate run`, and what its log says of it."""
    shutil.rmtree(out, ignore_errors=True)
    command = str(Path(sys.executable).parent / "curate")
    line = [command, "run", "--pool", str(pool), "--out", str(out), *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"curate run ended with status {status}: {' '.join(line)}")
    found = summary(out)
    tokens = found["run"]["pool_tokens"]
    return {
        "tokens": tokens,
        "documents": found["run"]["pool_documents"],
        "microseconds_per_token": 1e6 * seconds / tokens,
        "processor_microseconds_per_token": 1e6 * (usage.ru_utime + usage.ru_stime) / tokens,
        "peak_bytes": usage.ru_maxrss * 1024,
        "activity_seconds": found["activity_seconds"],
    }


def main() -> None:
    """Run every size in turn, as often as asked, and write the ratios down."""
    parser = argparse.ArgumentParser(description="Run pools of growing size.")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, required=True, help="of the smallest pool")
    parser.add_argument("--sizes", type=int, nargs="*", required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--name", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    arguments = ["--target", str(options.target), "--model", options.model]
    arguments += itertools.chain.from_iterable(("--set", one) for one in options.settings)
    for size in options.sizes:
        pool = options.work / f"pool-{size * options.megabytes:g}"
        if not pool.exists():
            begun = pool.with_suffix(".tmp")
            shutil.rmtree(begun, ignore_errors=True)
            write_pool(options.pool, begun, size * options.megabytes * 1e6)
            begun.rename(pool)
    done = RESULTS / f"growth-{options.name}.jsonl"
    smallest = f"{options.megabytes:g} MB"
    asked = [
        smallest,
        options.target.name,
        options.model,
        *options.settings,
        f"code {code_version()}",
    ]
    rows = read_rows(done, options.sizes, asked)
    for number, size in itertools.product(range(options.repeats), options.sizes):
        if number < len(rows[size]):
            continue
        pool = options.work / f"pool-{size * options.megabytes:g}"
        row = run(pool, options.work / "out", arguments)
        rows[size].append(row)
        with done.open("a") as file:
            line = {"size": size, "asked": asked, **describe_machine("torch"), **row}
            file.write(json.dumps(line) + "\n")
        print(size, row, flush=True)
    base = rows[options.sizes[0]]
    result = {
        **describe_machine("torch", "pyarrow", "duckdb"),
        "code": code_version(),
        "model": options.model,
        "settings": options.settings,
        "megabytes": options.megabytes,
        "repeats": options.repeats,
        "sizes": {
            str(size): {
                "tokens": found[0]["tokens"],
                "documents": found[0]["documents"],
                **{key: round(median([row[key] for row in found]), 2) for key in MEASURES},
                **{f"{key}_ratios": ratios(found, base, key) for key in MEASURES},
                **{f"{key}_ratio": median(ratios(found, base, key)) for key in MEASURES},
                "microseconds_per_further_token": further(found, base),
                "activity_seconds": found[-1]["activity_seconds"],
            }
            for size, found in rows.items()
        },
    }
    path = RESULTS / f"growth-{options.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def read_rows(path: Path, sizes: list[int], asked: list[str]) -> dict[int, list[dict[str, Any]]]:
    """The finished runs of what was asked for, by size."""
    lines = path.read_text().splitlines() if path.exists() else []
    every = [row for row in map(json.loads, lines) if row["asked"] == asked]
    return {size: [row for row in every if row["size"] == size] for size in sizes}


MEASURES = ("microseconds_per_token", "processor_microseconds_per_token", "peak_bytes")


def ratios(rows: list[dict[str, Any]], base: list[dict[str, Any]], key: str) -> list[float]:
    """One figure over the smallest pool's in the same repeat."""
    return [round(row[key] / other[key], 3) for row, other in zip(rows, base, strict=True)]


def further(rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[float] | None:
    """Microseconds for each token that the smallest pool does not have, in each repeat."""
    if rows is base:
        return None
    return [
        round((microseconds(row) - microseconds(other)) / (row["tokens"] - other["tokens"]), 2)
        for row, other in zip(rows, base, strict=True)
    ]


def microseconds(row: dict[str, Any]) -> float:
    """A whole run's."""
    return float(row["microseconds_per_token"] * row["tokens"])


def median(values: list[float]) -> float:
    """Over the repeats."""
    return float(statistics.median(values))


if __name__ == "__main__":
    main()
