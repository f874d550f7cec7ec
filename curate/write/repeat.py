"""Repetition: weights as whole numbers of copies, for trainers that cannot weight a loss.

Why: a document of weight 1.3 should be seen 1.3 times on average. It gets one copy, and a second
one with probability 0.3.

How: stochastic rounding with noise that is a function of (seed, document) alone (`curate.noise`),
so the copies of a document do not depend on the order, the batch or the process that asks. A part
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

from curate.noise import make_key, uniform
from curate.read.schema import take_rows
from curate.records import ROW_BITS

WEIGHT_COLUMN = "curate_weight"
COPY_FIELD = pa.field("curate_copy", pa.int32())
"""Replaces the weight: 0 for the first copy of a document, 1 for the second."""

BATCH_ROWS = 1024


def part_ids(part: int, rows: int) -> npt.NDArray[np.int64]:
    """Identities of the rows of part number `part`: (part << 40) + position within the part."""
    return (part << ROW_BITS) + np.arange(rows, dtype=np.int64)


def repeat_counts(weights: npt.ArrayLike, ids: npt.ArrayLike, seed: int) -> npt.NDArray[np.int64]:
    """Copies of each document: the weight rounded down or up at random, the weight on average.

    A whole weight gives exactly that many copies; a weight below 1 may give none.
    """
    exact = np.asarray(weights, dtype=np.float64)
    whole = np.floor(exact)
    return (whole + (uniform(make_key(seed, "repetition"), ids) < exact - whole)).astype(np.int64)


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
                yield take_rows(batch, np.flatnonzero(mask))
        row = end
