"""Integers in JSON lines that a column of doubles would round.

JSON states no types. Arrow's parser makes doubles of integers beyond 64 bits signed, and of all
integers of a field that has a fraction somewhere, and a double does not hold every integer beyond
2^53: an id would change and nobody be told. A column of doubles tells by its largest value whether
it can have such an integer; only then are the lines looked at again, by Python's parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import InvalidInput

Place = tuple[str, ...]
"""Where values of one type lie: a column, then the fields and lists within it."""

_EXACT = 1 << 53
"""A double holds every integer up to here."""
_LONG_NUMBER = re.compile(rb"(?<![\d.])\d{16}")
_ITEM = "[]"
_REMEDY = "Write the field as text in the JSONL, or the data as Parquet."


def unify_inferred(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Permissive promotion; int64 with uint64 is uint64, where Arrow says int64."""
    both = pa.unify_schemas(schemas, promote_options="permissive")
    unsigned = {place for one in schemas for place, kind in _kinds(one) if kind.equals(pa.uint64())}
    signed = {place for place, kind in _kinds(both) if pa.types.is_signed_integer(kind)}
    return as_unsigned(both, unsigned & signed) if unsigned & signed else both


def as_unsigned(schema: pa.Schema, places: Collection[Place]) -> pa.Schema:
    """The schema with uint64 at some places."""
    return pa.schema([_as_unsigned(field, (field.name,), places) for field in schema])


def inexact_integers(table: pa.Table) -> dict[Place, int]:
    """One integer that a double would round of each place of an integer column that has some."""
    found: dict[Place, int] = {}
    for place, values in _leaves(table):
        if pa.types.is_integer(values.type) and _is_large(values):
            every = values.drop_null().to_numpy()
            large = every[(every > _EXACT) | (every < -_EXACT)]
            odd = large // (large & -large)  # a double holds 53 bits, wherever they stand
            inexact = large[(odd > _EXACT) | (odd < -_EXACT)]
            if len(inexact):
                found[place] = int(inexact[0])
    return found


def negative_integers(table: pa.Table) -> dict[Place, int]:
    """One negative integer of each place of an integer column that has some."""
    found: dict[Place, int] = {}
    for place, values in _leaves(table):
        if pa.types.is_signed_integer(values.type):
            least = pc.min(values).as_py()
            if least is not None and least < 0:
                found[place] = int(least)
    return found


def integers_in_doubles(chunk: bytes, table: pa.Table) -> Iterator[tuple[Place, int]]:
    """Integers beyond 2^53 in the lines of a chunk that are doubles in the table made of it.

    Raises:
        ValueError: Python's parser does not read a line as Arrow's does.
    """
    doubles = (values for _, values in _leaves(table) if pa.types.is_floating(values.type))
    if not any(map(_is_large, doubles)):
        return
    kind = pa.struct(list(table.schema))
    for line in chunk.split(b"\n"):
        if _LONG_NUMBER.search(line):
            yield from _integers_in(json.loads(line), kind, ())


def is_rounded(integer: int) -> bool:
    """Whether it is another as a double."""
    return int(float(integer)) != integer


def refuse_rounding(uri: str, inexact: Mapping[Place, int], schema: pa.Schema) -> None:
    """Check that integers that a double would round do not come into columns of doubles.

    Raises:
        InvalidInput: some do.
    """
    kinds = dict(_kinds(schema))
    for place, example in inexact.items():
        if place in kinds and pa.types.is_floating(kinds[place]):
            raise would_round(uri, place, example)


def refuse_negative(uri: str, negative: Mapping[Place, int], schema: pa.Schema) -> None:
    """Check that negative integers do not come into columns of unsigned ones.

    Raises:
        InvalidInput: some do.
    """
    kinds = dict(_kinds(schema))
    for place, example in negative.items():
        if place in kinds and kinds[place].equals(pa.uint64()):
            raise InvalidInput(
                f'Shard {uri} has negative integers in field "{name_of(place)}" ({example} for '
                "one), which elsewhere has integers beyond 2^63, and no type holds both.",
                _REMEDY,
            )


def would_round(uri: str, place: Place, example: int) -> InvalidInput:
    """The error for a field of which no type of number holds all values."""
    return InvalidInput(
        f'Shard {uri} has integers in field "{name_of(place)}" that would be rounded '
        f"({example} for one), as the field also has fractions, negative values or integers of "
        "more than 64 bits.",
        _REMEDY,
    )


def name_of(place: Place) -> str:
    """A place for people: `meta.id`."""
    return ".".join(part for part in place if part != _ITEM)


def _as_unsigned(field: pa.Field, place: Place, places: Collection[Place]) -> pa.Field:
    kind = field.type
    if place in places:
        return field.with_type(pa.uint64())
    if pa.types.is_list(kind):
        return field.with_type(pa.list_(_as_unsigned(kind.value_field, (*place, _ITEM), places)))
    if pa.types.is_struct(kind):
        inner = [_as_unsigned(one, (*place, one.name), places) for one in _fields(kind)]
        return field.with_type(pa.struct(inner))
    return field


def _kinds(fields: Iterable[pa.Field], above: Place = ()) -> Iterator[tuple[Place, pa.DataType]]:
    for field in fields:
        place, kind = (*above, field.name), field.type
        while pa.types.is_list(kind):
            place, kind = (*place, _ITEM), kind.value_type
        if pa.types.is_struct(kind):
            yield from _kinds(_fields(kind), place)
        else:
            yield place, kind


def _fields(kind: pa.StructType) -> list[pa.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]


def _leaves(table: pa.Table) -> Iterator[tuple[Place, pa.Array]]:
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks:
            yield from _leaves_of(chunk, (name,))


def _leaves_of(values: pa.Array, place: Place) -> Iterator[tuple[Place, pa.Array]]:
    kind = values.type
    if pa.types.is_list(kind):
        yield from _leaves_of(values.flatten(), (*place, _ITEM))
    elif pa.types.is_struct(kind):
        for index, field in enumerate(_fields(kind)):
            yield from _leaves_of(values.field(index), (*place, field.name))
    else:
        yield place, values


def _is_large(values: pa.Array) -> bool:
    """Whether numbers reach 2^53 in either direction."""
    ends = pc.min_max(values).as_py().values()
    return any(end is not None and abs(end) >= _EXACT for end in ends)


def _integers_in(value: Any, kind: pa.DataType, place: Place) -> Iterator[tuple[Place, int]]:
    if isinstance(value, dict) and pa.types.is_struct(kind):
        for field in _fields(kind):
            yield from _integers_in(value.get(field.name), field.type, (*place, field.name))
    elif isinstance(value, list) and pa.types.is_list(kind):
        for one in value:
            yield from _integers_in(one, kind.value_type, (*place, _ITEM))
    elif isinstance(value, int) and pa.types.is_floating(kind) and abs(value) > _EXACT:
        yield place, value
