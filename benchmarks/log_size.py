"""How fast is a large selection log written and read, and how much room does it take?

Synthetic decisions of a run by document, each document visited by a round and by the final scoring,
go through the product's own writers: `DecisionWriter` to fragments, `select_documents` to the
outcome, `build_log` to the log. Losses are random, so they compress worse than real ones. Then the
command line asks for the summary and for single documents, each in a process of its own, and the
same questions are timed within one process.

    python benchmarks/log_size.py --decisions 10000000

writes benchmarks/results/log.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import code_version, describe_machine

from curate.log.load import build_log
from curate.log.query import summary, why
from curate.log.render import render_summary, render_why
from curate.read.documents import Documents, offsets_from_lengths
from curate.records import DOCUMENT, ROUND, SHARD, make_document_id
from curate.select.decisions import DecisionWriter
from curate.select.final import RoundScale, select_documents
from curate.select.methods.base import Scores
from curate.select.rounds import decide

RESULT = Path(__file__).parent / "results" / "log.json"
SHARD_ROWS = 100_000
BLOCK = 1000
"""Documents of a block."""
ROUNDS = 4
SOURCES = [f"source-{number}" for number in range(20)]
KEEP = 0.3


def write_documents(folder: Path, count: int) -> tuple[list[Path], np.ndarray[Any, Any]]:
    """Document fragments, and [4, N] of id, tokens, bytes and source."""
    random = np.random.default_rng(0)
    paths, every = [], []
    for shard in range(-(-count // SHARD_ROWS)):
        rows = np.arange(min(SHARD_ROWS, count - shard * SHARD_ROWS))
        ids = make_document_id(shard, 0) + rows
        tokens = np.maximum(1, random.lognormal(6, 1, len(rows)).astype(np.int64))
        size = (tokens * random.normal(4.3, 0.4, len(rows)).clip(1)).astype(np.int64)
        source = random.integers(len(SOURCES), size=len(rows))
        columns = [
            pa.array(ids),
            pa.array(np.full(len(rows), shard, np.int32)),
            pa.array(rows),
            pa.array(tokens),
            pa.array(size),
            pa.nulls(len(rows), pa.string()),
            pa.DictionaryArray.from_arrays(source, SOURCES).cast(pa.string()),
        ]
        path = folder / f"documents-{shard:05d}.parquet"
        names = [*DOCUMENT.names, "source"]
        pq.write_table(pa.Table.from_arrays(columns, names), path, compression="zstd")
        paths.append(path)
        every.append(np.stack([ids, tokens, size]))
    return paths, np.concatenate(every, axis=1)


def write_decisions(folder: Path, documents: np.ndarray[Any, Any]) -> tuple[list[Path], float]:
    """Decision fragments of four rounds and the final scoring, and the seconds the writer took."""
    random = np.random.default_rng(1)
    order = random.permutation(documents.shape[1])
    visits = [*np.array_split(order, ROUNDS), random.permutation(documents.shape[1])]
    paths, spent = [], 0.0
    for index, visit in enumerate(visits):
        path = folder / f"decisions-{index}.parquet"
        with DecisionWriter(path, None, index) as writer:
            for first in range(0, len(visit), BLOCK):
                ids, tokens, size = documents[:, visit[first : first + BLOCK]]
                block = Documents(ids, size, offsets_from_lengths(tokens), np.zeros(0, np.int32))
                proxy, reference = random.normal(3, 0.5, (2, len(ids)))
                vote = np.minimum(random.normal(-1, 1, len(ids)), 0) if index == ROUNDS else None
                read = np.minimum(tokens, 256)
                excess = proxy - reference
                scores = Scores(
                    proxy,
                    reference,
                    excess,
                    excess,
                    tokens_read=read,
                    ngram_vote=vote,
                    redundancy_vote=vote,
                )
                decided = decide(block, scores, KEEP * float(tokens.sum()), index)
                started = time.perf_counter()
                writer.add(block, scores, decided)
                spent += time.perf_counter() - started
            started = time.perf_counter()
        spent += time.perf_counter() - started
        paths.append(path)
    return paths, spent


def seconds(work: Callable[[], object], times: int) -> float:
    """Median seconds of some work."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken), 4)


def command(*arguments: str) -> Callable[[], object]:
    """A run of the command line."""
    line = [str(Path(sys.executable).parent / "curate"), *arguments]
    return lambda: subprocess.run(line, check=True, capture_output=True)


def main() -> None:
    """Write a log, ask it, and write the figures down."""
    parser = argparse.ArgumentParser(description="Write and read a large log.")
    parser.add_argument("--decisions", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rounds = pa.Table.from_pylist(
        [{"round": index, "method": "blade"} for index in range(ROUNDS + 1)], schema=ROUND
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fragments, documents = write_documents(folder, options.decisions // 2)
        found: dict[str, Any] = {"documents": documents.shape[1], "decisions": options.decisions}
        decisions, spent = write_decisions(folder, documents)
        found["fragment_rows_per_second"] = round(options.decisions / spent)
        scales = [RoundScale(index, 0.0, 0.0, 0.7) for index in range(ROUNDS)]
        scales.append(RoundScale(ROUNDS, 1.0, 0.0, 0.7))
        selection, log = folder / "selection.parquet", folder / "selection_log.duckdb"
        select: dict[str, Any] = {"documents": fragments, "decisions": decisions}
        started = time.perf_counter()
        select_documents(selection, scales=scales, keep=KEEP, seed=0, **select)
        found["select_seconds"] = round(time.perf_counter() - started, 2)

        def write() -> None:
            build_log(
                log,
                run={"run_id": "synthetic", "method": "blade"},
                shards=SHARD.empty_table(),
                rounds=rounds,
                selection=[selection],
                training=[],
                metadata_columns=["source"],
                **select,
            )

        build = seconds(write, options.repeats)
        found["log_seconds"] = build
        found["log_decisions_per_second"] = round(options.decisions / build)
        found["log_bytes"] = log.stat().st_size
        found["bytes_per_decision"] = round(log.stat().st_size / options.decisions, 1)
        number = str(documents[0, documents.shape[1] // 3])
        times = 2 * options.repeats + 1
        found["summary_seconds"] = seconds(lambda: render_summary(summary(folder)), times)
        found["why_seconds"] = seconds(lambda: render_why(why(folder, number)), times)
        found["version_command_seconds"] = seconds(command("--version"), times)
        found["summary_command_seconds"] = seconds(command("log", place), times)
        found["why_command_seconds"] = seconds(command("log", place, "--why", number), times)
    result = {
        **describe_machine("duckdb", "pyarrow"),
        "code": code_version(),
        "repeats": options.repeats,
        **found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
