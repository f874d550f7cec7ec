"""Small logs of runs over one pool, and what plain Python finds when it compares them.

document  tokens  source
0:0           10  web
0:1           20  math
0:2            0  web
0:3           30  web
0:4           40  math
0:5          100  (null)
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from log_sample import write

from curate import records
from curate.log.load import build_log
from curate.log.query import LOG_NAME

TOKENS = [10, 20, 0, 30, 40, 100]
SOURCES = ["web", "math", "web", "web", "math", None]
RUN = {"method": "blade", "granularity": "document", "keep_ratio": 0.35, "seed": 7}


@dataclass
class Sample:
    """A log of one shard: for each document its tokens, outcome and metadata; scores by round."""

    kept: Sequence[bool]
    rounds: Sequence[Sequence[float | None]]
    """Scores of each round by row; None where the round did not visit the document."""
    tokens: Sequence[int] = field(default_factory=lambda: TOKENS)
    metadata: dict[str, pa.Array] = field(default_factory=lambda: {"source": pa.array(SOURCES)})
    run: dict[str, object] = field(default_factory=lambda: RUN)
    fingerprints: Sequence[str] = ("f0",)

    def build(self, out: Path) -> Path:
        state = out / "state"
        state.mkdir(parents=True)
        count = len(self.tokens)
        rows = range(count)
        kept_tokens = [n if kept else 0 for n, kept in zip(self.tokens, self.kept, strict=True)]
        documents = records.DOCUMENT
        for name, values in self.metadata.items():
            documents = documents.append(pa.field(name, values.type))
        known: dict[str, Any] = {
            "document_id": rows, "shard_id": [0] * count, "row": rows, "tokens": self.tokens,
            "bytes": self.tokens, "weight": [1.5 if kept else 0.0 for kept in self.kept],
            "score": [None] * count, "excess_loss": [None] * count, "round": [0] * count,
            "kept": self.kept, "tokens_kept": kept_tokens,
            "problem": [None] * count,
            "reason": ["selected" if kept else "never_selected" for kept in self.kept],
        }  # fmt: skip
        visits = [
            (row, number, score)
            for number, scores in enumerate(self.rounds)
            for row, score in enumerate(scores)
            if score is not None
        ]
        decisions = pa.Table.from_pylist(
            [
                {"document_id": row, "round": number, "score": score, "tokens": self.tokens[row]}
                for row, number, score in visits
            ],
            records.DECISION,
        )
        shards = [
            {"shard_id": n, "uri": f"pool/{n}.parquet", "fingerprint": fingerprint}
            for n, fingerprint in enumerate(self.fingerprints)
        ]
        selection = [known[name] for name in records.SELECTION.names]
        plain = [known[name] for name in records.DOCUMENT.names]
        decided = [decisions[name].combine_chunks() for name in records.DECISION.names]
        build_log(
            out / LOG_NAME,
            run=self.run,
            shards=pa.Table.from_pylist(shards, records.SHARD),
            rounds=records.ROUND.empty_table(),
            documents=[write(state / "d.parquet", documents, [*plain, *self.metadata.values()])],
            selection=[write(state / "s.parquet", records.SELECTION, selection)],
            decisions=[write(state / "c.parquet", records.DECISION, decided)],
            training=[],
            metadata_columns=list(self.metadata),
        )
        shutil.rmtree(state)
        return out

    def build_from(self, base: Path, out: Path) -> Path:
        """The same log made from that of another sample with the same documents; much faster."""
        out.mkdir()
        shutil.copy(base / LOG_NAME, out)
        visits = [
            (row, number, score)
            for number, scores in enumerate(self.rounds)
            for row, score in enumerate(scores)
            if score is not None
        ]
        with duckdb.connect(str(out / LOG_NAME)) as log:
            log.execute("BEGIN; DELETE FROM decision")
            for visit in visits:
                log.execute(
                    "INSERT INTO decision (document_id, round, score) VALUES (?,?,?)", visit
                )
            log.execute(
                "UPDATE document SET kept = list_contains(?, row)", [sorted(kept_rows(self))]
            )
            columns = [row[0] for row in log.execute("DESCRIBE document").fetchall()]
            if "tokens_kept" in columns:
                log.execute(
                    "UPDATE document SET tokens_kept = CASE WHEN kept THEN tokens ELSE 0 END"
                )
            log.execute("COMMIT")
        return out


FIRST = Sample(
    kept=[True, True, False, False, True, False],
    rounds=[[0.5, 0.25, None, 0.125, 0.0625, -2.0], [0.75, None, None, 0.5, 0.25, None]],
)
SECOND = Sample(
    kept=[False, True, False, False, False, True],
    rounds=[[0.0, 1.0, None, 0.5, 0.5, 3.0]],
    run=RUN | {"method": "random", "keep_ratio": 0.6, "seed": 8},
)


def rewrite(out: Path, *statements: str) -> Path:
    """Change a log by SQL, without the views that depend on its tables."""
    with duckdb.connect(str(out / LOG_NAME)) as log:
        names = log.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        for (name,) in names:
            log.execute(f'DROP VIEW "{name}"')
        for statement in statements:
            log.execute(statement)
    return out


# Plain reference computations.


def document_scores(sample: Sample) -> dict[int, float]:
    """The last of the standardized scores of each document that was visited."""
    visits: dict[int, list[float]] = {}
    for scores in sample.rounds:
        seen = {row: np.float32(s).item() for row, s in enumerate(scores) if s is not None}
        values = list(seen.values()) or [0.0]
        mean, deviation = np.mean(values), np.std(values) if len(set(values)) > 1 else math.inf
        for row, score in seen.items():
            visits.setdefault(row, []).append(float((score - mean) / deviation))
    return {row: round(values[-1], 9) + 0.0 for row, values in visits.items()}


def average_ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return np.array([(array < v).sum() + ((array == v).sum() + 1) / 2 for v in array])


def expected_spearman(first: Sample, second: Sample) -> float | None:
    a, b = document_scores(first), document_scores(second)
    both = sorted(a.keys() & b.keys())
    x, y = average_ranks([a[row] for row in both]), average_ranks([b[row] for row in both])
    if len(both) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def expected_percentiles(sample: Sample) -> dict[int, float]:
    scores = document_scores(sample)
    ranks = average_ranks(list(scores.values()))
    return {row: (rank - 0.5) / len(ranks) for row, rank in zip(scores, ranks, strict=True)}


def kept_rows(sample: Sample) -> set[int]:
    return {row for row, kept in enumerate(sample.kept) if kept}


def expected_overlap(first: Sample, second: Sample) -> dict[str, float | None]:
    def size(rows: set[int]) -> int:
        return sum(first.tokens[row] for row in rows)

    a, b, pool = kept_rows(first), kept_rows(second), sum(first.tokens)
    smaller = min(size(a), size(b))
    chance = size(a) * size(b) / pool if pool else 0.0
    either = size(a) + size(b) - chance
    return {
        "shared_tokens": size(a & b),
        "shared_tokens_at_least": size(a & b),
        "overlap": size(a & b) / smaller if smaller else None,
        "overlap_at_least": size(a & b) / smaller if smaller else None,
        "jaccard": size(a & b) / size(a | b) if size(a | b) else None,
        "jaccard_at_least": size(a & b) / size(a | b) if size(a | b) else None,
        "documents_counted_differently": 0,
        "random_overlap": chance / smaller if smaller else None,
        "random_jaccard": chance / either if either else None,
        "documents_kept_by_both": len(a & b),
        "documents_kept_by_first_only": len(a - b),
        "documents_kept_by_second_only": len(b - a),
    }


def near(value: float | None) -> object:
    return None if value is None else pytest.approx(value, abs=1e-12)


def check_pair(found: dict[str, Any], first: Sample, second: Sample) -> None:
    both = document_scores(first).keys() & document_scores(second).keys()
    assert found["documents_scored"] == len(both)
    assert found["spearman"] == near(expected_spearman(first, second))
    for name, value in expected_overlap(first, second).items():
        assert found[name] == near(value), name
    check_disagreements(found, first, second)


def check_disagreements(found: dict[str, Any], first: Sample, second: Sample) -> None:
    percentiles = expected_percentiles(first), expected_percentiles(second)
    for side, (keeper, other) in enumerate(((first, second), (second, first))):
        mine, theirs = percentiles[side], percentiles[1 - side]
        rows = kept_rows(keeper) - kept_rows(other)
        apart = {row: mine[row] - theirs[row] for row in rows if row in mine and row in theirs}
        given = found[("kept_by_first_only", "kept_by_second_only")[side]]
        ids = [one["document_id"] for one in given]
        assert ids == sorted(rows, key=lambda row: (-apart.get(row, -math.inf), row))
        for one in given:
            for name, known in zip(("first", "second"), percentiles, strict=True):
                assert one[name]["percentile"] == near(known.get(one["document_id"]))
