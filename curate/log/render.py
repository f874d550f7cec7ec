"""Query results as a table, CSV, JSON or Parquet, batch by batch.

Results may be as large as the log, so rows are written as they come. The text table needs the
widths of its columns before its first line: the first thousand rows decide, and a wider cell
further down pushes its line to the right. `why` and `summary` are rendered in `explain.py` and are
offered here too.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from typing import IO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import InvalidInput
from curate.log.cells import cell, is_numeric, line, python_values, shorten, visible, widths
from curate.log.explain import render_summary, render_why
from curate.log.plain import json_text, plain

__all__ = [
    "render_summary",
    "render_why",
    "write_csv",
    "write_json",
    "write_parquet",
    "write_table",
]

_ROWS_THAT_SET_WIDTHS = 1000


def write_table(reader: pa.RecordBatchReader, stream: TextIO) -> None:
    """Write an aligned text table: numbers to the right, long text cut, the row count last."""
    names = [shorten(visible(name)) for name in reader.schema.names]
    right = [is_numeric(kind) for kind in reader.schema.types]
    rows = (tuple(cell(value) for value in row) for row in _rows(reader))
    first = list(itertools.islice(rows, _ROWS_THAT_SET_WIDTHS))
    sizes = widths([names, *first])
    stream.write(line(names, sizes, right))
    stream.write("  ".join("-" * size for size in sizes) + "\n")
    count = 0
    for row in itertools.chain(first, rows):
        stream.write(line(row, sizes, right))
        count += 1
    stream.write("(1 row)\n" if count == 1 else f"({count:,} rows)\n")


def write_csv(reader: pa.RecordBatchReader, stream: TextIO) -> None:
    """Write CSV with a header; NULL is empty, bytes are hexadecimal, lists are JSON."""
    plainly = csv.writer(stream, lineterminator="\n")
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in itertools.chain([reader.schema.names], _rows(reader)):
        ready = [_csv_value(value) for value in row]
        returns = any(isinstance(value, str) and "\r" in value for value in ready)
        (quoted if returns else plainly).writerow(ready)  # before 3.13, \r alone is not quoted


def write_json(reader: pa.RecordBatchReader, stream: TextIO) -> None:
    """Write an array of objects, one to a line.

    Decimals with places, dates, times and bytes are text; NaN and infinities are null. A column
    name that repeats gets a number.
    """
    names = _unique(reader.schema.names)
    separator = "[\n"
    for row in _rows(reader):
        stream.write(separator + json_text(dict(zip(names, row, strict=True))))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def write_parquet(reader: pa.RecordBatchReader, stream: IO[bytes]) -> None:
    """Write one Parquet file."""
    try:
        with pq.ParquetWriter(stream, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidInput(
            f"Parquet cannot hold the result: {str(error).splitlines()[0]}.",
            "Cast the column to another type, for example ::VARCHAR.",
        ) from error


def _rows(reader: pa.RecordBatchReader) -> Iterator[tuple[object, ...]]:
    for batch in reader:
        yield from zip(*(python_values(column) for column in batch.columns), strict=True)


def _csv_value(value: object) -> object:
    if isinstance(value, float):
        return value
    ready = plain(value)
    return json_text(ready) if isinstance(ready, (dict, list, bool)) else ready


def _unique(names: Sequence[str]) -> list[str]:
    unique: list[str] = []
    for name in names:
        fresh = name
        for number in itertools.count(2):
            if fresh not in unique:
                break
            fresh = f"{name}_{number}"
        unique.append(fresh)
    return unique
