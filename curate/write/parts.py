"""Parts: the curated dataset, one Parquet file per pool shard that has kept rows.

Why: a part holds the user's columns exactly as they were read, with the outcome of the selection
beside them, so that any trainer can read it and nothing has to be joined again.

How: the batches of one shard stream by, and the selection beside them; the kept rows of each are
taken, the four output columns are appended, and full row groups are written as soon as they are
complete. Memory holds one batch and at most one row group. Row groups are cut by kept rows, not by
incoming batches, so the bytes of a part depend on its rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError, InvalidInput
from curate.files import atomic_path
from curate.read.schema import take_rows
from curate.records import OUTPUT_COLUMNS, TOKEN_COLUMNS
from curate.select.masks import MaskReader
from curate.write.sizes import row_bytes

_PREFIX = "curate_"
_PART = "part-"
_GROUP_BYTES = 1 << 28
"""What a row group may hold (`row_bytes`) before it is cut short: 64 KiB a row in one of 4096."""


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
    return sorted(filter(is_part, (out / "data").glob("*.parquet")), key=part_number)


def is_part(path: Path) -> bool:
    """Whether a file in `data/` has the name of a part."""
    named = path.name.startswith(_PART) and path.suffix == ".parquet"
    return named and path.stem.removeprefix(_PART).isdecimal()


def part_number(path: Path) -> int:
    """The shard that a part is of."""
    return int(path.stem.removeprefix(_PART))


def write_part(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[tuple[int, pa.RecordBatch]],
    selection: Iterable[pa.RecordBatch],
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
        selection: the kept rows of this shard in pieces: row (int64, ascending, unique), weight,
            score, excess_loss, round.
        masks: token masks, of which those of this shard's kept rows come next; adds
            records.TOKEN_COLUMNS.
        row_group_rows: rows per row group of the file.
        compression: Parquet codec.

    Raises:
        InvalidInput: see `output_schema`.
        CurateError: the shard no longer holds every selected row.
    """
    selected = _Selected(selection)
    if selected.ended:
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
        for group in row_groups(_kept(out, batches, selected, masks), out, row_group_rows):
            writer.write_table(group, row_group_size=row_group_rows)
            written += group.num_rows
        if written != (wanted := selected.count()):
            raise CurateError(
                f"Only {written} of the {wanted} rows selected for {path.name} are in its shard.",
                "The pool changed during the run: start again with a new output folder.",
            )
    return written


def row_groups(
    pieces: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int, size: int = _GROUP_BYTES
) -> Iterator[pa.Table]:
    """Regroup `pieces` into tables of `rows` rows; the last one may be shorter.

    So are those of rows so long that a table would hold more than about `size` bytes.
    """
    pending: list[pa.RecordBatch] = []
    held = held_bytes = 0
    for piece in pieces:
        ends = np.cumsum(row_bytes(piece))
        start = 0
        while start < piece.num_rows:
            before = int(ends[start - 1]) if start else 0
            fits = int(np.searchsorted(ends, before + size - held_bytes, "right"))
            end = min(start + rows - held, fits if pending else max(fits, start + 1))
            if end > start:
                pending.append(piece.slice(start, end - start))
                held += end - start
                held_bytes += int(ends[end - 1]) - before
                start = end
            if start < piece.num_rows or held == rows:
                yield pa.Table.from_batches(pending, schema).combine_chunks()
                pending, held, held_bytes = [], 0, 0
    if pending:
        yield pa.Table.from_batches(pending, schema).combine_chunks()


class _Selected:
    """The kept rows of a shard, taken in their order and counted."""

    def __init__(self, pieces: Iterable[pa.RecordBatch]) -> None:
        self._pieces = iter(pieces)
        self._count = 0
        self._held: pa.RecordBatch | None = None
        self._advance()

    @property
    def ended(self) -> bool:
        """Whether no row is left."""
        return self._held is None

    def take(self, first: int, end: int) -> tuple[npt.NDArray[np.int64], list[pa.RecordBatch]]:
        """Those of rows `first` to `end`: their numbers, and themselves; none from before."""
        numbers, found = [], []
        while self._held is not None:
            rows = self._held.column("row").to_numpy()
            low, high = np.searchsorted(rows, [first, end])
            if low < high:
                numbers.append(rows[low:high])
                found.append(self._held.slice(low, high - low))
            if high < len(rows):
                self._held = self._held.slice(high)
                break
            self._advance()
        return np.concatenate(numbers or [np.empty(0, np.int64)]), found

    def count(self) -> int:
        """How many there are in all, those not taken too; none is left after that."""
        while self._held is not None:
            self._advance()
        return self._count

    def _advance(self) -> None:
        self._held = next((one for one in self._pieces if one.num_rows), None)
        self._count += self._held.num_rows if self._held is not None else 0


def _kept(
    out: pa.Schema,
    batches: Iterable[tuple[int, pa.RecordBatch]],
    selected: _Selected,
    masks: MaskReader | None,
) -> Iterator[pa.RecordBatch]:
    """The kept rows of every batch that has some, with the output columns appended."""
    for first_row, batch in batches:
        rows, found = selected.take(first_row, first_row + batch.num_rows)
        if not found:
            continue
        taken = take_rows(batch, rows - first_row)
        outcome = _columns(pa.Table.from_batches(found), OUTPUT_COLUMNS)
        if masks is not None:
            outcome += _columns(masks.take(len(rows)), TOKEN_COLUMNS)
        yield pa.RecordBatch.from_arrays([*taken.columns, *outcome], schema=out)


def _columns(table: pa.Table, fields: Sequence[pa.Field]) -> list[pa.Array]:
    columns = []
    for field in fields:
        column = table.column(field.name.removeprefix(_PREFIX)).cast(field.type)
        columns.append(pa.concat_arrays(column.chunks))
    return columns
