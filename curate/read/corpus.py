"""One way to read a corpus, whatever its shards are: check first, then stream batches.

`open_corpus` finds the shards, looks at the footer of each one and raises on the first thing that
would stop a run later; it reads no data (JSON lines have no footer: the start of each file stands
in). The `Corpus` it returns lists the shards in a stable order and yields the rows of any of them
in order, as record batches of one schema, with memory that does not grow with the file. Damaged
shards are an error, or where they are tolerated are listed with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from curate.errors import DamagedShard, InvalidInput
from curate.read.hub import is_name, load_folder, load_name
from curate.read.integers import refuse_negative, refuse_rounding
from curate.read.jsonl import JsonlReader
from curate.read.locate import Located, display_uri, locate
from curate.read.parquet import ParquetReader
from curate.read.schema import (
    OnBadRow,
    Probe,
    check_columns,
    ignore_bad_row,
    merge_alike,
    merge_inferred,
    project,
)

__all__ = ["Corpus", "Shard", "display_uri", "open_corpus"]

_THREADS = {"parquet": 16, "jsonl": 2, "hub": 1}
"""Shards looked at together: footers wait on storage, inference works and holds its prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a corpus (or one whole Hugging Face dataset), as its footer describes it."""

    shard_id: int
    """Position in the sorted order of uri, from 0."""
    uri: str
    """Where it lies: an absolute local path or a URL, without credentials."""
    format: str
    """`parquet`, `jsonl` or `hub`."""
    bytes: int
    """Size on storage."""
    rows: int | None
    """Known from the footer; None where only reading tells (JSON lines)."""
    text_bytes: int
    """Estimate of the UTF-8 bytes of the text: uncompressed bytes of all columns."""
    fingerprint: str
    """Hash that changes with the file: sha256 hex over its size and both ends (files)."""
    damage: str | None = None
    """Why it cannot be read, as far as its footer tells; None where it can."""


class Reader(Protocol):
    """What a format offers to a corpus."""

    def probe(self) -> Probe:
        """Describe the shard without reading its data."""
        ...

    def fingerprint(self) -> str:
        """What the shard is recognized by, as it is now."""
        ...

    def read(
        self,
        schema: pa.Schema,
        wanted: pa.Schema,
        batch_rows: int,
        on_bad: OnBadRow = ignore_bad_row,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order as batches of `wanted`, a part of the corpus `schema`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The shards of a pool or target, checked, and the way to stream their rows."""

    shards: tuple[Shard, ...]
    schema: pa.Schema
    """All columns in the order of the first shard, with its metadata."""
    text_column: str
    role: str
    tolerant: bool
    """Whether a row that cannot be used is reported; otherwise it is an error."""
    _readers: tuple[Reader, ...] = field(repr=False)

    @property
    def sound(self) -> tuple[Shard, ...]:
        """The shards that can be read, as far as their footers tell."""
        return tuple(shard for shard in self.shards if shard.damage is None)

    def iter_batches(
        self,
        shard: Shard,
        columns: Sequence[str] | None = None,
        batch_rows: int = 1024,
        on_bad: OnBadRow | None = None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (index in the shard of the batch's first row, batch), in row order.

        A batch has 1 to `batch_rows` rows and the types of `schema`, with the columns named by
        `columns` (None: all) in schema order. No batch spans two row groups. `on_bad` is told of
        rows that cannot be used (broken JSON lines) before the batch with their nulls comes; by
        default they are passed over where the corpus is tolerant, and otherwise an error.

        Raises:
            DamagedShard: the data turns out damaged.
            InvalidInput: a column is unknown, or the shard is out of reach or changed meanwhile.
        """

        def refuse(row: int, problem: str) -> None:
            raise bad_row(shard, row, problem)

        on_bad = on_bad or (ignore_bad_row if self.tolerant else refuse)
        wanted = project(self.schema, columns, self.role)
        reader = self._readers[shard.shard_id]
        row = 0
        try:
            for batch in reader.read(self.schema, wanted, batch_rows, on_bad):
                yield row, batch
                row += batch.num_rows
            _check_rows(shard, row)
        except DamagedShard:  # or so it looks, read by the footer of what was there before
            _refuse_changed(shard, reader)
            raise
        _refuse_changed(shard, reader)


def open_corpus(
    source: str,
    *,
    text_column: str = "text",
    role: str = "pool",
    reserved_columns: Sequence[str] = (),
    tolerant: bool = False,
) -> Corpus:
    """Find and check the shards of `source`.

    Args:
        source: a Parquet or JSON lines file, a folder, a glob, any of these as an fsspec URL, a
            folder written by `Dataset.save_to_disk`, or `hf:NAME?split=..&config=..&revision=..`.
        text_column: the column that holds the document text.
        role: `pool` or `target`, for error messages.
        reserved_columns: names the corpus must not have, since the output adds them.
        tolerant: list damaged shards as such, as long as there is a sound one, and pass over rows
            that cannot be used.

    Raises:
        InvalidInput: a path, a shard or a column cannot be used; nothing was read but footers.
    """
    kind, uris, readers = _find(source, role)
    shards: list[Shard] = []
    inferred: list[tuple[str, Probe]] = []
    schema: pa.Schema | None = None
    first_uri = ""
    damage: DamagedShard | None = None

    def check(found: pa.Schema, uri: str) -> None:
        check_columns(found, uri, role=role, text_column=text_column, reserved=reserved_columns)

    with closing(_probes(readers, _THREADS[kind])) as probes:
        for uri, probe in zip(uris, probes, strict=True):
            shards.append(_shard(len(shards), uri, kind, probe))
            if probe.damage is not None:
                damage = damage or probe.damage
                if not tolerant:
                    raise damage
            elif kind == "jsonl":
                inferred.append((uri, probe))
            elif schema is None:
                check(schema := probe.schema, first_uri := uri)
            else:
                schema = merge_alike(schema, first_uri, probe.schema, uri)
    if damage is not None and all(shard.damage for shard in shards):
        raise damage
    if kind == "jsonl":
        schema = merge_inferred([(uri, probe.schema) for uri, probe in inferred])
        for uri, probe in inferred:
            refuse_rounding(uri, probe.inexact, schema)
            refuse_negative(uri, probe.negative, schema)
        check(schema, inferred[0][0])
    return Corpus(
        shards=tuple(shards),
        schema=schema,
        text_column=text_column,
        role=role,
        tolerant=tolerant,
        _readers=tuple(readers),
    )


def _check_rows(shard: Shard, found: int) -> None:
    """Make sure that a shard has as many rows as its footer says.

    Raises:
        DamagedShard: it has not.
    """
    if shard.rows not in (None, found):
        raise DamagedShard(
            f"Shard {shard.uri} holds {found:,} rows, but its footer says {shard.rows:,}.",
            "Repair or remove the shard.",
        )


def _refuse_changed(shard: Shard, reader: Reader) -> None:
    """Make sure that a shard is still what it was when the corpus was opened.

    Raises:
        InvalidInput: it is not, or is out of reach.
    """
    if reader.fingerprint() != shard.fingerprint:
        raise InvalidInput(
            f"Shard {shard.uri} changed while it was read.",
            "Wait until it is written, and start again with a new output folder.",
        )


def bad_row(shard: Shard, row: int, problem: str) -> InvalidInput:
    """The error for a row that cannot be used, where every row is needed."""
    return InvalidInput(
        f"Row {row} of shard {shard.uri} cannot be used ({problem}).", "Repair or remove the row."
    )


def _find(source: str, role: str) -> tuple[str, list[str], list[Reader]]:
    """The one format of a source, and the uri and the reader of each of its shards."""
    hub = load_name(source, role) if is_name(source) else load_folder(source, role)
    if hub is not None:
        return "hub", [hub.uri], [hub]
    files = locate(source, role)
    kind = files[0].format
    if any(file.format != kind for file in files):
        raise InvalidInput(
            f"The {role} in {display_uri(source)} mixes Parquet and JSONL shards.",
            "Give a folder or a glob with shards of one format.",
        )
    build: Callable[[Located], Reader] = ParquetReader if kind == "parquet" else JsonlReader
    return kind, [file.uri for file in files], [build(file) for file in files]


def _probes(readers: Sequence[Reader], threads: int) -> Generator[Probe, None, None]:
    """Look at all shards, some together, in order; closing it early drops those not begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(lambda reader: reader.probe(), readers)
    finally:
        pool.shutdown(cancel_futures=True)


def _shard(shard_id: int, uri: str, kind: str, probe: Probe) -> Shard:
    return Shard(
        shard_id=shard_id,
        uri=uri,
        format=kind,
        bytes=probe.size,
        rows=probe.rows,
        text_bytes=probe.text_bytes,
        fingerprint=probe.fingerprint,
        damage=probe.damage.problem if probe.damage else None,
    )
