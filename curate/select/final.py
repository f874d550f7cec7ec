"""From the decisions of all rounds to one kept set with weights (DuckDB over the fragments).

The weight of a document is the Frank-Wolfe average of its decisions over its visits. The kept set
is filled by weight, then by standardized score averaged alike, then by noise, until the token
budget is met within one document; kept weights are scaled to mean 1 over kept tokens. DuckDB spills
to disk, so memory does not grow with the pool; sums are exact integers or ordered, so the result
does not depend on its threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.clock import SELECT, doing
from curate.files import atomic_path, pattern_of
from curate.noise import make_key
from curate.records import make_document_id
from curate.select.spill import spilling

_BATCH_ROWS = 1 << 16
_KEPT_COLUMNS = ["weight", "score", "excess_loss", "round"]

_PRIME = (1 << 61) - 1
_EXACT = 1 << 30
"""Weights are counted in units of 2^-30, so that their sums are exact."""


@dataclass(frozen=True, slots=True)
class RoundScale:
    """What a round contributes: its visit's Frank-Wolfe coefficient and its scores' scale."""

    round: int
    coefficient: float
    score_mean: float
    score_std: float


@dataclass(frozen=True, slots=True)
class Kept:
    """Totals of the final selection."""

    documents: int
    tokens: int


class KeptReader:
    """Streams the kept rows of a selection, which is in document id order, shard after shard."""

    def __init__(self, path: Path) -> None:
        self._batches = self._read(path)
        self._held = next(self._batches, None)

    def shard(self, shard_id: int) -> Iterator[pa.RecordBatch]:
        """The kept rows of a shard, which comes after those asked for before, in pieces.

        Their columns: row (in the shard), weight, score, excess_loss, round.
        """
        first, end = make_document_id(shard_id, 0), make_document_id(shard_id + 1, 0)
        while self._held is not None:
            batch, rows = self._held, self._held.column("document_id").to_numpy() - first
            low, high = np.searchsorted(rows, [0, end - first])
            self._held = batch.slice(high) if high < batch.num_rows else next(self._batches, None)
            if low < high:
                mine = batch.slice(low, high - low).select(_KEPT_COLUMNS)
                yield mine.add_column(0, "row", pa.array(rows[low:high]))
            if high < batch.num_rows:
                return

    @staticmethod
    def _read(path: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(
                _BATCH_ROWS, columns=["document_id", "kept", *_KEPT_COLUMNS]
            ):
                kept = batch.filter(batch.column("kept"))
                if kept.num_rows:
                    yield kept


def select_documents(
    path: Path,
    *,
    documents: Sequence[Path],
    decisions: Sequence[Path],
    scales: Sequence[RoundScale],
    keep: float,
    seed: int,
) -> Kept:
    """Write records.SELECTION for every pool row, in document id order, to the Parquet `path`.

    Args:
        path: where the selection goes, atomically.
        documents: fragments of records.DOCUMENT.
        decisions: fragments of records.DECISION.
        scales: one entry per round in `decisions`.
        keep: share of the pool's tokens to keep.
        seed: of the tie breaks.
    """
    with atomic_path(path) as temporary, spilling(path.parent) as database:
        database.execute("SET preserve_insertion_order = true")
        create_inputs(database, documents, decisions, scales)
        database.execute(_AVERAGE)
        (pool_tokens,) = _row(database, "SELECT coalesce(sum(tokens), 0) FROM documents")
        multiplier = make_key(seed, "final ties") % (_PRIME - 1) + 1
        database.execute(_RANK, {"prime": _PRIME, "multiplier": multiplier})
        database.execute(_CUT, {"budget": keep * pool_tokens})
        scale = _weight_scale(database)
        database.execute(_OUTCOME, scale)
        target = str(temporary.absolute()).replace("'", "''")
        database.execute(
            f"COPY (FROM outcome ORDER BY document_id) TO '{target}' "
            "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 100000)"
        )
        kept_documents, kept_tokens = _row(
            database, "SELECT count(*), coalesce(sum(tokens), 0) FROM cut WHERE kept"
        )
    return Kept(int(kept_documents), int(kept_tokens))


@doing(SELECT)
def mark_top(path: Path, scored: Sequence[Path], *, keep: float, seed: int) -> dict[str, float]:
    """Decide a scoring round as a whole: rewrite `scored` to `path` with the top share kept.

    Args:
        path: where the decided records.DECISION rows go, atomically.
        scored: fragments of the same rows with any decisions.
        keep: share of their tokens to keep.
        seed: of the tie breaks.

    Returns:
        `threshold` (the lowest score kept), `documents_kept` and `tokens_kept`.
    """
    with atomic_path(path) as temporary, spilling(path.parent) as database:
        read_fragments(database, scored).create_view("scored")
        multiplier = make_key(seed, "final ties") % (_PRIME - 1) + 1
        (tokens,) = _row(database, "SELECT coalesce(sum(tokens), 0) FROM scored")
        database.execute(_TOP, {"prime": _PRIME, "multiplier": multiplier, "budget": keep * tokens})
        threshold, documents_kept, tokens_kept = _row(
            database,
            "SELECT min(score), count(*), coalesce(sum(tokens), 0) FROM top WHERE now_kept",
        )
        target = str(temporary.absolute()).replace("'", "''")
        columns = "* EXCLUDE (after, now_kept, kept, threshold, tokens_kept)"
        database.execute(
            f"COPY (SELECT {columns}, {float(threshold)!r}::FLOAT AS threshold, now_kept AS kept, "
            "CASE WHEN now_kept THEN tokens ELSE 0 END AS tokens_kept "
            f"FROM top) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
        )
    return {
        "threshold": float(threshold),
        "documents_kept": int(documents_kept),
        "tokens_kept": int(tokens_kept),
    }


def create_inputs(
    database: duckdb.DuckDBPyConnection,
    documents: Sequence[Path],
    decisions: Sequence[Path],
    scales: Sequence[RoundScale],
) -> None:
    """Give a database the views `documents` and `decisions`, and the table `scales`."""
    every = read_fragments(database, documents)
    every.project("document_id, tokens, problem").create_view("documents")  # not the user's columns
    read_fragments(database, decisions).create_view("decisions")
    rows = pa.table(
        {
            "round": pa.array([one.round for one in scales], pa.int32()),
            "coefficient": [one.coefficient for one in scales],
            "score_mean": [one.score_mean for one in scales],
            "score_std": [one.score_std for one in scales],
        }
    )
    database.register("scales", rows)


def read_fragments(
    database: duckdb.DuckDBPyConnection, fragments: Sequence[Path]
) -> duckdb.DuckDBPyRelation:
    """The rows of Parquet files, whatever the folders they lie in are called."""
    return database.read_parquet([pattern_of(path) for path in fragments])


def _weight_scale(database: duckdb.DuckDBPyConnection) -> dict[str, float]:
    """The factor that makes kept weights average 1, and the weight of documents without one."""
    weighted, tokens, filler = _row(
        database,
        f"""
        WITH filler AS (
            SELECT coalesce(min(units) FILTER (WHERE units > 0), {_EXACT}) AS units
            FROM cut WHERE kept
        )
        SELECT sum((CASE WHEN cut.units > 0 THEN cut.units ELSE filler.units END)::HUGEINT
                   * tokens),
               sum(tokens), any_value(filler.units)
        FROM cut, filler WHERE kept
        """,
    )
    if not weighted:
        return {"factor": 1.0, "filler": float(_EXACT)}
    return {"factor": float(tokens) / float(weighted), "filler": float(filler)}


def _row(database: duckdb.DuckDBPyConnection, sql: str) -> tuple[float, ...]:
    row = database.execute(sql).fetchone()
    if row is None:
        raise RuntimeError("an aggregate always gives one row")
    return row


_AVERAGE = f"""
CREATE TEMP TABLE average AS
SELECT document_id,
       round({_EXACT} * sum(CASE WHEN kept THEN coefficient ELSE 0 END ORDER BY round)
             / sum(coefficient ORDER BY round))::BIGINT AS units,
       sum(CASE WHEN score_std > 0 THEN coefficient * (score - score_mean) / score_std ELSE 0 END
           ORDER BY round) / sum(coefficient ORDER BY round) AS score,
       sum(coefficient * excess_loss ORDER BY round)
           / sum(coefficient ORDER BY round) FILTER (excess_loss IS NOT NULL) AS excess_loss,
       coalesce(max(round) FILTER (WHERE kept AND coefficient > 0), max(round)) AS round,
       bool_or(kept) AS ever_kept
