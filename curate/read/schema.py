"""Decide whether the shards of a corpus are alike, and bring their batches to one schema.

Checks look at names and types only. Column order, nullability and schema metadata may differ
between Parquet shards: the first shard gives the order and the metadata, and a column is nullable
as soon as one shard has it so. JSON lines state no types, so their inferred schemas are merged
with permissive promotion (int64 with double is double, anything with null is the other), unless
that would round integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.errors import DamagedShard, InvalidInput
from curate.read.integers import Place, unify_inferred

OnBadRow = Callable[[int, str], None]
"""Told of a row that cannot be used: its number in the shard, and why."""


BATCH_BYTES = 16 << 20
"""Bytes that a batch holds, about, where its rows are large."""


def fewer_rows(batch_rows: int, size: int, rows: int) -> int:
    """`batch_rows`, or less where so many of `rows` that have `size` bytes are too many to hold."""
    return batch_rows if size <= 0 else max(1, min(batch_rows, BATCH_BYTES * rows // size))


def ignore_bad_row(row: int, problem: str) -> None:
    """Leave it at the row of nulls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one look at a shard tells, without reading its data."""

    schema: pa.Schema
    size: int
    """Bytes on storage."""
    rows: int | None
    """Exact, or None where only reading tells."""
    text_bytes: int
    """Estimated UTF-8 bytes of the text column."""
    fingerprint: str
    damage: DamagedShard | None = None
    """Why nothing but its size and fingerprint is known."""
    inexact: Mapping[Place, int] = dataclasses.field(default_factory=dict)
    """Where JSON lines have integers that a double would round, with one of each."""
    negative: Mapping[Place, int] = dataclasses.field(default_factory=dict)
    """Where they have negative integers, with one of each."""


def damaged(error: InvalidInput, size: int, fingerprint: str) -> Probe:
    """The probe of a damaged shard; raises what is no damage."""
    if not isinstance(error, DamagedShard):
        raise error from None
    return Probe(
        schema=pa.schema([]),
        size=size,
        rows=None,
        text_bytes=0,
        fingerprint=fingerprint,
        damage=error,
    )


def check_columns(
    schema: pa.Schema, uri: str, *, role: str, text_column: str, reserved: Sequence[str]
) -> None:
    """Check that the text column is there and holds text, and that no reserved name is taken.

    Raises:
        InvalidInput: one of these does not hold, or two columns share a name.
    """
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InvalidInput(
                f'Shard {uri} has two columns named "{name}".', "Rename or drop one of them."
            )
    flag = "--set target_text_column=NAME" if role == "target" else "--text-column"
    if text_column not in schema.names:
        remedy = f"Name the column that holds the text with {flag}."
        raise _missing(schema, text_column, role, remedy)
    kind = schema.field(text_column).type
    if not is_text(kind):
        raise InvalidInput(
            f'Column "{text_column}" of the {role} holds {kind}, not text.',
            f"Name a string column with {flag}.",
        )
    for name in reserved:
        if name in schema.names:
            raise InvalidInput(
                f'The {role} already has a column "{name}", which the output needs.',
                "Rename or drop that column first.",
            )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text: a string type, or a dictionary of one."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def merge_alike(known: pa.Schema, known_uri: str, found: pa.Schema, uri: str) -> pa.Schema:
    """Return `known`, loosened in nullability where `found` needs it.

    Raises:
        InvalidInput: a column is absent on one side or has another type.
    """
    if found.equals(known):
        return known
    for name in dict.fromkeys([*known.names, *found.names]):
        ours = known.field(name).type if name in known.names else None
        theirs = found.field(name).type if found.names.count(name) == 1 else None
        if ours is None or theirs is None or relax(ours) != relax(theirs):
            raise _differs(name, theirs, uri, ours, known_uri)
    fields = [_looser(field, found.field(field.name)) for field in known]
    return pa.schema(fields, metadata=known.metadata)


def merge_inferred(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """Merge inferred (uri, schema) pairs in order; a column may be absent from some of them.

    Raises:
        InvalidInput: a column cannot be promoted to one type.
    """
    merged: dict[str, pa.Field] = {}
    owners: dict[str, str] = {}
    for uri, schema in schemas:
        for field in schema:
            ours = merged.get(field.name, field)
            try:
                pair = [pa.schema([ours]), pa.schema([field])]
                both = unify_inferred(pair).field(0)
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                raise _differs(field.name, field.type, uri, ours.type, owners[field.name]) from None
            if field.name not in merged or both.type != ours.type:
                merged[field.name], owners[field.name] = both, uri
    return pa.schema(list(merged.values()))


def relax(kind: pa.DataType) -> pa.DataType:
    """The type with every nested field nullable."""
    return convert_leaves(kind, lambda leaf: leaf)


def convert_leaves(kind: pa.DataType, convert: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with what is not nested converted, and every nested field nullable."""

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(convert_leaves(field.type, convert)).with_nullable(True)

    if pa.types.is_struct(kind):
        return pa.struct([inner(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        key = convert_leaves(kind.key_type, convert)
        return pa.map_(key, convert_leaves(kind.item_type, convert), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    for matches, build in (
        (pa.types.is_list, pa.list_),
        (pa.types.is_large_list, pa.large_list),
        (pa.types.is_list_view, pa.list_view),
        (pa.types.is_large_list_view, pa.large_list_view),
    ):
        if matches(kind):
            return build(inner(kind.value_field))
    return convert(kind)


def project(schema: pa.Schema, columns: Sequence[str] | None, role: str) -> pa.Schema:
    """The part of `schema` named by `columns` (None: all), in schema order, metadata kept."""
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise _missing(schema, name, role, "Name columns that it has.")
    wanted = set(columns)
    return pa.schema([f for f in schema if f.name in wanted], metadata=schema.metadata)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Bring a batch to the columns, order and types of `schema`; the values stay the same."""
    if not schema.names:
        return batch.select([]).replace_schema_metadata(schema.metadata)
    arrays = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for field in schema
        for column in (batch.column(field.name),)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def take_rows(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The given rows of a batch, ascending; of every type, also those that Arrow cannot take from.

    Views and run-end encoded values can be sliced alone.
    """
    try:
        return batch.take(pa.array(rows))
    except pa.ArrowNotImplementedError:
        return pa.RecordBatch.from_arrays(
            [take_values(column, rows) for column in batch.columns], schema=batch.schema
        )


def take_values(column: pa.Array, rows: npt.NDArray[np.int64]) -> pa.Array:
    """The same of one column."""
    try:
        return column.take(pa.array(rows))
    except pa.ArrowNotImplementedError:
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        pieces = [column.slice(int(run[0]), len(run)) for run in runs if len(run)]
        return pa.concat_arrays(pieces) if pieces else column.slice(0, 0)


def _looser(ours: pa.Field, theirs: pa.Field) -> pa.Field:
    kind = ours.type if ours.type == theirs.type else relax(ours.type)
    return ours.with_type(kind).with_nullable(ours.nullable or theirs.nullable)


def _missing(schema: pa.Schema, name: str, role: str, remedy: str) -> InvalidInput:
    names = ", ".join(schema.names) or "none"
    return InvalidInput(f'The {role} has no column "{name}" (it has: {names}).', remedy)


def _differs(
    name: str, kind: pa.DataType | None, uri: str, first: pa.DataType | None, first_uri: str
) -> InvalidInput:
    theirs, ours = ("absent" if k is None else str(k) for k in (kind, first))
    return InvalidInput(
        f'Shard {uri} has column "{name}" as {theirs}, but shard {first_uri} has it as {ours}.',
        "Make the columns of all shards alike, or run on shards of one kind.",
    )
