"""Metadata as the log carries it: nothing in it that DuckDB would refuse once a run is over."""

import datetime

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.read.metadata import metadata_values


def test_long_metadata_texts_are_cut_at_characters():
    assert metadata_values(pa.array(["é" * 300, None])).to_pylist() == ["é" * 256, None]
    coded = pa.array(["a", "b", "a", None]).dictionary_encode()
    assert metadata_values(coded).to_pylist() == ["a", "b", "a", None]
    views = pa.array(["é" * 300, None], pa.string_view())
    assert metadata_values(views).to_pylist() == ["é" * 256, None]


@pytest.mark.parametrize(
    ("kind", "values", "held"),
    [
        (pa.timestamp("s", "UTC"), [0, 2**62, None], [0, None, None]),
        (pa.timestamp("ms"), [-62135596800000000, -1, 2**62], [None, -1, None]),
        (pa.timestamp("us"), [2**62, 2**63 - 1, -(2**63)], [2**62, None, None]),
        (pa.timestamp("ns"), [2**62, 2**63 - 1, 0], [2**62, None, 0]),
        (pa.time64("us"), [0, 86_400_000_000, 86_400_000_001], [0, 86_400_000_000, None]),
        (pa.time32("s"), [-1, 86_399, 86_401], [None, 86_399, None]),
    ],
    ids=str,
)
def test_times_that_a_log_cannot_hold_are_null(kind, values, held):
    whole = pa.int32() if kind.bit_width == 32 else pa.int64()
    found = metadata_values(pa.array(values, whole).view(kind))
    assert found.type == kind
    assert found.view(whole).to_pylist() == held


BAD = pa.array([b"a", b"\xff", b"b", None], pa.large_binary()).view(pa.large_string())
JSON = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":', "{}", None, "1"]))
FAR = pa.array([0, 2**62, None, 0], pa.int64()).view(pa.timestamp("ms"))
DAY = datetime.datetime(1970, 1, 1)
OFFSETS = pa.array([0, 2, 3, 3, 4], pa.int32())


@pytest.mark.parametrize(
    ("column", "held"),
    [
        (BAD, ["a", "\ufffd", "b", None]),
        (pa.StructArray.from_arrays([BAD], ["x"]), [{"x": "a"}, None, {"x": "b"}, {"x": None}]),
        (pa.ListArray.from_arrays(OFFSETS, BAD), [None, ["b"], [], [None]]),
        (pa.FixedSizeListArray.from_arrays(BAD, 2), [None, ["b", None]]),
        (
            pa.MapArray.from_arrays(OFFSETS, ["k", "l", "m", "n"], BAD),
            [None, [("m", "b")], [], [("n", None)]],
        ),
        (
            pa.ListArray.from_arrays(OFFSETS, pa.StructArray.from_arrays([BAD], ["x"])),
            [None, [{"x": "b"}], [], [{"x": None}]],
        ),
        (
            pa.StructArray.from_arrays([FAR, BAD], ["t", "x"]),
            [{"t": DAY, "x": "a"}, None, {"t": None, "x": "b"}, {"t": DAY, "x": None}],
        ),
        (pa.ListArray.from_arrays(OFFSETS, FAR), [None, [None], [], [DAY]]),
        (
            pa.MapArray.from_arrays(OFFSETS, FAR.fill_null(0), ["k", "l", "m", "n"]),
            [None, [(DAY, "m")], [], [(DAY, "n")]],
        ),
        (
            pa.ListArray.from_arrays(OFFSETS, FAR.dictionary_encode()),
            [None, [None], [], [DAY]],
        ),
        (JSON, ['{"a":', "{}", None, "1"]),
        (
            pa.ExtensionArray.from_storage(pa.json_(pa.large_string()), BAD),
            ["a", "\ufffd", "b", None],
        ),
        (
            pa.StructArray.from_arrays([JSON, BAD], ["x", "y"]),
            [{"x": '{"a":', "y": "a"}, None, {"x": None, "y": "b"}, {"x": "1", "y": None}],
        ),
        (pa.ListArray.from_arrays(OFFSETS, JSON), [['{"a":', "{}"], [None], [], ["1"]]),
        (
            pa.ListViewArray.from_arrays(OFFSETS[:4], pa.array([2, 1, 0, 1], pa.int32()), JSON),
            [['{"a":', "{}"], [None], [], ["1"]],
        ),
        (
            pa.MapArray.from_arrays(OFFSETS, ["k", "l", "m", "n"], JSON),
            [[("k", '{"a":'), ("l", "{}")], [("m", None)], [], [("n", "1")]],
        ),
    ],
    ids=[
        *("string", "struct", "list", "fixed", "map", "structs"),
        *("times in a struct", "times in a list", "times in a map", "coded times in a list"),
        *("json", "json not UTF-8", "json in a struct", "json in a list"),
        *("json in a view of lists", "json in a map"),
    ],
)
def test_what_a_log_would_refuse_is_replaced_or_null(column, held, tmp_path):
    found = metadata_values(column)
    assert found.to_pylist() == held
    pq.write_table(pa.table({"found": found}), tmp_path / "found.parquet")
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE log AS FROM '{tmp_path / 'found.parquet'}'")
        assert connection.execute("SELECT count(*) FROM log").fetchone() == (len(held),)


def test_nested_values_that_are_sound_are_left_as_they_are():
    column = pa.array([{"x": ["é" * 300]}, None, {"x": []}])
    assert metadata_values(column) is column
