"""A small real log: six documents in two shards, two rounds, numbers that can be checked by hand.

document  tokens  source  round 0  round 1  outcome
0:0           10  web     kept     kept     selected, weight 1.25
0:1           20  math    kept     -        selected, weight 0.75
0:2            0  web     -        -        empty
0:3           30  web     kept     dropped  over_budget
1:0           40  math    dropped  dropped  filled, weight 1
1:1          100  (null)  dropped  -        never_selected
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import records
from curate.log.load import build_log
from curate.records import make_document_id

PLACES = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1))
IDS = tuple(make_document_id(*place) for place in PLACES)
TOKENS = (10, 20, 0, 30, 40, 100)
SOURCES = pa.array(["web", "math", "web", "web", "math", None])
OUTCOMES = (
    (1.25, 0.5, True, "selected"),
    (0.75, 0.25, True, "selected"),
    (0.0, None, False, "empty"),
    (0.0, 0.125, False, "over_budget"),
    (1.0, 0.0625, True, "filled"),
    (0.0, -2.0, False, "never_selected"),
)
DECISIONS = (
    # document, round, proxy, reference, score, threshold, kept
    (0, 0, 4.5, 4.0, 0.5, 0.125, True),
    (1, 0, 4.25, 4.0, 0.25, 0.125, True),
    (3, 0, 4.125, 4.0, 0.125, 0.125, True),
    (4, 0, 4.0, 3.9375, 0.0625, 0.125, False),
    (5, 0, 2.0, 4.0, -2.0, 0.125, False),
    (0, 1, None, None, 0.75, 0.5, True),
    (3, 1, None, None, 0.5, 0.75, False),
    (4, 1, 3.5, None, 0.25, None, False),
)


def write(path: Path, schema: pa.Schema, columns: Sequence[Any]) -> Path:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)
    return path


def document_fragments(folder: Path, metadata: Sequence[tuple[str, pa.Array]]) -> list[Path]:
    """One fragment per shard, given out of order so that sorting has work to do."""
    schema = records.DOCUMENT
    for name, values in metadata:
        schema = schema.append(pa.field(name, values.type))
    columns = [
        IDS,
        [shard for shard, _ in PLACES],
        [row for _, row in PLACES],
        TOKENS,
        [4 * tokens for tokens in TOKENS],
        [None] * len(TOKENS),
        *(values for _, values in metadata),
    ]
    pieces = {"second": slice(4, 6), "first": slice(0, 4)}
    return [
        write(folder / f"documents-{name}.parquet", schema, [column[piece] for column in columns])
        for name, piece in pieces.items()
    ]


def selection_fragment(folder: Path) -> Path:
    weight, score, kept, reason = zip(*OUTCOMES, strict=True)
    counts = [count if keep else 0 for count, keep in zip(TOKENS, kept, strict=True)]
    columns = (IDS, weight, score, score, [1] * 6, kept, counts, reason)
    return write(folder / "selection.parquet", records.SELECTION, columns)


def decision_fragments(folder: Path) -> list[Path]:
    paths = []
    for number in (0, 1):
        rows = [row for row in DECISIONS if row[1] == number]
        place, rounds, proxy, reference, score, threshold, kept = zip(*rows, strict=True)
        excess = [
            None if p is None or r is None else p - r for p, r in zip(proxy, reference, strict=True)
        ]
        tokens = [TOKENS[index] for index in place]
        ids, sizes = [IDS[index] for index in place], [4 * count for count in tokens]
        counts = [count if keep else 0 for count, keep in zip(tokens, kept, strict=True)]
        nobody = [None] * len(rows)
        losses = (proxy, reference, excess, nobody, nobody, nobody, score, threshold)
        columns = (ids, rounds, tokens, sizes, tokens, *losses, kept, counts)
        path = folder / f"decisions-{number}.parquet"
        paths.append(write(path, records.DECISION, columns))
    return paths


def training_fragment(folder: Path) -> Path:
    columns = ([1, 2], ["proxy"] * 2, [5.0, 4.5], [0.001] * 2, [1.5, 1.25], [1000.0, 1100.0])
    return write(folder / "training.parquet", records.TRAINING, columns)


def shards() -> pa.Table:
    rows = [
        (0, "pool/a.parquet", 100, 4, "f0", "done", None, 3, 60),
        (1, "pool/b.parquet", 200, 2, "f1", "done", None, 2, 140),
    ]
    return pa.Table.from_pylist(
        [dict(zip(records.SHARD.names, row, strict=True)) for row in rows], records.SHARD
    )


def rounds() -> pa.Table:
    rows = [
        (0, "blade", 1.0, 0.5, 10, 5, 4.0, 3.5, None, 4.25, 0.125, 5, 3, 200, 60, 1.5),
        (1, "blade", 1.0, 0.5, 20, 5, 3.5, 3.25, 4.5, 4.0, 0.5, 3, 1, 80, 10, 75.0),
    ]
    return pa.Table.from_pylist(
        [dict(zip(records.ROUND.names, row, strict=True)) for row in rows], records.ROUND
    )


RUN: dict[str, object] = {
    "run_id": "run-1",
    "started_at": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
    "finished_at": "2025-01-02T05:04:05+01:00",
    "curate_version": "0.1.0",
    "config": {"seed": 7, "path": Path("pool"), "clip": float("inf")},
    "seed": 7,
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "method": "blade",
    "granularity": "document",
    "keep_ratio": 0.35,
    "pool_documents": 5,
    "pool_tokens": 200,
    "target_documents": 3,
    "target_tokens": 50,
    "kept_documents": 3,
    "kept_tokens": 70,
    "model_parameters": 1000,
    "stage_seconds": {"read": 1.25, "score": 76.5},
    "activity_seconds": {"tokenize": 1.5, "model": 75.75, "other": 0.5, "select": 0.01},
    "rollbacks": [],
}


@dataclass
class Log:
    """The inputs of a log, to change before `build`."""

    folder: Path
    metadata: list[tuple[str, pa.Array]] = field(default_factory=lambda: [("source", SOURCES)])
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "out" / "selection_log.duckdb"

    def build(self) -> Path:
        """Build the log and return its output folder."""
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        arguments: dict[str, Any] = {
            "run": RUN,
            "shards": shards(),
            "rounds": rounds(),
            "documents": document_fragments(state, self.metadata),
            "selection": [selection_fragment(state)],
            "decisions": decision_fragments(state),
            "training": [training_fragment(state)],
            "metadata_columns": [name for name, _ in self.metadata],
        }
        build_log(self.path, **(arguments | self.changes))
        return self.path.parent
