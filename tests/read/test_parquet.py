import datetime as dt
import subprocess
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import environment

from curate.errors import DamagedShard, InvalidInput
from curate.read.corpus import open_corpus
from curate.read.schema import BATCH_BYTES

ROWS = 5
BERLIN = pa.timestamp("us", "Europe/Berlin")
WHEN = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
COLUMNS = {
    "dictionary": pa.array(["a", "b", "a", None, "b"]).dictionary_encode(),
    "small_dictionary": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 0, 1, None], pa.int8()), ["x", "y"], ordered=True
    ),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": []}, {}, {"a": 2}]),
    "list": pa.array([[1, None], None, [], [2], [3]], pa.list_(pa.int16())),
    "large_list": pa.array([["a"], None, [], ["b"], ["c"]], pa.large_list(pa.string())),
    "fixed_list": pa.array([[1, 2]] * ROWS, pa.list_(pa.float32(), 2)),
    "map": pa.array([[("a", 1)], [], None, [("b", 2)], []], pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([Decimal("1.25"), None] + [Decimal("-3.50")] * 3, pa.decimal128(7, 2)),
    "wide_decimal": pa.array([Decimal("1.25")] * ROWS, pa.decimal256(60, 2)),
    "zoned": pa.array([WHEN, None, WHEN, WHEN, WHEN], BERLIN),
    "naive": pa.array([1, 2, None, 4, 5], pa.timestamp("ns")),
    "date": pa.array([1, 2, None, 4, 5], pa.date32()),
    "time": pa.array([1, 2, None, 4, 5], pa.time64("us")),
    "duration": pa.array([1, 2, None, 4, 5], pa.duration("ms")),
    "binary": pa.array([b"\x00\xff", None, b"", b"a", b"b"], pa.binary()),
    "large_binary": pa.array([b"\x00\xff", None, b"", b"a", b"b"], pa.large_binary()),
    "fixed_binary": pa.array([b"ab"] * ROWS, pa.binary(2)),
    "string_view": pa.array(["a", None, "", "long enough to be out of line", "b"], "string_view"),
    "null": pa.nulls(ROWS),
    "bool": pa.array([True, False, None, True, False]),
    "uint64": pa.array([2**64 - 1, 0, None, 1, 2], pa.uint64()),
    "half": pa.array([1, 2, None, 3, 4], pa.float16()),
}


def rows_of(corpus, shard, **options):
    pairs = list(corpus.iter_batches(shard, **options))
    firsts = [first for first, _ in pairs]
    sizes = [batch.num_rows for _, batch in pairs]
    assert firsts == [sum(sizes[:i]) for i in range(len(sizes))]
    return pa.Table.from_batches([batch for _, batch in pairs], corpus.schema)


@pytest.mark.parametrize("name", COLUMNS)
def test_types_come_back_identical(tmp_path, name):
    table = pa.table({"text": pa.array(list("abcde")), "c": COLUMNS[name]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    corpus = open_corpus(str(tmp_path / "a.parquet"))
    got = rows_of(corpus, corpus.shards[0], batch_rows=2)
    assert corpus.schema.field("c").type == COLUMNS[name].type
    assert got.to_pylist() == table.to_pylist()
    for _, batch in corpus.iter_batches(corpus.shards[0], ["c"]):
        assert batch.schema.field("c").type == COLUMNS[name].type


STRATEGIES = {
    "i": (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "s": (st.text(max_size=8), pa.large_string()),
    "b": (st.binary(max_size=8), pa.binary()),
    "d": (st.sampled_from(["x", "y", "z"]), pa.dictionary(pa.int32(), pa.string())),
    "l": (st.lists(st.booleans(), max_size=3), pa.list_(pa.bool_())),
    "t": (st.datetimes(dt.datetime(1900, 1, 1), timezones=st.just(dt.UTC)), BERLIN),
}


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 25))
    names = draw(st.lists(st.sampled_from(sorted(STRATEGIES)), unique=True))
    columns = {"text": pa.array(draw(st.lists(st.text(), min_size=rows, max_size=rows)), "string")}
    for name in names:
        values, kind = STRATEGIES[name]
        cells = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[name] = pa.array(cells, kind)
    return pa.table(columns).replace_schema_metadata({"origin": "generated"})


@settings(max_examples=60, deadline=None)
@given(table=tables(), group=st.integers(1, 30), batch=st.integers(1, 30))
def test_round_trip(tmp_path_factory, table, group, batch):
    path = tmp_path_factory.mktemp("round") / "a.parquet"
    pq.write_table(table, path, row_group_size=group)
    corpus = open_corpus(str(path))
    got = rows_of(corpus, corpus.shards[0], batch_rows=batch)
    assert got.schema.equals(table.schema)
    assert got.to_pylist() == table.to_pylist()
    assert corpus.schema.metadata == {b"origin": b"generated"}
    assert corpus.shards[0].rows == table.num_rows


def test_batches_respect_row_groups_and_batch_rows(tmp_path):
    pq.write_table(pa.table({"text": ["x"] * 10}), tmp_path / "a.parquet", row_group_size=4)
    corpus = open_corpus(str(tmp_path))
    pairs = list(corpus.iter_batches(corpus.shards[0], batch_rows=3))
    assert [(first, batch.num_rows) for first, batch in pairs] == [
        (0, 3), (3, 1), (4, 3), (7, 1), (8, 2),
    ]  # fmt: skip


def test_columns_are_projected_in_schema_order(tmp_path):
    table = pa.table({"a.b": [1], "a": [{"b": 2, "c": 3}], "text": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path))
    read = lambda *names: next(corpus.iter_batches(corpus.shards[0], names))[1]  # noqa: E731
    assert read("text", "a").to_pylist() == [{"a": {"b": 2, "c": 3}, "text": "x"}]
    assert read("a.b").to_pylist() == [{"a.b": 1}]
    assert (read().num_rows, read().num_columns) == (1, 0)


def test_unknown_column(tmp_path):
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path))
    with pytest.raises(InvalidInput) as caught:
        next(corpus.iter_batches(corpus.shards[0], ["m"]))
    assert caught.value.problem == 'The pool has no column "m" (it has: text, n).'


