"""Parts: the curated dataset, one Parquet file per pool shard that has kept rows.

Why: a part holds the user's columns exactly as they were read, with the outcome of the selection
beside them, so that any trainer can read it and nothing has to be joined again.

How: the batches of one shard stream by; the kept rows of each are taken, the four output columns
are appended, and full row groups are written as soon as they are complete. Memory holds one batch
and at most one row group. Row groups are cut by kept rows, not by incoming batches, so the bytes of
a part depend on its rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError, InvalidInput
from curate.files import atomic_path
from curate.read.schema import take_rows
from curate.records import OUTPUT_COLUMNS, TOKEN_COLUMNS
from curate.select.masks import MaskReader

_PREFIX = "curate_"
_PART = "part-"


def output_schema(schema: pa.Schema, fields: Sequence[pa.Field] = OUTPUT_COLUMNS) -> pa.Schema:
    """The schema of a part: that of the pool, its metadata kept, then `fields`.

    Raises:
        InvalidInput: the pool already has a column of one of these names.
    """
    for field in fields:
        if field.name in schema.names:
            raise InvalidInput(
                f"The pool already has a column named {field.name}.",
                "Rename or drop that column, curate writes one of its own under this name.",
            )
    return pa.schema([*schema, *fields], metadata=schema.metadata)


def part_files(out: Path) -> list[Path]:
    """The parts of the run in `out`, in pool order; files of other names in `data/` are none."""
    files = (out / "data").glob(f"{_PART}*.parquet")
    parts = (file for file in files if file.stem.removeprefix(_PART).isdecimal())
    return sorted(parts, key=part_number)


def part_number(path: Path) -> int:
    """The shard that a part is of."""
    return int(path.stem.removeprefix(_PART))


def write_part(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[tuple[int, pa.RecordBatch]],
    selection: pa.Table,
    *,
    masks: MaskReader | None = None,
    row_group_rows: int = 4096,
    compression: str = "zstd",
) -> int:
    """Write the kept rows of one shard to `path`, atomically; return how many there are.

    Args:
        path: the Parquet file to write; not touched when `selection` is empty.
        schema: the schema of the pool.
        batches: the shard as (first row number, batch with all columns) pairs, rows ascending.
        selection: the kept rows of this shard: row (int64, ascending, unique), weight, score,
            excess_loss, round.
        masks: token masks, of which those of this shard's kept rows come next; adds
            records.TOKEN_COLUMNS.
        row_group_rows: rows per row group of the file.
        compression: Parquet codec.

    Raises:
        InvalidInput: see `output_schema`.
        CurateError: the shard no longer holds every selected row.
    """
    if selection.num_rows == 0:
        return 0
    out = output_schema(schema, OUTPUT_COLUMNS + (TOKEN_COLUMNS if masks else ()))
    written = 0
    with (
        atomic_path(path) as temporary,
        # Not "compliant": that would rename the elements of the pool's lists.
        pq.ParquetWriter(
            temporary, out, compression=compression, use_compliant_nested_type=False
        ) as writer,
    ):
        for group in row_groups(_kept(out, batches, selection, masks), out, row_group_rows):
            writer.write_table(group, row_group_size=row_group_rows)
            written += group.num_rows
        if written != selection.num_rows:
            raise CurateError(
                f"Only {written} of the {selection.num_rows} rows selected for {path.name} "
                "are in its shard.",
                "The pool changed during the run: start again with a new output folder.",
            )
    return written


def row_groups(
    pieces: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int
) -> Iterator[pa.Table]:
    """Regroup `pieces` into tables of `rows` rows; the last one may be shorter."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for piece in pieces:
        pending.append(piece)
        held += piece.num_rows
        if held < rows:
            continue
        table = pa.Table.from_batches(pending, schema)
        full = held - held % rows
        for start in range(0, full, rows):
            yield table.slice(start, rows).combine_chunks()
        pending = table.slice(full).to_batches()
        held -= full
    if held:
        yield pa.Table.from_batches(pending, schema).combine_chunks()


def _kept(
    out: pa.Schema,
    batches: Iterable[tuple[int, pa.RecordBatch]],
    selection: pa.Table,
    masks: MaskReader | None,
) -> Iterator[pa.RecordBatch]:
    """The kept rows of every batch that has some, with the output columns appended."""
    rows = selection.column("row").to_numpy()
    for first_row, batch in batches:
        low, high = np.searchsorted(rows, [first_row, first_row + batch.num_rows])
        if low == high:
            continue
        taken = take_rows(batch, rows[low:high] - first_row)
        outcome = _columns(selection.slice(low, high - low), OUTPUT_COLUMNS)
        if masks is not None:
            outcome += _columns(masks.take(high - low), TOKEN_COLUMNS)
        yield pa.RecordBatch.from_arrays([*taken.columns, *outcome], schema=out)


def _columns(table: pa.Table, fields: Sequence[pa.Field]) -> list[pa.Array]:
    columns = []
    for field in fields:
        column = table.column(field.name.removeprefix(_PREFIX)).cast(field.type)
        columns.append(pa.concat_arrays(column.chunks))
    return columns
