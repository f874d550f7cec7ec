"""Read one JSON lines shard, plain or compressed, as typed batches.

JSON states no types. Those of a corpus are inferred from the first 16 MiB of every shard and hold
for all of it: a later value or field that does not fit is an error, never a silent change. Strings
stay strings, dates included. Integers beyond 64 bits signed are inferred as doubles. A shard is
read in chunks of whole lines, so memory is bounded by the longest line and not by the file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.json

from curate.errors import InvalidInput
from curate.read.locate import Located, measure, shard_error, short_reason
from curate.read.schema import Probe, conform

CHUNK_BYTES = 4 << 20
"""Least bytes of a chunk, but for the last."""

PREFIX_BYTES = 16 << 20
"""Bytes at the start of a shard from which its schema is inferred."""

COMPRESSION_RATIO = 4
"""Assumed ratio of text to compressed file."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class JsonlReader:
    """Reads the shard at `file`; holds nothing open between calls."""

    file: Located

    def probe(self, text_column: str) -> Probe:
        """Infer the schema from the start of the file; `text_column` changes nothing here.

        Raises:
            InvalidInput: the shard is out of reach, or a line at its start is broken.
        """
        del text_column
        try:
            with self.file.open(ranged=True) as stream:
                size, fingerprint = measure(stream)
            prefix = next(self._chunks(PREFIX_BYTES), b"")
        except Exception as error:  # every storage backend has exceptions of its own
            raise shard_error(self.file, error, "JSONL") from None
        return Probe(
            schema=self._infer(prefix),
            size=size,
            rows=None,
            text_bytes=size * (COMPRESSION_RATIO if self.file.codec else 1),
            fingerprint=fingerprint,
        )

    def read(
        self, schema: pa.Schema, wanted: pa.Schema, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the records in order as batches of `wanted`, at most `batch_rows` rows each.

        Every record is checked against the corpus schema `schema`, wanted or not.

        Raises:
            InvalidInput: a record does not fit, or the shard is damaged or out of reach.
        """
        row = 0
        chunks = self._chunks(CHUNK_BYTES)
        while chunk := self._next(chunks):
            table = self._parse(chunk, schema, row)
            for batch in table.to_batches(max_chunksize=batch_rows):
                yield conform(batch, wanted)
            row += table.num_rows

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        try:
            return next(chunks, b"")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise shard_error(self.file, error, "JSONL") from None

    def _chunks(self, least: int) -> Iterator[bytes]:
        with self._stream() as stream:
            yield from line_chunks(stream, least)

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        with self.file.open(ranged=False) as raw:
            if self.file.codec is None:
                yield raw
                return
            with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), self.file.codec) as stream:
                yield stream

    def _infer(self, prefix: bytes) -> pa.Schema:
        if not prefix:
            return pa.schema([])
        schema = self._parse(prefix, None, 0).schema
        return pa.schema([field.with_type(keep_strings(field.type)) for field in schema])

    def _parse(self, chunk: bytes, schema: pa.Schema | None, row: int) -> pa.Table:
        """Decode a chunk whose first record is `row`; None infers the schema."""
        try:
            table = pyarrow.json.read_json(
                io.BytesIO(chunk),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(chunk)),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=schema,
                    unexpected_field_behavior="infer" if schema is None else "error",
                ),
            )
            table.validate(full=True)  # the parser lets invalid UTF-8 through
        except (pa.ArrowException, ValueError) as error:
            raise self._misfit(chunk, schema, row, error) from None
        return table

    def _misfit(
        self, chunk: bytes, schema: pa.Schema | None, row: int, error: Exception
    ) -> InvalidInput:
        lines = [line for line in chunk.splitlines() if line.strip()]
        where = f"rows {row} to {row + len(lines) - 1}"
        unseen = None if schema is None else _unseen_field(lines, frozenset(schema.names))
        if unseen is not None:
            return InvalidInput(
                f'Shard {self.file.uri} has a field "{unseen}" in {where} that the first '
                f"{PREFIX_BYTES >> 20} MiB of no shard has.",
                "Put a record with every field near the start of a shard, or drop the field.",
            )
        reason = re.sub(r" in row \d+$", "", short_reason(error))
        return InvalidInput(
            f"Shard {self.file.uri} cannot be read as JSON lines in {where} ({reason}).",
            "Repair those lines, or give each field values of one type.",
        )


def line_chunks(stream: Any, least: int) -> Iterator[bytes]:
    """Cut a byte stream into chunks of whole lines of at least `least` bytes each.

    The last chunk may be shorter and lack its line end; chunks of blank lines only are left out,
    and so is a byte order mark.
    """
    parts = [stream.read(3).removeprefix(b"\xef\xbb\xbf")]
    size = len(parts[0])
    while block := stream.read(_BLOCK_BYTES):
        cut = block.rfind(b"\n") + 1
        if not cut or size + cut < least:
            parts.append(block)
            size += len(block)
            continue
        chunk = b"".join([*parts, block[:cut]])
        parts, size = [block[cut:]], len(block) - cut
        if not chunk.isspace():
            yield chunk
    chunk = b"".join(parts)
    if chunk and not chunk.isspace():
        yield chunk


def keep_strings(kind: pa.DataType) -> pa.DataType:
    """The inferred type with timestamps, which JSON writes as strings, as strings again."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(keep_strings(kind.value_type)))
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(keep_strings(field.type)) for field in fields])
    return kind


def _unseen_field(lines: list[bytes], names: frozenset[str]) -> str | None:
    """The first top-level field outside `names`, or None where a line is broken before it."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            return None
        for name in record if isinstance(record, dict) else ():
            if name not in names:
                return str(name)
    return None