FROM decisions JOIN scales USING (round)
GROUP BY document_id
"""

_RANK = """
CREATE TEMP TABLE ranked AS
SELECT document_id, tokens, units, score, excess_loss, round, ever_kept,
       row_number() OVER by_merit AS place,
       sum(tokens) OVER (by_merit ROWS UNBOUNDED PRECEDING) AS after
FROM documents JOIN average USING (document_id)
WINDOW by_merit AS (
    ORDER BY units DESC, score DESC,
             (document_id::HUGEINT + 1) * $multiplier::HUGEINT % $prime::HUGEINT, document_id
)
"""

_CUT = """
CREATE TEMP TABLE cut AS
SELECT *, (2 * after - tokens <= 2 * $budget::DOUBLE) OR place = 1 AS kept
FROM ranked
"""

_OUTCOME = """
CREATE TEMP TABLE outcome AS
SELECT documents.document_id,
       CASE WHEN NOT coalesce(kept, false) THEN 0
            WHEN units > 0 THEN units * $factor ELSE $filler * $factor END::FLOAT AS weight,
       score::FLOAT AS score,
       excess_loss::FLOAT AS excess_loss,
       round::INTEGER AS round,
       coalesce(kept, false) AS kept,
       CASE WHEN kept THEN documents.tokens ELSE 0 END AS tokens_kept,
       CASE WHEN problem IS NOT NULL THEN 'quarantined'
            WHEN documents.tokens = 0 THEN 'empty'
            WHEN kept AND units > 0 THEN 'selected'
            WHEN kept THEN 'filled'
            WHEN units > 0 THEN 'over_budget'
            WHEN ever_kept THEN 'overruled'
            ELSE 'never_selected' END AS reason
FROM documents LEFT JOIN cut USING (document_id)
"""

_TOP = """
CREATE TEMP TABLE top AS
SELECT *, (2 * after - tokens <= 2 * $budget::DOUBLE) OR after = tokens AS now_kept
FROM (
    SELECT *, sum(tokens) OVER (
        ORDER BY score DESC,
                 (document_id::HUGEINT + 1) * $multiplier::HUGEINT % $prime::HUGEINT, document_id
        ROWS UNBOUNDED PRECEDING
    ) AS after
    FROM scored
)
"""
