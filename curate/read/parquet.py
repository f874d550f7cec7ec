"""Read one Parquet shard: its footer for the checks, then its rows, one row group at a time.

The footer alone gives the schema, the row count and about the size of the text. Rows are decoded
batch by batch through a small buffer per column, so neither the file nor a row group is held. On
remote storage the selected columns of one row group are fetched ahead in few large requests, and
one row group (compressed) is then the bound. Page checksums are verified where a file has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.read.locate import Located, fingerprint_now, measure, shard_error
from curate.read.schema import (
    OnBadRow,
    Probe,
    conform,
    damaged,
    fewer_rows,
    ignore_bad_row,
)

BUFFER_BYTES = 1 << 20
"""Read buffer per column chunk of a local file."""


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads the shard at `file`; holds nothing open between calls."""

    file: Located

    def probe(self) -> Probe:
        """Read the footer and both ends of the file; a broken footer is the probe's damage.

        Raises:
            InvalidInput: the shard is out of reach.
        """
        size, fingerprint = 0, ""
        try:
            with self.file.open(ranged=True) as stream:
                size, fingerprint = measure(stream)
                footer = pq.ParquetFile(stream)
                return Probe(
                    schema=footer.schema_arrow,
                    size=size,
                    rows=footer.metadata.num_rows,
                    text_bytes=_uncompressed_bytes(footer.metadata),
                    fingerprint=fingerprint,
                )
        except Exception as error:  # every storage backend has exceptions of its own
            return damaged(shard_error(self.file, error, "Parquet"), size, fingerprint)

    def fingerprint(self) -> str:
        """Hash of both ends of the file as it is now."""
        return fingerprint_now(self.file, "Parquet")

    def read(
        self,
        schema: pa.Schema,
        wanted: pa.Schema,
        batch_rows: int,
        on_bad: OnBadRow = ignore_bad_row,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order as batches of `wanted`, at most `batch_rows` rows each.

        Of large rows a batch has fewer: about `BATCH_BYTES`, by what the footer says of the row
        group. `schema` is the corpus schema, of which `wanted` is a part. A row is not damaged
        alone, so `on_bad` is told nothing.

        Raises:
            DamagedShard: the data of the shard is damaged.
            InvalidInput: the shard is out of reach.
        """
        del on_bad
        columns = None if wanted.names == schema.names else wanted.names
        try:
            with self._open() as reader:
                for group in range(reader.num_row_groups):
                    facts = reader.metadata.row_group(group)
                    most = fewer_rows(batch_rows, facts.total_byte_size, facts.num_rows)
                    for batch in reader.iter_batches(most, [group], columns):
                        if not set(wanted.names) <= set(batch.schema.names):
                            raise ValueError("its footer names columns that it has not")  # noqa: TRY301
                        if batch.num_rows:
                            yield conform(batch, wanted)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise shard_error(self.file, error, "Parquet") from None

    def _open(self) -> Any:
        if self.file.is_local:
            return pq.ParquetFile(
                self.file.path,
                buffer_size=BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            )
        stream = pa.PythonFile(self.file.open(ranged=True), mode="r")
        return pq.ParquetFile(stream, pre_buffer=True, page_checksum_verification=True)


def _uncompressed_bytes(metadata: Any) -> int:
    """Bytes of all columns, of which text is the most by far.

    Those of one column would mean to ask for its chunks, and a damaged entry of one makes pyarrow
    abort the whole process: no exception of the constructor behind `column()` is caught.
    """
    return sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