@pytest.mark.parametrize("group_rows", [2_000, 200_000])
def test_memory_does_not_grow_with_the_file(tmp_path, group_rows):
    text = [f"{i:0200d}" for i in range(2_000)]
    table = pa.table({"text": text * 100})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=group_rows, use_dictionary=False, compression="none")
    assert path.stat().st_size > 40e6
    del table
    corpus = open_corpus(str(path))
    before = pa.total_allocated_bytes()
    peak = rows = 0
    for _, batch in corpus.iter_batches(corpus.shards[0], batch_rows=500):
        rows += batch.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert rows == 200_000
    assert peak < 6e6


@pytest.mark.parametrize("names", [None, ["text"]])
def test_batches_of_large_rows_are_bounded_in_bytes(tmp_path, names):
    small = [f"{i:0100d}" for i in range(3000)]
    large = [f"{i:0600000d}" for i in range(90)]
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", "string")])) as writer:
        for texts in (small, large, ["0" * 20_000_000]):
            writer.write_table(pa.table({"text": texts}))
    corpus = open_corpus(str(tmp_path))
    rows = [batch for _, batch in corpus.iter_batches(corpus.shards[0], names)]
    assert [batch.num_rows for batch in rows[:3]] == [1024, 1024, 952]
    assert rows[-1].num_rows == 1
    assert all(batch.nbytes < 1.1 * BATCH_BYTES for batch in rows[:-1])
    assert sum(batch.num_rows for batch in rows) == 3091
    assert len(rows) < 10
    for first, batch in corpus.iter_batches(corpus.shards[0], names):
        every = [*small, *large]
        assert first > 3089 or batch["text"].to_pylist() == every[first : first + batch.num_rows]


def test_text_bytes_come_from_the_footer(tmp_path):
    table = pa.table({"n": range(50), "text": [f"{i:0100d}" for i in range(50)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    (shard,) = open_corpus(str(tmp_path)).shards
    assert 5_000 <= shard.text_bytes <= 9_000


def test_a_footer_that_lies_about_the_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 77}), path, store_schema=False)
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    place = data.index(b"\x9a\x01", start)  # 77 as Thrift writes it, of the file before its groups
    path.write_bytes(data[:place] + b"\x9c\x01" + data[place + 2 :])
    corpus = open_corpus(str(path))
    (shard,) = corpus.shards
    assert shard.rows == 78
    with pytest.raises(DamagedShard) as caught:
        list(corpus.iter_batches(shard))
    assert caught.value.problem == f"Shard {path} holds 77 rows, but its footer says 78."


def test_a_footer_that_names_columns_that_no_batch_has(tmp_path):
    """A column whose type is lost becomes a group without fields, which the footer still names."""
    pq.write_table(pa.table({"text": ["river", "stone"]}), tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path))
    named = corpus.schema.append(pa.field("id", pa.struct([])))
    with pytest.raises(DamagedShard) as caught:
        list(corpus._readers[0].read(named, named, 10))
    assert caught.value.problem.endswith("(its footer names columns that it has not).")


def test_a_damaged_entry_of_a_column_chunk_does_not_end_the_process(tmp_path):
    """pyarrow's metadata aborts on some of them, where its reader raises."""
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["river", None, "stone"], "n": [[1], [], [2, 3]]})
    pq.write_table(table, path)
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    script = (
        "import sys; from pathlib import Path; from curate.errors import CurateError\n"
        "from curate.read.corpus import open_corpus\n"
        "path, start = Path(sys.argv[1]), int(sys.argv[2])\n"
        "whole, read = path.read_bytes(), 0\n"
        "for place in range(start, len(whole) - 8):\n"
        "    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])\n"
        "    try:\n"
        "        corpus = open_corpus(str(path))\n"
        "        read += sum(1 for _ in corpus.iter_batches(corpus.shards[0]))\n"
        "    except CurateError:\n"
        "        pass\n"
        "print(read)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(start)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) > 10


def test_damaged_data_behind_a_good_footer(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i:050d}" for i in range(500)]}), path)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    corpus = open_corpus(str(path))
    with pytest.raises(InvalidInput, match=r"^Shard .*a\.parquet is not a readable Parquet file"):
        list(corpus.iter_batches(corpus.shards[0]))


def test_a_shard_removed_after_opening(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"]}), path)
    corpus = open_corpus(str(path))
    path.unlink()
    with pytest.raises(InvalidInput) as caught:
        list(corpus.iter_batches(corpus.shards[0]))
    assert caught.value.problem.startswith(f"Shard {path} cannot be opened (")
