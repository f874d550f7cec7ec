"""Repetition: weights as whole numbers of copies, for trainers that cannot weight a loss.

Why: a document of weight 1.3 should be seen 1.3 times on average. It gets one copy, and a second
one with probability 0.3.

How: stochastic rounding with noise that is a function of (seed, document) alone, so the copies of a
document do not depend on the order, the batch or the process that asks. The noise is the 64-bit
finalizer of SplitMix (Steele, Lea and Flood 2014) applied to a counter. A part
is emitted in passes, copy 0 of its rows, then copy 1 of those that have one, and so on, because a
trainer that reads in order should not meet the same document twice in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.records import ROW_BITS

WEIGHT_COLUMN = "curate_weight"
COPY_FIELD = pa.field("curate_copy", pa.int32())
"""Replaces the weight: 0 for the first copy of a document, 1 for the second."""

BATCH_ROWS = 1024
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def part_ids(part: int, rows: int) -> npt.NDArray[np.uint64]:
    """Identities of the rows of part number `part`: (part << 40) + position within the part."""
    return np.uint64(part << ROW_BITS) + np.arange(rows, dtype=np.uint64)


def curate_noise(seed: int, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One uniform number in [0, 1) for each of `ids`, a pure function of `seed` and the id.

    Args:
        seed: any integer; taken modulo 2**64.
        ids: non-negative integers below 2**64.
    """
    key = _finalize(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    mixed = _finalize((np.asarray(ids).astype(np.uint64) ^ key) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def repeat_counts(weights: npt.ArrayLike, ids: npt.ArrayLike, seed: int) -> npt.NDArray[np.int64]:
    """Copies of each document: the weight rounded down or up at random, the weight on average.

    A whole weight gives exactly that many copies; a weight below 1 may give none.
    """
    exact = np.asarray(weights, dtype=np.float64)
    whole = np.floor(exact)
    return (whole + (curate_noise(seed, ids) < exact - whole)).astype(np.int64)


def repeated_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of a part whose weights became repetition."""
    fields = [field for field in schema if field.name != WEIGHT_COLUMN]
    return pa.schema([*fields, COPY_FIELD], metadata=schema.metadata)


def repeated_batches(path: Path, part: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Stream part number `part` from its file, rows repeated by weight, one pass for each copy.

    Memory holds one batch and the part's weights; row groups without a further copy are not read.
    """
    with pq.ParquetFile(path) as file:
        weights = file.read(columns=[WEIGHT_COLUMN]).column(0).to_numpy()
        counts = repeat_counts(weights, part_ids(part, len(weights)), seed)
        schema = repeated_schema(file.schema_arrow)
        for copy in range(int(counts.max(initial=0))):
            for rows in _rows_where(file, counts > copy):
                kept = [rows.column(name) for name in schema.names[:-1]]
                number = pa.array(np.full(rows.num_rows, copy, dtype=np.int32))
                yield pa.RecordBatch.from_arrays([*kept, number], schema=schema)


def _rows_where(file: pq.ParquetFile, wanted: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    row = 0
    for group in range(file.num_row_groups):
        end = row + file.metadata.row_group(group).num_rows
        if wanted[row:end].any():
            start = row
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
                mask = wanted[start : start + batch.num_rows]
                start += batch.num_rows
                yield batch.take(pa.array(np.flatnonzero(mask)))
        row = end


def _finalize(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every input bit over all 64 output bits (arithmetic is modulo 2**64)."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))
