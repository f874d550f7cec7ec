"""A part holds exactly the selected rows of its shard, column for column."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import records
from curate.errors import CurateError, InvalidInput
from curate.records import OUTPUT_COLUMNS, make_document_id
from curate.select.final import KeptReader
from curate.write import parts
from curate.write.parts import output_schema, part_files, part_number, write_part

_VALUES = {
    "nested": (
        pa.list_(pa.struct([("a", pa.list_(pa.int16())), ("b", pa.string())])),
        [[{"a": [1, None], "b": "x"}], None, [], [None]],
    ),
    "map": (pa.map_(pa.string(), pa.float64()), [[("k", 1.5)], [], None]),
    "decimal": (pa.decimal128(20, 4), [Decimal("1.2500"), None]),
    "when": (
        pa.timestamp("us", tz="Europe/Zurich"),
        [dt.datetime(2024, 3, 31, 1, 30, tzinfo=dt.UTC), None],
    ),
    "category": (pa.dictionary(pa.int32(), pa.string()), ["red", "green", None, "blue"]),
    "binary": (pa.binary(), [b"\x00\xff", b"", None]),
    "nothing": (pa.null(), [None]),
    "large": (pa.large_string(), ["ä" * 50, "", None]),
    "flag": (pa.bool_(), [True, False, None]),
    "day": (pa.date32(), [dt.date(1969, 7, 20), None]),
}


def pool_table(rows: int, start: int = 0) -> pa.Table:
    """A shard with every type that must pass, and metadata on the schema and on a field."""
    columns = {"text": pa.array([f"document {start + i}" for i in range(rows)])}
    for name, (kind, values) in _VALUES.items():
        chosen = [values[(start + i) % len(values)] for i in range(rows)]
        columns[name] = pa.array(chosen, kind)
    table = pa.table(columns)
    text = table.schema.field("text").with_metadata({"language": "en"})
    schema = table.schema.set(0, text).with_metadata({"origin": "test"})
    return read_from_parquet(table.cast(schema))


def read_from_parquet(table: pa.Table) -> pa.Table:
    """As a pool is read: Parquet decides the inner names of maps, older files those of lists."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_compliant_nested_type=False)
    return pq.read_table(pa.BufferReader(sink.getvalue()))


def selection_of(rows: list[int]) -> pa.Table:
    count = len(rows)
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "weight": pa.array(np.linspace(0.5, 1.5, count), pa.float32()),
            "score": pa.array(np.arange(count), pa.float32()),
            "excess_loss": pa.array([None if i % 3 else 0.25 for i in range(count)], pa.float32()),
            "round": pa.array([i % 4 for i in range(count)], pa.int32()),
        }
    )


def numbered(table: pa.Table, batch_rows: int) -> list[tuple[int, pa.RecordBatch]]:
    first, pairs = 0, []
    for batch in table.to_batches(max_chunksize=batch_rows):
        pairs.append((first, batch))
        first += batch.num_rows
    return pairs


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_part_equals_the_rows_taken(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    rows = data.draw(st.integers(1, 60))
    kept = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1)))
    batch_rows, group_rows = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    pieces = data.draw(st.integers(1, 70))
    table, selection = pool_table(rows), selection_of(kept)
    path = tmp_path_factory.mktemp("part") / "part-00000.parquet"

    batches = numbered(table, batch_rows)
    count = write_part(
        path, table.schema, batches, selection.to_batches(pieces), row_group_rows=group_rows
    )

    part = pq.read_table(path)
    assert count == len(kept)
    assert part.select(table.schema.names).equals(table.take(kept), check_metadata=True)
    for field in OUTPUT_COLUMNS:
        expected = selection.column(field.name.removeprefix("curate_"))
        assert part.column(field.name).equals(expected)
    groups = pq.read_metadata(path)
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sizes[:-1] == [group_rows] * (len(sizes) - 1)
    assert sizes[-1] <= group_rows


