"""Whether two Arrow columns hold the same values, row by row, whatever their type.

Arrow's own comparison says that NaN differs from NaN and that 0.0 equals -0.0, and knows no nested
types; here NaN is like NaN, floats are compared by their bits, and lists and structs by what is in
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.read.schema import take_values

Rows = npt.NDArray[np.bool_]

_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def differing(ours: pa.Array, theirs: pa.Array) -> Rows:
    """Which rows differ between two arrays of the same type and length, bool [N]."""
    if isinstance(ours.type, pa.BaseExtensionType):
        ours, theirs = ours.storage, theirs.storage
    if pa.types.is_dictionary(ours.type):
        ours, theirs = ours.dictionary_decode(), theirs.dictionary_decode()
    different = np.zeros(len(ours), dtype=bool)
    if pa.types.is_null(ours.type):
        return different
    valid, others = (one.is_valid().to_numpy(zero_copy_only=False) for one in (ours, theirs))
    different = np.asarray(valid != others)
    both = np.flatnonzero(valid & others)
    if len(both) < len(ours):
        ours, theirs = (take_values(one, both) for one in (ours, theirs))
    different[both] = _present(ours, theirs)
    return different


def _present(ours: pa.Array, theirs: pa.Array) -> Rows:
    """The same for arrays without nulls."""
    kind = ours.type
    if pa.types.is_struct(kind):
        fields = [differing(ours.field(i), theirs.field(i)) for i in range(kind.num_fields)]
        return np.logical_or.reduce(fields) if fields else np.zeros(len(ours), dtype=bool)
    if pa.types.is_map(kind):
        return _lists(_as_lists(ours), _as_lists(theirs))
    if any(is_list(kind) for is_list in _LISTS):
        return _lists(ours, theirs)
    if pa.types.is_floating(kind):
        return _floats(_numpy(ours), _numpy(theirs))
    try:
        return np.asarray(_numpy(pc.not_equal(ours, theirs)), dtype=bool)
    except pa.ArrowNotImplementedError:
        pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
        return np.array([one != other for one, other in pairs], dtype=bool)


def _lists(ours: pa.Array, theirs: pa.Array) -> Rows:
    lengths, others = (_numpy(pc.list_value_length(one)) for one in (ours, theirs))
    different = np.asarray(lengths != others)
    same = np.flatnonzero(~different)
    if len(same) < len(ours):
        ours, theirs = (take_values(one, same) for one in (ours, theirs))
    owners = np.repeat(same, lengths[same])
    different[owners[differing(ours.flatten(), theirs.flatten())]] = True
    return different


def _as_lists(maps: pa.Array) -> pa.Array:
    entries = pa.StructArray.from_arrays([maps.keys, maps.items], names=["key", "value"])
    return pa.ListArray.from_arrays(maps.offsets, entries)


def _floats(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> Rows:
    bits = f"u{ours.dtype.itemsize}"
    same = (ours.view(bits) == theirs.view(bits)) | (np.isnan(ours) & np.isnan(theirs))
    return np.asarray(~same)


def _numpy(array: pa.Array) -> npt.NDArray[Any]:
    return np.asarray(array.to_numpy(zero_copy_only=False))
