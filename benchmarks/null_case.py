"""Does `curate evaluate` say "no measurable benefit" when there is none to be had?

The target is a random sample of the pool's own distribution, so no selection should beat a random
one. Each case draws another target, selects with the defaults and evaluates with three seeds of its
own, so that no two cases are compared with the same trainings; the verdicts are counted. Finished
cases are lines of `benchmarks/results/null-case.jsonl` and are skipped, so the benchmark runs in
pieces, and in several processes (--part 0/2, --part 1/2).

    python benchmarks/null_case.py --pool POOL --work WORK

POOL is a folder of at least three Parquet shards with columns id, text and source. The pool is the
first, the target comes from the last but one and the test from the last, documents cut to a length.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from effectiveness import RESULTS, cut_shard
from effectiveness_plan import CUT_CHARACTERS
from machine import describe_machine

import curate
from curate.noise import make_key, shuffled_order
from curate.train.compute import tune_memory

CASES = 10
SEEDS = 3
TARGET_DOCUMENTS, TEST_DOCUMENTS = 1000, 600
KEEP = 0.1
MODEL = "nano"
PLACE = RESULTS / "null-case.jsonl"


def sample(shard: Path, number: int, case: int, place: Path) -> Path:
    """Write a case's random documents of a shard."""
    table = pq.read_table(shard)
    order = shuffled_order(make_key(case, "null case"), range(table.num_rows))
    pq.write_table(table.take(order[:number]), place)
    return place


def run_case(case: int, shards: list[Path], work: Path, threads: int) -> dict[str, Any]:
    """Select for a target without a meaning, and evaluate; returns the result line."""
    folder = work / f"null-{case}"
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for role, shard in (("pool", shards[0]), ("target", shards[-2]), ("test", shards[-1])):
        places[role] = work / f"null-{role}.parquet"
        cut_shard(shard, places[role], CUT_CHARACTERS)
    target = sample(places["target"], TARGET_DOCUMENTS, case, folder / "target.parquet")
    test = sample(places["test"], TEST_DOCUMENTS, case, folder / "test.parquet")
    out = folder / "out"
    settings = {
        "pool": str(places["pool"]),
        "target": str(target),
        "out": str(out),
        "keep": KEEP,
        "seed": case,
        "model.name": MODEL,
        "compute.threads": threads,
    }
    curate.run(curate.load_config(flags=settings), io.StringIO())
    evaluation = curate.evaluate(
        curate.EvaluateSettings(
            out=out,
            test=str(test),
            model=MODEL,
            seeds=SEEDS,
            first_seed=SEEDS * case,
            multiples=(1.0,),
            threads=threads,
        ),
        io.StringIO(),
    )
    shutil.rmtree(folder)
    difference = next(
        one["target"] for one in evaluation.report["comparisons"] if one["minus"] == "random"
    )
    return {
        "case": case,
        "verdict": evaluation.report["verdict"]["words"],
        "curated_less_random": difference,
        "machine": {**describe_machine("torch", "transformers", "pyarrow"), "threads": threads},
    }


def main() -> None:
    """Run the cases that are missing, and count the verdicts."""
    parser = argparse.ArgumentParser(description="The null case of curate evaluate.")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", default="0/1", help="I/N: every N-th case, from I")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    tune_memory()
    part, parts = map(int, options.part.split("/"))
    deadline = time.monotonic() + 60 * options.minutes
    shards = sorted(options.pool.glob("*.parquet"))
    for case in range(part, CASES, parts):
        if case not in {line["case"] for line in results()} and time.monotonic() < deadline:
            line = run_case(case, shards, options.work, options.threads)
            with PLACE.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(dict(Counter(line["verdict"] for line in results())))


def results() -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(one) for one in PLACE.read_text().splitlines()] if PLACE.exists() else []


if __name__ == "__main__":
    main()
