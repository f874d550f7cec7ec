"""Values of any type are compared one by one, NaN and nested ones included."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import rich_table

from curate.verification.values import differing

FLOATS = st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf])
LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), st.integers(-2, 2)),
    (pa.float32(), FLOATS),
    (pa.float64(), FLOATS),
    (pa.string(), st.sampled_from(["", "a", "é"])),
    (pa.bool_(), st.booleans()),
    (pa.binary(), st.sampled_from([b"", b"\0"])),
]


def nested(
    inner: tuple[pa.DataType, st.SearchStrategy[Any]],
) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    kind, values = inner
    some = st.one_of(st.none(), values)
    lists = st.lists(some, max_size=2)
    return st.sampled_from(
        [
            (pa.list_(kind), lists),
            (pa.large_list(kind), lists),
            (pa.list_(kind, 2), st.lists(some, min_size=2, max_size=2)),
            (pa.struct([("x", kind), ("y", pa.int8())]), st.fixed_dictionaries({"x": some})),
            (
                pa.map_(pa.string(), kind),
                st.lists(st.tuples(st.sampled_from("ab"), some), max_size=2),
            ),
        ]
    )


TYPES = st.recursive(st.sampled_from(LEAVES), lambda inner: inner.flatmap(nested), max_leaves=3)


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.DataType, list[Any], list[Any]]:
    kind, values = draw(TYPES)
    rows = st.lists(st.one_of(st.none(), values), min_size=4, max_size=4)
    ours = draw(rows)
    return kind, ours, [draw(st.sampled_from([one, other])) for one, other in zip(
        ours, draw(rows), strict=True)]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(columns(), st.booleans())
def test_rows_differ_where_their_values_do(
    column: tuple[pa.DataType, list[Any], list[Any]], sliced: bool
) -> None:
    """`repr` tells NaN, -0.0 and None apart, and finds NaN like NaN."""
    kind, *pair = column
    ours, theirs = (pa.array(one, kind) for one in pair)
    if sliced:
        ours, theirs = ours.slice(1), theirs.slice(1)
    expected = [
        repr(one) != repr(other)
        for one, other in zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
    ]
    assert differing(ours, theirs).tolist() == expected


def test_no_row_of_the_rich_pool_differs_from_itself() -> None:
    table = rich_table(1)
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        again = pa.concat_arrays([column.slice(0, 7), column.slice(7)])
        assert not differing(column, again).any(), name
        other = column.take(pa.array(np.roll(np.arange(len(column)), 1)))
        assert differing(column, other).any() == (name != "nothing"), name


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.decimal128(5, 2), [decimal.Decimal("1.00"), decimal.Decimal("1.01")]),
        (pa.timestamp("ns", "Europe/Berlin"), [0, 1]),
        (pa.duration("s"), [0, 1]),
        (pa.time32("s"), [0, 1]),
        (pa.date32(), [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]),
        (pa.float16(), [np.float16(0), np.float16(-0.0)]),
        (pa.month_day_nano_interval(), [(1, 2, 3), (1, 2, 4)]),
        (pa.list_view(pa.int32()), [[1], [2]]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        (pa.binary(1), [b"a", b"b"]),
    ],
    ids=str,
)
def test_types_that_are_rare(kind: pa.DataType, values: list[Any]) -> None:
    one, other = values
    ours, theirs = pa.array([one, one, None], kind), pa.array([one, other, None], kind)
    assert differing(ours, theirs).tolist() == [False, True, False]
