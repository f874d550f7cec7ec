"""Read one JSON lines shard, plain or compressed, as typed batches.

JSON states no types. Those of a corpus are inferred from the first 16 MiB of every shard and hold
for all of it: a line that is broken, or has a later value or field that does not fit, becomes a row
of nulls that is reported, never a silent change. Strings stay strings, dates included. A field with
integers beyond 64 bits signed is uint64 where that holds all its values; integers that doubles
would round are refused. A shard is read in chunks of whole lines, so memory is bounded by the
longest line and not by the file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from curate.errors import DamagedShard, InvalidInput
from curate.read.integers import (
    Place,
    as_unsigned,
    inexact_integers,
    integers_in_doubles,
    is_rounded,
    name_of,
    negative_integers,
    refuse_negative,
    refuse_rounding,
    unify_inferred,
    would_round,
)
from curate.read.locate import Located, fingerprint_now, measure, shard_error, short_reason
from curate.read.schema import OnBadRow, Probe, conform, damaged, ignore_bad_row

CHUNK_BYTES = 4 << 20
"""Least bytes of a chunk, but for the last."""

PREFIX_BYTES = 16 << 20
"""Bytes at the start of a shard from which its schema is inferred."""

COMPRESSION_RATIO = 4
"""Assumed ratio of text to compressed file."""

_BLOCK_BYTES = 1 << 20
_ARROW_PLACE = re.compile(r"^Column .*Invalid: | at string index \d+$| in row \d+$")
"""What Arrow says about a place in a chunk, which is not the place in the shard."""
_FIRST_RECORD = b"{}\n"
"""Put before a chunk: Arrow's parser ends the process where the first value is null."""
_NULL_LINE = re.compile(rb"\n[ \t\r]*null")
_NO_RECORD = "the line is not a JSON object"
_DEEPEST = 100
"""Values within values, at most: parsers and every later stage walk through them by recursion."""
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_OPENERS, _CLOSERS = (np.frombuffer(text, np.uint8) for text in (b"[{", b"]}"))
_HOPELESS_ROWS = 1000
"""So many bad rows, and more of them than good ones, are no longer looked at one by one."""


