"""The user's metadata columns: any name, any scalar type, and a keep rate where it makes sense."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from log_sample import SOURCES

from curate import records
from curate.log import schema
from curate.log.load import build_log


def open_plain(out: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(out / "selection_log.duckdb"), read_only=True)


def test_names_that_collide_get_a_prefix():
    given = ["Tokens", "source", "SOURCE", "pool_tokens", "", "kept", "id"]
    assert schema.stored_names(given) == [
        "pool_Tokens",
        "source",
        "pool_SOURCE",
        "pool_pool_tokens",
        "pool_",
        "pool_kept",
        "id",
    ]


HOSTILE = ['x"; DROP TABLE run; --', "a'b", "two words", "select", "id", "document", "Kept", "日本"]


def test_hostile_names_are_only_names(log):
    log.metadata = [(name, SOURCES) for name in [*HOSTILE, "tokens", "row"]]
    out = log.build()
    with open_plain(out) as opened:
        columns = [row[0] for row in opened.execute("DESCRIBE document").fetchall()][10:]
        assert columns == [*HOSTILE[:-2], "pool_Kept", "日本", "pool_tokens", "pool_row"]
        for name in columns:
            view = schema.quote(f"keep_rate_by_{name}")
            assert len(opened.execute(f"FROM {view}").fetchall()) == 3
        assert len(opened.execute("FROM why(3)").fetchall()) == 3
        assert opened.execute("SELECT count(*) FROM run").fetchall() == [(1,)]


SCALARS = {
    "null": pa.nulls(6),
    "bool": pa.array([True, False] * 3),
    "uint64": pa.array([2**64 - 1] * 6, pa.uint64()),
    "int8": pa.array([-1] * 6, pa.int8()),
    "half": pa.array([0.5] * 6, pa.float16()),
    "float": pa.array([float("nan")] * 6),
    "decimal": pa.array([Decimal("1.25")] * 6, pa.decimal128(9, 2)),
    "date": pa.array([datetime.date(2025, 1, 2)] * 6),
    "time_ms": pa.array([1000] * 6, pa.time32("ms")),
    "time_ns": pa.array([1000] * 6, pa.time64("ns")),
    "stamp_s": pa.array([1] * 6, pa.timestamp("s")),
    "stamp_ns": pa.array([1] * 6, pa.timestamp("ns")),
    "stamp_tz": pa.array([1] * 6, pa.timestamp("us", "Europe/Berlin")),
    "duration": pa.array([1] * 6, pa.duration("s")),
    "binary": pa.array([b"\x00\xff"] * 6),
    "fixed": pa.array([b"ab"] * 6, pa.binary(2)),
    "large": pa.array(["x"] * 6, pa.large_string()),
    "view": pa.array(["x"] * 6, pa.string_view()),
    "dictionary": pa.array(["x"] * 6).dictionary_encode(),
}


def test_metadata_of_every_scalar_type(log):
    log.metadata = list(SCALARS.items())
    with open_plain(log.build()) as opened:
        types = dict(row[:2] for row in opened.execute("DESCRIBE document").fetchall())
        names = ("null", "bool", "uint64", "half", "decimal", "date", "binary", "dictionary")
        columns = ", ".join(schema.quote(name) for name in names)
        values = opened.execute(f"SELECT {columns} FROM document").fetchall()
        for name in SCALARS:
            assert opened.execute(f"SELECT documents FROM keep_rate_by_{name}").fetchall()
    assert types["null"] in ("VARCHAR", "INTEGER")  # INTEGER up to DuckDB 1.4
    assert types["stamp_tz"] == "TIMESTAMP WITH TIME ZONE"
    assert types["decimal"] == "DECIMAL(9,2)"
    day = datetime.date(2025, 1, 2)
    assert values[0] == (None, True, 2**64 - 1, 0.5, Decimal("1.25"), day, b"\x00\xff", "x")


def test_only_columns_with_few_values_get_a_keep_rate_view(tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    count = 2400
    table = pa.table(
        {
            "document_id": pa.array(range(count), pa.int64()),
            "shard_id": pa.array([0] * count, pa.int32()),
            "row": pa.array(range(count), pa.int64()),
            "tokens": pa.array([1] * count, pa.int64()),
            "bytes": pa.array([1] * count, pa.int64()),
            "problem": pa.nulls(count, pa.string()),
            "unique": [str(n) for n in range(count)],
            "over": [n % 1001 for n in range(count)],
            "at": [n % 1000 for n in range(count)],
        }
    )
    outcome = pa.table(
        {name: [0] * count for name in records.SELECTION.names}
        | {"document_id": range(count), "reason": ["never_selected"] * count}
    ).cast(records.SELECTION)
    pq.write_table(table, folder / "d.parquet")
    pq.write_table(outcome, folder / "s.parquet")
    build_log(
        folder / "selection_log.duckdb",
        run={},
        shards=records.SHARD.empty_table(),
        rounds=records.ROUND.empty_table(),
        documents=[folder / "d.parquet"],
        selection=[folder / "s.parquet"],
        decisions=[],
        training=[],
        metadata_columns=["unique", "over", "at"],
    )
    with open_plain(folder) as opened:
        views = opened.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    built_in = {"kept", "dropped", "quarantined", "score_histogram"}
    assert {name for (name,) in views} == {*built_in, "keep_rate_by_at"}
