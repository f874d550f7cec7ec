"""The outcome at token granularity: each document's last mask, and the share of it that is kept.

The published loop is memoryless: a later visit of a document replaces what an earlier one decided.
So the mask of a document is that of its last visit, its weight the share of its tokens that are
kept, and a document without a kept token is dropped. The budget holds by rounds, each of which
keeps its share of the tokens it drew within one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError
from curate.files import atomic_path
from curate.select.final import Kept, RoundScale, create_inputs, read_fragments
from curate.select.spill import spilling

_BATCH_ROWS = 1024


def select_tokens(
    path: Path,
    masks_path: Path,
    *,
    documents: Sequence[Path],
    decisions: Sequence[Path],
    masks: Sequence[Path],
    scales: Sequence[RoundScale],
) -> Kept:
    """Write records.SELECTION for every pool row, and the kept documents' masks, by document id.

    Args:
        path: where the selection goes, atomically.
        masks_path: where document_id, input_ids and loss_mask of each kept document go.
        documents: fragments of records.DOCUMENT.
        decisions: fragments of records.DECISION.
        masks: fragments of records.MASK.
        scales: one entry per round in `decisions`.
    """
    with (
        atomic_path(path) as selection,
        atomic_path(masks_path) as sorted_masks,
        spilling(path.parent) as database,
    ):
        database.execute("SET preserve_insertion_order = true")
        create_inputs(database, documents, decisions, scales)
        read_fragments(database, masks).create_view("masks")
        database.execute(_LAST)
        database.execute(_OUTCOME)
        _copy(database, "FROM outcome ORDER BY document_id", selection)
        _copy(database, _MASKS, sorted_masks)
        row = database.execute(
            "SELECT count(*), coalesce(sum(tokens_kept), 0) FROM outcome WHERE kept"
        ).fetchone()
    return Kept(*map(int, row or (0, 0)))


class MaskReader:
    """Streams the masks of kept documents in the order of the kept rows of the pool."""

    def __init__(self, path: Path) -> None:
        self._batches = self._read(path)
        self._held = pa.table({})

    def take(self, rows: int) -> pa.Table:
        """The masks of the next `rows` kept documents: input_ids and loss_mask.

        Raises:
            CurateError: there are not so many.
        """
        while self._held.num_rows < rows:
            batch = next(self._batches, None)
            if batch is None:
                raise CurateError(
                    "There are fewer token masks than kept documents.",
                    "Start again with a new output folder.",
                )
            more = pa.Table.from_batches([batch])
            self._held = pa.concat_tables([self._held, more]) if self._held.num_rows else more
        taken, self._held = self._held.slice(0, rows), self._held.slice(rows)
        return taken

    def skip(self, rows: int) -> None:
        """Pass over the masks of the next `rows` kept documents.

        Raises:
            CurateError: there are not so many.
        """
        for start in range(0, rows, _BATCH_ROWS):
            self.take(min(_BATCH_ROWS, rows - start))

    @staticmethod
    def _read(path: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=["input_ids", "loss_mask"])


def _copy(database: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    target = str(path.absolute()).replace("'", "''")
    database.execute(
        f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 100000)"
    )


_LAST = """
CREATE TEMP TABLE last AS
SELECT document_id, max(round) AS round,
       arg_max(tokens_kept, round) AS tokens_kept,
       arg_max(CASE WHEN score_std > 0 THEN (score - score_mean) / score_std ELSE 0 END, round)
           AS score,
       arg_max(excess_loss, round) AS excess_loss,
       max(tokens_kept) > 0 AS ever_kept
FROM decisions JOIN scales USING (round)
GROUP BY document_id
"""

_OUTCOME = """
CREATE TEMP TABLE outcome AS
SELECT documents.document_id,
       coalesce(tokens_kept / tokens, 0)::FLOAT AS weight,
       score::FLOAT AS score,
       excess_loss::FLOAT AS excess_loss,
       round::INTEGER AS round,
       coalesce(tokens_kept, 0) > 0 AS kept,
       coalesce(tokens_kept, 0)::BIGINT AS tokens_kept,
       CASE WHEN problem IS NOT NULL THEN 'quarantined'
            WHEN tokens = 0 THEN 'empty'
            WHEN tokens_kept > 0 THEN 'selected'
            WHEN ever_kept THEN 'overruled'
            ELSE 'never_selected' END AS reason
FROM documents LEFT JOIN last USING (document_id)
"""

_MASKS = """
SELECT document_id, input_ids, loss_mask
FROM masks JOIN last USING (document_id, round)
ORDER BY document_id
"""
