"""Rows of the dataset, one by one: against the log, against their tokens and against the pool.

A row group at a time, in pieces, so that memory does not grow with anything. The pool's shard is
streamed beside its part, up to the last row that is looked at, and read through `open_corpus` as
the run read it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.errors import CurateError
from curate.read.corpus import Corpus
from curate.read.schema import convert_leaves, take_rows
from curate.records import split_document_id
from curate.select.masks import MaskReader
from curate.verification import log_sql
from curate.verification.parts import UNREADABLE, Group, Part
from curate.verification.result import Notes, plural
from curate.verification.values import differing

_BATCH_ROWS = 4096
_TOLERANCE = 1e-5
"""Relative to a mean of float32 figures; what rounding may add to it."""

Expected = Mapping[str, npt.NDArray[Any]]


Encode = Callable[[pa.Array], list[npt.NDArray[np.integer]]]
"""The run's tokenizer: the token ids of each text of a column."""


@dataclass(slots=True)
class _Differences:
    """Rows of one part that differ, by what differs: how many, and the first with its document."""

    part: Part
    found: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)

    def add(
        self,
        kind: tuple[str, str],
        rows: npt.NDArray[np.bool_],
        first_row: int,
        expected: Expected,
    ) -> None:
        """Note rows that differ; `kind` is the check and the sentence without the rows."""
        places = np.flatnonzero(rows)
        if len(places) == 0:
            return
        first = int(places[0])
        here = (0, first_row + first, int(expected["document_id"][first]))
        count, row, document_id = self.found.get(kind, here)
        self.found[kind] = (count + len(places), row, document_id)

    def tell(self, notes: Notes) -> None:
        """One finding for each kind."""
        for (check, sentence), (count, row, document_id) in self.found.items():
            shard, source_row = split_document_id(document_id)
            notes.find(
                check,
                f"{self.part.name}: {sentence} in {plural(count, 'row')}, first in row {row} "
                f"(document {shard}:{source_row}).",
            )


class RowChecks:
    """Looks at chosen rows of the dataset.

    Args:
        connection: a log with the table `kept` (see `log_sql.create_kept`).
        notes: for findings.
        pool: the pool, if its rows are to be compared.
        unchanged: shards of the pool that are what they were.
        encode: of a run at token granularity.
        text_column: the column that tokens come from.
        masks: the masks of the kept documents in the order in which they are looked at, where the
            run's state still has them.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        notes: Notes,
        *,
        pool: Corpus | None,
        unchanged: set[int],
        encode: Encode | None,
        text_column: str,
        masks: MaskReader | None,
    ) -> None:
        self._connection, self._notes = connection, notes
        self._pool, self._unchanged = pool, unchanged
        self._stored = None if pool is None else _stored(pool.schema)
        self._encode, self._text_column = encode, text_column
        self._masks = masks
        self.rows = self.replayed = 0

    @property
    def masks_compared(self) -> bool:
        """Whether every mask was held against the one that the run recorded."""
        return self._masks is not None

    def check(self, groups: Sequence[Group]) -> None:
        """Look at these row groups, which are in order."""
        for _, mine in itertools.groupby(groups, key=lambda group: group.part.shard_id):
            of_part = list(mine)
            part = of_part[0].part
            differences = _Differences(part)
            source = self._source(part)
            try:
                with _opened(part) as file:
                    for group in of_part:
                        source = self._check_group(file, group, source, differences)
            except _DamagedPart:
                self._notes.find("parts", f"{part.name} is not a readable Parquet file.")
                self._masks = None  # those that follow are of other rows now
            differences.tell(self._notes)

    def _check_group(
        self,
        file: pq.ParquetFile,
        group: Group,
        source: _SourceRows | None,
        differences: _Differences,
    ) -> _SourceRows | None:
        """Look at one row group; returns the source to go on with, None where it failed."""
        row, shard_id = group.first_row, group.part.shard_id
        for batch in _read(file, group):
            values = [shard_id, row, row + batch.num_rows]
            expected = self._connection.execute(log_sql.KEPT_ROWS, values).fetchnumpy()
            wrong = {
                ("outcome", f'column "{name}" differs from the log'): rows
                for name, rows in _outcome(batch, expected).items()
            }
            if self._encode is not None:
                found = self._tokens(batch, expected, self._encode)
                wrong |= {("tokens", what): rows for what, rows in found.items()}
            if source is not None:
                try:
                    theirs = source.take(expected["row"])
                except CurateError as error:
                    text = f"{group.part.name} was not replayed to its end: {error.problem}"
                    self._notes.find("source", text)
                    source = None
                else:
                    wrong |= {
                        ("source", f'column "{name}" differs from the pool'): rows
                        for name, rows in _replay(batch, theirs).items()
                    }
                    self.replayed += batch.num_rows
            for kind, rows in wrong.items():
                differences.add(kind, rows, row, expected)
            row += batch.num_rows
            self.rows += batch.num_rows
        return source

    def _tokens(
        self, batch: pa.RecordBatch, expected: Expected, encode: Encode
    ) -> dict[str, npt.NDArray[np.bool_]]:
        ids, masks = batch.column("input_ids"), batch.column("loss_mask")
        encoded = encode(batch.column(self._text_column))
        wanted = pa.array([one.astype(np.int32) for one in encoded], ids.type)
        lengths, marked = _mask_counts(masks)
        wrong = {
            'column "input_ids" is not the tokens of the text': differing(ids, wanted),
            'column "loss_mask" marks other than as many tokens as the log says': (
                (lengths != expected["tokens"]) | (marked != expected["tokens_kept"])
            ),
        }
        recorded = self._recorded_masks(batch.num_rows)
        if recorded is not None:
            what = 'column "loss_mask" differs from state/masks.parquet'
            wrong[what] = differing(masks, recorded)
        return wrong

    def _recorded_masks(self, rows: int) -> pa.Array | None:
        if self._masks is None:
            return None
        try:
            return self._masks.take(rows).column("loss_mask").combine_chunks()
        except (CurateError, *UNREADABLE):
            self._masks = None
            return None

    def _source(self, part: Part) -> _SourceRows | None:
        """The rows of a part's shard, if they are to be compared and can be."""
        if self._pool is None or part.shard_id not in self._unchanged:
            return None
        if part.columns != tuple((one.name, one.type) for one in self._stored or ()):
            text = f"{part.name} does not have the columns of the pool in their order and types."
            self._notes.find("source", text)
            return None
        return _SourceRows(self._pool, part.shard_id)


