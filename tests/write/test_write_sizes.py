"""What a row holds, by its values alone: of every type, in any batch, slice or dictionary."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.write.sizes import row_bytes

TEXTS = ["", "four", None, "x" * 100, "é"]
BYTES = [0, 4, 0, 100, 2]
LISTS = [["four", "x"], [], None, [None, "é"], ["abc"]]
LIST_BYTES = [5, 0, 0, 2, 3]
PAIRS = [{"path": "a", "bytes": b"12345"}, None, {"path": None, "bytes": None}, {"path": "ab"}, {}]
PAIR_BYTES = [6, 0, 0, 2, 0]
MAPS = [[("k", [1, 2])], None, [], [("key", None), ("", [3])], [("a", [])]]
MAP_BYTES = [9, 0, 0, 7, 1]
PAIR = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
INTEGERS = pa.list_(pa.int32())

CASES = {
    "string": (pa.array(TEXTS), BYTES),
    "large string": (pa.array(TEXTS, pa.large_string()), BYTES),
    "string view": (pa.array(TEXTS, pa.string_view()), BYTES),
    "binary view": (pa.array(TEXTS, pa.string()).cast(pa.binary()).cast(pa.binary_view()), BYTES),
    "dictionary": (pa.array(TEXTS).dictionary_encode(), BYTES),
    "list": (pa.array(LISTS, pa.list_(pa.string())), LIST_BYTES),
    "large list": (pa.array(LISTS, pa.large_list(pa.string())), LIST_BYTES),
    "list view": (pa.array(LISTS, pa.list_view(pa.string())), LIST_BYTES),
    "list of dictionaries": (
        pa.array(LISTS, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        LIST_BYTES,
    ),
    "fixed list": (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)), [8, 0, 8]),
    "struct": (pa.array(PAIRS, PAIR), PAIR_BYTES),
    "list of structs": (pa.array([[one] for one in PAIRS], pa.list_(PAIR)), PAIR_BYTES),
    "map of lists": (pa.array(MAPS, pa.map_(pa.string(), INTEGERS)), MAP_BYTES),
    "fixed binary": (pa.array([b"123", None], pa.binary(3)), [3, 3]),
    "run ends": (
        pa.RunEndEncodedArray.from_arrays([2, 3, 5], pa.array(["ab", None, "c"])),
        [2, 2, 0, 1, 1],
    ),
    "nothing": (pa.nulls(3), [0, 0, 0]),
    "numbers": (pa.array([1, 2, 3]), [0, 0, 0]),
    "extension": (
        pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}', "1"])),
        [8, 1],
    ),
}


def batch_of(values):
    return pa.RecordBatch.from_arrays([values], names=["values"])


@pytest.mark.parametrize("values, sizes", CASES.values(), ids=CASES.keys())
def test_of_every_type(values, sizes):
    assert row_bytes(batch_of(values)).tolist() == sizes
    for first in range(len(values) + 1):
        for last in range(first, len(values) + 1):
            part = batch_of(values).slice(first, last - first)
            assert row_bytes(part).tolist() == sizes[first:last]


def test_columns_add_up():
    batch = pa.RecordBatch.from_arrays(
        [pa.array(TEXTS), pa.array(range(5)), pa.array(PAIRS, PAIR)], names=["a", "b", "c"]
    )
    assert row_bytes(batch).tolist() == [6, 4, 0, 102, 2]
    assert row_bytes(batch.slice(5)).tolist() == []


OPTIONAL_TEXTS = st.lists(st.none() | st.text(max_size=9), max_size=4)


@given(st.lists(st.none() | OPTIONAL_TEXTS, max_size=9))
def test_lists_of_texts_by_the_definition(rows):
    values = pa.array(rows, pa.list_(pa.string()))
    expected = [sum(len((one or "").encode()) for one in row or []) for row in rows]
    np.testing.assert_array_equal(row_bytes(batch_of(values)), np.array(expected, np.int64))
