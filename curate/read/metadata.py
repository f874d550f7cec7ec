"""The pool's other columns as the log carries them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from curate.read.schema import convert_leaves, relax

_LONGEST_TEXT = 256
_FARTHEST_SECONDS = 9_223_372_022_400
"""From 1970, either way, that a timestamp of the log can be."""


def metadata_values(column: pa.Array) -> pa.Array:
    """A column with plain types and nothing that a log cannot hold.

    Strings have what is not UTF-8 replaced and are cut to 256 characters. JSON is text, since it
    need not be well-formed, also within structs, lists and maps. Times that a log cannot hold, and
    structs, lists and maps with one or with a string that is not UTF-8 in them, are null.
    """
    kind = convert_leaves(column.type, _json_as_text)
    if kind != relax(column.type):
        column = column.view(kind)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.binary_view()).cast(pa.large_binary()).view(pa.large_string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.utf8_slice_codeunits(_valid_texts(column), 0, _LONGEST_TEXT).cast(pa.string())
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):
        return _times_of_a_log(column)
    if pa.types.is_nested(column.type) and not _is_held(column):
        rows = range(len(column))
        held = [row if _is_held(column.take(pa.array([row]))) else None for row in rows]
        return column.take(pa.array(held, pa.int64()))
    return column


def _json_as_text(kind: pa.DataType) -> pa.DataType:
    is_json = getattr(kind, "extension_name", None) == "arrow.json"  # no type before pyarrow 19
    return kind.storage_type if is_json else kind


def _times_of_a_log(column: pa.Array) -> pa.Array:
    """Times with null for those outside of a day, and those more than 290,000 years from 1970."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    if pa.types.is_time(column.type):
        least, most = 0, 86_400 * per_second
    else:
        most = min(_FARTHEST_SECONDS * per_second, 2**63 - 2)
        least = -most
    values = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
    inside = pc.and_(pc.greater_equal(values, least), pc.less_equal(values, most))
    return pc.if_else(inside, column, pa.scalar(None, column.type))


def _valid_texts(column: pa.Array) -> pa.Array:
    """A string column with bytes that are not UTF-8 replaced."""
    if _is_valid(column):
        return column
    values = column.cast(pa.large_binary()).to_pylist()
    return pa.array([None if one is None else one.decode(errors="replace") for one in values])


def _is_valid(column: pa.Array) -> bool:
    """Whether all of a column's strings are UTF-8, those within its values as well."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_held(column: pa.Array) -> bool:
    """Whether a log can hold all of a nested column's values."""
    times = (leaf for leaf in _leaves(column) if pa.types.is_timestamp(leaf.type))
    return _is_valid(column) and all(
        _times_of_a_log(leaf).null_count == leaf.null_count for leaf in times
    )


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    """The values within nested ones that are not nested themselves."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(column.storage)
    elif pa.types.is_dictionary(kind):
        yield from _leaves(column.dictionary_decode())
    elif pa.types.is_struct(kind):
        for field in column.flatten():
            yield from _leaves(field)
    elif pa.types.is_map(kind):
        yield from _leaves(column.keys)
        yield from _leaves(column.items)
    elif pa.types.is_nested(kind):
        yield from _leaves(column.flatten())
    else:
        yield column
