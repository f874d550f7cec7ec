"""About how many bytes a row holds: a function of its values, whatever batch they came in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64 = npt.NDArray[np.int64]


def row_bytes(batch: pa.RecordBatch) -> Int64:
    """Bytes of each row's texts, binary values and nested values, [N]; single numbers are few."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if not pa.types.is_primitive(column.type):
            sizes += _bytes(column)
    return sizes


def _bytes(values: pa.Array) -> Int64:
    """Bytes of each of N values, [N]; 0 for null, and for types that Parquet does not have."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return _bytes(values.storage)
    if pa.types.is_struct(kind):
        inner = [_bytes(field) for field in values.flatten()]
        return sum(inner, np.zeros(len(values), np.int64))
    if pa.types.is_dictionary(kind):
        each: Int64 = np.append(_bytes(values.dictionary), 0)
        return each[_numbers(values.indices.cast(pa.int64()), null=-1)]
    if pa.types.is_run_end_encoded(kind):
        rows = values.offset + np.arange(len(values))
        places: Int64 = np.searchsorted(values.run_ends.to_numpy(), rows, "right")
        return _bytes(values.values)[places]
    return _list_bytes(values) if _is_nested(kind) else _leaf_bytes(values)


def _leaf_bytes(values: pa.Array) -> Int64:
    """The same of texts, binary values and numbers."""
    kind = values.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _numbers(pc.binary_length(values.cast(pa.large_binary())))
    if _is_text(kind):
        return _numbers(pc.binary_length(values))
    return np.full(len(values), _width(kind), np.int64)


def _list_bytes(values: pa.Array) -> Int64:
    """The same of lists and maps of any kind."""
    kind, inner = values.type, values.values
    if len(values) == 0:
        return np.zeros(0, np.int64)
    if pa.types.is_fixed_size_list(kind):
        begins = (values.offset + np.arange(len(values))) * kind.list_size
        ends = begins + kind.list_size
    elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        begins = _numbers(values.offsets)
        ends = begins + _numbers(values.sizes)
    else:
        offsets = _numbers(values.offsets)
        begins, ends = offsets[:-1], offsets[1:]
    first, last = int(begins.min()), int(ends.max())
    up_to = np.append(0, np.cumsum(_bytes(inner.slice(first, last - first))))
    sizes = up_to[ends - first] - up_to[begins - first]
    return np.where(values.is_valid().to_numpy(zero_copy_only=False), sizes, 0)


def _numbers(integers: pa.Array, null: int = 0) -> Int64:
    found: Int64 = integers.fill_null(null).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _width(kind: pa.DataType) -> int:
    """Bytes of a value of a type of fixed size; 0 of any other."""
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:
        return 0


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary)
    return any(test(kind) for test in tests)


def _is_nested(kind: pa.DataType) -> bool:
    """Whether values are lists of a kind."""
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_map)
    views = (types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in (*lists, *views))