def test_schema_is_that_of_the_pool_then_the_output_columns():
    schema = pool_table(1).schema
    out = output_schema(schema)
    assert list(out)[: len(schema)] == list(schema)
    assert tuple(out)[len(schema) :] == OUTPUT_COLUMNS
    assert out.metadata == schema.metadata
    assert out.field("text").metadata == {b"language": b"en"}


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "none"])
def test_bytes_do_not_depend_on_the_batches_read(tmp_path: Path, compression: str):
    table, selection = pool_table(500), selection_of(list(range(0, 500, 3)))
    written = set()
    for batch_rows in (7, 100, 500):
        path = tmp_path / "part.parquet"
        batches = numbered(table, batch_rows)
        write_part(
            path,
            table.schema,
            batches,
            selection.to_batches(),
            row_group_rows=64,
            compression=compression,
        )
        written.add(path.read_bytes())
    assert len(written) == 1


def group_sizes(path: Path) -> list[int]:
    groups = pq.read_metadata(path)
    return [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]


def test_long_rows_make_shorter_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However the rows were batched as they were read."""
    monkeypatch.setattr(parts.row_groups, "__defaults__", (1000,))
    lengths = [10] * 8 + [400, 400, 400, 5000, 600, 400, 1] + [10] * 5
    table = pa.table({"text": ["x" * length for length in lengths]})
    selection = selection_of(list(range(len(lengths))))
    written = set()
    for batch_rows in (1, 2, 3, 7, len(lengths)):
        path = tmp_path / "part.parquet"
        pieces = selection.to_batches(batch_rows)
        write_part(path, table.schema, numbered(table, batch_rows), pieces, row_group_rows=8)
        assert group_sizes(path) == [8, 2, 1, 1, 2, 6]
        written.add(path.read_bytes())
    assert len(written) == 1
    assert pq.read_table(path).column("text").equals(table.column("text"))


def test_row_groups_of_long_nested_rows_are_cut_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Images, messages and documents in pieces: memory is for one group of them."""
    monkeypatch.setattr(parts.row_groups, "__defaults__", (1000,))
    rows = 14
    columns = {
        "image": [{"bytes": b"x" * 30, "path": "ab"}] * rows,
        "messages": [[{"content": "y" * 50}] * 3] * rows,
        "map": pa.array([[("k", "z" * 17)]] * rows, pa.map_(pa.string(), pa.string())),
    }
    table = pa.table(columns)
    written = set()
    for batch_rows in (1, 3, rows):
        path = tmp_path / "part.parquet"
        pieces = selection_of(range(rows)).to_batches()
        write_part(path, table.schema, numbered(table, batch_rows), pieces)
        assert group_sizes(path) == [5, 5, 4]  # of 200 bytes a row
        written.add(path.read_bytes())
    assert len(written) == 1


def test_ordinary_rows_make_whole_row_groups(tmp_path: Path):
    table = pa.table({"text": ["x" * 10_000] * 5000, "list": [[1.0] * 10] * 5000})
    path = tmp_path / "part.parquet"
    write_part(path, table.schema, numbered(table, 999), selection_of(range(5000)).to_batches())
    assert group_sizes(path) == [4096, 904]


def write_selection(path: Path, rows: dict[int, int], drop: int = 10**9) -> None:
    """A selection of so many rows by shard, of which every `drop`th is dropped."""
    ids = [np.arange(count) + make_document_id(shard, 0) for shard, count in rows.items()]
    every = np.concatenate(ids)
    kept = np.arange(len(every)) % drop != drop - 1
    columns = [every, *[np.ones(len(every))] * 3, np.zeros(len(every)), kept, kept]
    arrays = [
        pa.array(one).cast(field.type)
        for one, field in zip(columns, records.SELECTION, strict=False)
    ]
    table = pa.table([*arrays, pa.array(["selected"] * len(every))], schema=records.SELECTION)
    pq.write_table(table, path, row_group_size=100_000)