@dataclass(frozen=True, slots=True)
class JsonlReader:
    """Reads the shard at `file`; holds nothing open between calls."""

    file: Located

    def probe(self) -> Probe:
        """Infer the schema from the start of the file.

        Broken lines are left out; a start without any other is the probe's damage.

        Raises:
            InvalidInput: the shard is out of reach, or its lines have no types in common, or none
                but such as would round integers.
        """
        size, fingerprint = 0, ""
        try:
            with self.file.open(ranged=True) as stream:
                size, fingerprint = measure(stream)
            schema, inexact, negative = self._infer(next(self._chunks(PREFIX_BYTES), b""))
        except DamagedShard as error:
            return damaged(error, size, fingerprint)
        except InvalidInput:
            raise
        except Exception as error:  # every storage backend has exceptions of its own
            return damaged(shard_error(self.file, error, "JSONL"), size, fingerprint)
        return Probe(
            schema=schema,
            size=size,
            rows=None,
            text_bytes=size * (COMPRESSION_RATIO if self.file.codec else 1),
            fingerprint=fingerprint,
            inexact=inexact,
            negative=negative,
        )

    def fingerprint(self) -> str:
        """Hash of both ends of the file as it is now."""
        return fingerprint_now(self.file, "JSONL")

    def read(
        self,
        schema: pa.Schema,
        wanted: pa.Schema,
        batch_rows: int,
        on_bad: OnBadRow = ignore_bad_row,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the records in order as batches of `wanted`, at most `batch_rows` rows each.

        Every record is checked against the corpus schema `schema`, wanted or not. `on_bad` is told
        of each that does not fit before the batch with its row of nulls comes.

        Raises:
            DamagedShard: the shard is damaged, or most of it does not fit.
            InvalidInput: the shard is out of reach.
        """
        row = bad = 0
        chunks = self._chunks(CHUNK_BYTES)
        while chunk := self._next(chunks):
            for part in _parse_parts(chunk, schema):
                if isinstance(part, str):
                    on_bad(row, part)
                    bad += 1
                    table = pa.Table.from_pylist([{}], schema)
                else:
                    table = part
                for batch in table.to_batches(max_chunksize=batch_rows):
                    yield conform(batch, wanted)
                row += table.num_rows
                if bad > _HOPELESS_ROWS and 2 * bad > row:
                    raise DamagedShard(
                        f"Shard {self.file.uri} is not a readable JSONL file ({bad:,} of its first "
                        f"{row:,} rows cannot be read).",
                        "Repair or remove the shard.",
                    )

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

    def _infer(self, prefix: bytes) -> tuple[pa.Schema, dict[Place, int], dict[Place, int]]:
        """The schema of the sound lines at the start, with integers that doubles would round and
        negative ones.
        """
        if not prefix:
            return pa.schema([]), {}, {}
        try:
            parts = list(_parse_parts(prefix, None))
        except _WouldRoundError as error:
            raise would_round(self.file.uri, error.place, error.integer) from None
        sound = [part for part in parts if not isinstance(part, str)]
        if not sound:
            raise DamagedShard(
                f"Shard {self.file.uri} is not a readable JSONL file ({parts[0]}).",
                "Repair or remove the shard.",
            )
        try:
            schema = unify_inferred([keep_strings_in(part.schema) for part in sound])
        except pa.ArrowException as error:
            raise InvalidInput(
                f"Shard {self.file.uri} has values of several types in one field "
                f"({short_reason(error)}).",
                "Give each field values of one type.",
            ) from None
        inexact = {place: one for part in sound for place, one in inexact_integers(part).items()}
        negative = {place: one for part in sound for place, one in negative_integers(part).items()}
        refuse_rounding(self.file.uri, inexact, schema)
        refuse_negative(self.file.uri, negative, schema)
        return schema, inexact, negative


class _WouldRoundError(Exception):
    """A field has integers that no type holds together with its other values."""

    def __init__(self, place: Place, integer: int) -> None:
        super().__init__(place, integer)
        self.place, self.integer = place, integer


def _parse_parts(chunk: bytes, schema: pa.Schema | None) -> Iterator[pa.Table | str]:
    """The records of a chunk in order: tables of sound ones, and why a single one is not sound.

    A chunk that does not parse is halved until what is broken stands alone; None infers schemas.

    Raises:
        _WouldRoundError: schemas are to be inferred, and none holds all integers.
    """
    try:
        table = _parse(chunk, schema)
    except (pa.ArrowException, ValueError) as error:
        lines = [line for line in chunk.split(b"\n") if line.strip()]
        if len(lines) == 1:
            yield _bad_line(lines[0], schema, error)
            return
    else:
        yield table
        return
    middle = len(lines) // 2
    yield from _parse_parts(b"\n".join(lines[:middle]), schema)
    yield from _parse_parts(b"\n".join(lines[middle:]), schema)


def _parse(chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    chunk = _FIRST_RECORD + chunk
    _check_lines(chunk)
    table = _read(chunk, schema)
    table.validate(full=True)  # the parser lets invalid UTF-8 through
    large = integers_in_doubles(chunk, table)
    if schema is not None:
        for place, integer in large:
            if is_rounded(integer):
                where = f'in field "{name_of(place)}"'
                raise ValueError(f"{integer} {where} does not fit a double exactly")
        return table
    _check_names(table.schema)  # in names too
    found = sorted(large, key=lambda one: is_rounded(one[1]))
    return _unsigned(chunk, table, dict(found))


def _read(chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    table = pyarrow.json.read_json(
        io.BytesIO(chunk),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(chunk)),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema,
            unexpected_field_behavior="infer" if schema is None else "error",
        ),
    )
    return table.slice(1)


def _unsigned(chunk: bytes, table: pa.Table, large: dict[Place, int]) -> pa.Table:
    """The table with uint64 in place of doubles where that holds all values of a field.

    Raises:
        _WouldRoundError: a double would round integers of a field where uint64 does not.
    """
    for place, integer in large.items():
        schema = as_unsigned(keep_strings_in(table.schema), {place})
        try:
            table = _read(chunk, schema)
        except pa.ArrowException:
            if is_rounded(integer):
                raise _WouldRoundError(place, integer) from None
    return table


def _check_lines(chunk: bytes) -> None:
    """Refuse what Arrow's parser does not: null, which it takes for a record, and deep nesting,
    which ends the process.

    Raises:
        ValueError: a line holds one of them.
    """
    if _NULL_LINE.search(chunk):
        raise ValueError(_NO_RECORD)
    for line in chunk.split(b"\n") if _openings(chunk) > _DEEPEST else ():
        if _openings(line) > _DEEPEST and _depth(line) > _DEEPEST:
            raise ValueError(f"values are nested more than {_DEEPEST} deep")


def _openings(text: bytes) -> int:
    """At least as many as values within values."""
    return text.count(b"[") + text.count(b"{")


def _depth(line: bytes) -> int:
    """Values within values of one line, exact where it is valid JSON."""
    marks = np.frombuffer(_STRING.sub(b"", line), np.uint8)
    steps = np.isin(marks, _OPENERS).astype(np.int64) - np.isin(marks, _CLOSERS)
    return int(np.cumsum(steps).max(initial=0))


def _check_names(fields: Iterable[pa.Field]) -> None:
    """Refuse names that are not UTF-8.

    Raises:
        UnicodeDecodeError: one is not.
    """
    for field in fields:
        field.name  # noqa: B018 (decodes it)
        kind = field.type
        _check_names([kind.field(i) for i in range(kind.num_fields)])


def _bad_line(line: bytes, schema: pa.Schema | None, error: Exception) -> str:
    """Why one line is not a record of the schema."""
    if not isinstance(error, pa.ArrowException):
        return short_reason(error)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = {}  # broken, which Arrow says better
    if not isinstance(record, dict):
        return _NO_RECORD
    unseen = None if schema is None else _unseen_field(record, schema.names)
    if unseen is not None:
        return f'field "{unseen}" is not in the first {PREFIX_BYTES >> 20} MiB of any shard'
    return _ARROW_PLACE.sub("", short_reason(error))


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


def keep_strings_in(schema: pa.Schema) -> pa.Schema:
    """The inferred schema with timestamps, which JSON writes as strings, as strings again."""
    return pa.schema([field.with_type(_keep_strings(field.type)) for field in schema])


def _keep_strings(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_keep_strings(kind.value_type)))
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(_keep_strings(field.type)) for field in fields])
    return kind


def _unseen_field(record: dict[str, Any], names: Sequence[str]) -> str | None:
    """The first top-level field of a record outside `names`."""
    return next((name for name in record if name not in names), None)