class _DamagedPart(CurateError):
    """A part whose data cannot be read."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error), "Run curate again with another --out.")


@contextlib.contextmanager
def _opened(part: Part) -> Iterator[pq.ParquetFile]:
    """A part, whose footer is read once for all of its row groups."""
    try:
        file = pq.ParquetFile(part.path)
    except UNREADABLE as error:
        raise _DamagedPart(error) from None
    with file:
        yield file


def _read(file: pq.ParquetFile, group: Group) -> Iterator[pa.RecordBatch]:
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group.index]):
            for column in batch.columns:
                column.view(_unjudged(column.type)).validate(full=True)
            yield batch
    except UNREADABLE as error:
        raise _DamagedPart(error) from None


def _unjudged(kind: pa.DataType) -> pa.DataType:
    """Bytes for strings, times and decimals, whose values Arrow judges: a pool's are kept."""
    return convert_leaves(kind, _unjudged_leaf)


def _unjudged_leaf(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _unjudged(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _unjudged(kind.value_type), kind.ordered)
    if pa.types.is_time(kind) or pa.types.is_decimal(kind):
        return pa.binary(kind.bit_width // 8)
    return _BYTES.get(kind, kind)


_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


class _SourceRows:
    """Rows of a pool shard by number, read once from its beginning."""

    def __init__(self, pool: Corpus, shard_id: int) -> None:
        self._schema, self._uri = pool.schema, pool.shards[shard_id].uri
        self._batches = pool.iter_batches(pool.shards[shard_id])
        self._first, self._batch = 0, None

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """These rows, which ascend and come after those taken before.

        Raises:
            CurateError: the shard does not have them, or cannot be read.
        """
        if len(rows) and (rows[0] < self._first or (np.diff(rows) < 0).any()):
            raise CurateError("The log's rows of it are in no order.", "Restore the log.")
        return pa.Table.from_batches(self._pieces(rows), self._schema)

    def _pieces(self, rows: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        done = 0
        while done < len(rows):
            if self._batch is not None:
                end = int(np.searchsorted(rows, self._first + self._batch.num_rows))
                if end > done:
                    yield take_rows(self._batch, rows[done:end] - self._first)
                    done = end
                    continue
            self._first, self._batch = next(self._batches, (0, None))
            if self._batch is None:
                raise CurateError(
                    f"Shard {self._uri} has no row {rows[done]}.", "Restore the pool."
                )


def _stored(schema: pa.Schema) -> pa.Schema:
    """The schema as Parquet gives it back: it has no seconds, for one."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema, use_compliant_nested_type=False).close()
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _replay(batch: pa.RecordBatch, theirs: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
    """Rows of each of the pool's columns that differ from the pool's."""
    wrong = {}
    for name in theirs.column_names:
        ours, other = batch.column(name), theirs.column(name).combine_chunks()
        wrong[name] = differing(ours, other.cast(ours.type))
    return wrong


def _mask_counts(masks: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The length of each mask, and how many tokens it marks."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(masks), 0), dtype=np.int64)
    flags = np.asarray(pc.fill_null(masks.flatten(), False), dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(flags)])
    return lengths, np.diff(before[np.concatenate([[0], np.cumsum(lengths)])])


def _outcome(batch: pa.RecordBatch, expected: Expected) -> dict[str, npt.NDArray[np.bool_]]:
    """Rows whose output columns are not what the log says or allows."""
    weight = pa.array(np.ma.filled(expected["weight"], np.nan), pa.float32())
    first, last = (np.ma.filled(expected[f"{end}_round"], -1) for end in ("first", "last"))
    rounds = batch.column("curate_round").to_numpy(zero_copy_only=False)
    return {
        "curate_weight": differing(batch.column("curate_weight"), weight),
        "curate_score": _outside(batch.column("curate_score"), expected, "score"),
        "curate_excess_loss": _outside(batch.column("curate_excess_loss"), expected, "excess"),
        "curate_round": ~((first <= rounds) & (rounds <= last)),
    }


def _outside(column: pa.Array, expected: Expected, name: str) -> npt.NDArray[np.bool_]:
    """Rows outside the bounds that the log gives; null belongs where it gives none."""
    low, high = (np.ma.filled(expected[f"{name}_{end}"], np.nan) for end in ("low", "high"))
    values = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    slack = _TOLERANCE * np.maximum(1, np.maximum(np.abs(low), np.abs(high)))
    inside = (values >= low - slack) & (values <= high + slack)
    unknown = np.isnan(low) & column.is_null().to_numpy(zero_copy_only=False)
    return np.asarray(~(inside | unknown))