def test_kept_rows_come_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curate.select.final._BATCH_ROWS", 7)
    write_selection(tmp_path / "selection", {0: 10, 2: 1, 3: 25, 9: 4}, drop=3)
    reader = KeptReader(tmp_path / "selection")
    found = {}
    for shard in (0, 1, 2, 9, 10):  # what is left of shard 3 is passed over
        pieces = list(reader.shard(shard))
        assert all(piece.schema.names == list(selection_of([0]).schema.names) for piece in pieces)
        found[shard] = [row for piece in pieces for row in piece.column("row").to_pylist()]
    assert found == {0: [0, 1, 3, 4, 6, 7, 9], 1: [], 2: [0], 9: [0, 1, 3], 10: []}


def most_memory(folder: Path, rows: int) -> int:
    """What Arrow holds at most while so many kept rows of one shard are written."""
    write_selection(folder / "selection", {0: rows})
    schema = pa.schema([("n", pa.int64())])
    start, most = pa.total_allocated_bytes(), 0

    def batches():
        nonlocal most
        for first in range(0, rows, 4000):
            most = max(most, pa.total_allocated_bytes() - start)
            yield first, pa.record_batch([np.arange(first, first + 4000)], schema=schema)

    pieces = KeptReader(folder / "selection").shard(0)
    assert write_part(folder / "p.parquet", schema, batches(), pieces) == rows
    assert np.array_equal(pq.read_table(folder / "p.parquet").column("n"), np.arange(rows))
    return most


def test_memory_does_not_grow_with_the_kept_rows_of_a_shard(tmp_path: Path):
    few, many = (most_memory(tmp_path, rows) for rows in (200_000, 600_000))
    assert many < 1.5 * few


def test_dictionaries_that_differ_between_batches_are_unified(tmp_path: Path):
    kind = pa.dictionary(pa.int32(), pa.string())
    batches = [
        (i, pa.record_batch({"c": pa.array([value], kind)})) for i, value in enumerate("xyx")
    ]
    write_part(
        tmp_path / "p.parquet", batches[0][1].schema, batches, selection_of([0, 1, 2]).to_batches()
    )
    part = pq.read_table(tmp_path / "p.parquet")
    assert part.column("c").to_pylist() == ["x", "y", "x"]
    assert part.schema.field("c").type == kind


def test_columns_of_one_name_pass(tmp_path: Path):
    schema = pa.schema([("a", pa.int64()), ("a", pa.string())])
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2]), pa.array(["x", "y"])], schema=schema)
    write_part(tmp_path / "p.parquet", schema, [(0, batch)], selection_of([1]).to_batches())
    with pq.ParquetFile(tmp_path / "p.parquet") as part:
        assert part.schema_arrow.names[:2] == ["a", "a"]


def test_parts_come_in_pool_order(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for name in ("part-100000", "part-99999", "part-00003", "part-notes", "other"):
        (tmp_path / "data" / f"{name}.parquet").write_bytes(b"")
    files = part_files(tmp_path)
    assert [part_number(file) for file in files] == [3, 99999, 100000]


def test_empty_selection_writes_nothing(tmp_path: Path):
    table = pool_table(5)
    path = tmp_path / "part-00000.parquet"
    assert write_part(path, table.schema, numbered(table, 2), selection_of([]).to_batches()) == 0
    assert list(tmp_path.iterdir()) == []


def test_pool_that_already_has_an_output_column_is_refused(tmp_path: Path):
    table = pa.table({"text": ["a"], "curate_weight": [1.0]})
    with pytest.raises(InvalidInput) as error:
        write_part(
            tmp_path / "p.parquet", table.schema, numbered(table, 1), selection_of([0]).to_batches()
        )
    assert error.value.problem == "The pool already has a column named curate_weight."
    assert list(tmp_path.iterdir()) == []


def test_shard_that_lost_rows_leaves_no_file(tmp_path: Path):
    table = pool_table(5)
    with pytest.raises(CurateError, match="Only 1 of the 2 rows selected for p"):
        write_part(
            tmp_path / "p.parquet",
            table.schema,
            numbered(table, 5),
            selection_of([1, 9]).to_batches(),
        )
    assert list(tmp_path.iterdir()) == []
