"""What a round decided, on its way to disk: decisions, and token masks where there are any."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.files import atomic_path
from curate.read.documents import Documents, offsets_from_lengths
from curate.records import DECISION, MASK
from curate.select.methods.base import Scores

_ROWS_PER_WRITE = 100_000
_TOKENS_PER_WRITE = 4_000_000


@dataclass(frozen=True, slots=True)
class Decided:
    """What the budget kept of a block of N documents.

    Attributes:
        documents: which documents are kept, at least in part, bool [N].
        tokens_kept: tokens kept of each document, int64 [N].
        threshold: lowest score kept; NaN when nothing was.
        tokens: which tokens are kept, bool [tokens]; None at document granularity.
    """

    documents: npt.NDArray[np.bool_]
    tokens_kept: npt.NDArray[np.int64]
    threshold: float
    tokens: npt.NDArray[np.bool_] | None = None


class DecisionWriter:
    """Buffers a round's decisions and masks and writes them as row groups, each file whole or not.

    Args:
        path: records.DECISION rows.
        masks: records.MASK rows; None to write none.
        round_index: the round's number.
    """

    def __init__(self, path: Path, masks: Path | None, round_index: int) -> None:
        self._paths = (path, masks)
        self._round = round_index
        self._files = contextlib.ExitStack()

    def __enter__(self) -> DecisionWriter:
        path, masks = self._paths
        self._decisions = self._open(path, DECISION, _ROWS_PER_WRITE)
        self._masks = self._open(masks, MASK, _TOKENS_PER_WRITE) if masks else None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def add(self, block: Documents, scores: Scores, decided: Decided) -> None:
        """Write what was decided about a block."""
        rows = len(block)
        columns = [
            pa.array(block.ids),
            pa.array(np.full(rows, self._round, np.int32)),
            pa.array(block.lengths),
            pa.array(block.bytes),
            pa.array(block.lengths if scores.tokens_read is None else scores.tokens_read),
            _nullable(scores.proxy_loss),
            _nullable(scores.reference_loss),
            _nullable(scores.excess_loss),
            _part(scores.ngram_vote, rows),
            _part(scores.redundancy_vote, rows),
            _part(scores.noise, rows),
            _nullable(scores.score),
            _nullable(np.full(rows, decided.threshold)),
            pa.array(decided.documents),
            pa.array(decided.tokens_kept),
        ]
        self._decisions.add(pa.RecordBatch.from_arrays(columns, schema=DECISION), rows)
        if self._masks is not None and decided.tokens is not None:
            masks = block.masked(decided.tokens).take(np.flatnonzero(decided.documents))
            self._masks.add(_mask_batch(masks, self._round), masks.num_tokens)

    def _open(self, path: Path, schema: pa.Schema, size: int) -> _Buffer:
        temporary = self._files.enter_context(atomic_path(path))
        writer = self._files.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd"))
        return self._files.enter_context(_Buffer(writer, size))


class _Buffer:
    """Record batches on their way into one Parquet file, written when `size` units are held.

    They are held in a few tables, each less than half of the one before. Thousands of small arrays
    would lie scattered over the heap, and what is free between them would be too small for the next
    large one (benchmarks/LOG.md).
    """

    def __init__(self, writer: pq.ParquetWriter, size: int) -> None:
        self._writer, self._size = writer, size
        self._held: list[pa.Table] = []
        self._units = 0

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def add(self, batch: pa.RecordBatch, units: int) -> None:
        held = self._held
        held.append(pa.Table.from_batches([batch]))
        while len(held) > 1 and held[-2].num_rows <= 2 * held[-1].num_rows:
            held[-2:] = [pa.concat_tables(held[-2:]).combine_chunks()]
        self._units += units
        if self._units >= self._size:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held))
        self._held, self._units = [], 0


def _mask_batch(documents: Documents, round_index: int) -> pa.RecordBatch:
    offsets = pa.array(offsets_from_lengths(documents.lengths).astype(np.int32))
    columns = [
        pa.array(documents.ids),
        pa.array(np.full(len(documents), round_index, np.int32)),
        pa.ListArray.from_arrays(offsets, pa.array(documents.input_ids.astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(documents.counted, pa.bool_())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=MASK)


def _part(part: npt.NDArray[np.float64] | None, rows: int) -> pa.Array:
    return pa.nulls(rows, pa.float32()) if part is None else _nullable(part)


def _nullable(values: npt.NDArray[np.float64]) -> pa.Array:
    """float32 with NaN as null."""
    return pa.array(values.astype(np.float32), from_pandas=True)
