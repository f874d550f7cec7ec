"""Questions are answered; attacks and mistakes are refused in one sentence and write nothing."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from log_sample import IDS, SOURCES

from curate.errors import InvalidInput
from curate.log.query import connect, run_sql, summary, why

SQL_REMEDY = "Run DESCRIBE or SHOW TABLES to see what the log holds."


def test_sql_gives_arrow_batches(built):
    reader = run_sql(built, "SELECT document_id, tokens FROM kept ORDER BY tokens DESC;")
    assert isinstance(reader, pa.RecordBatchReader)
    assert reader.read_all().to_pydict() == {
        "document_id": [IDS[4], IDS[1], IDS[0]],
        "tokens": [40, 20, 10],
    }


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE decision",
        "SHOW TABLES",
        "SUMMARIZE document",
        "EXPLAIN FROM kept",
        "WITH a AS (SELECT 1 AS b) FROM a",
        "VALUES (1)",
        "FROM why(0)",
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal",
    ],
)
def test_all_ways_to_read_work(built, sql):
    assert run_sql(built, sql).read_all().num_rows > 0


def test_a_result_is_not_computed_whole(built):
    reader = run_sql(built, "FROM range(1000000000000)")
    assert reader.read_next_batch().num_rows > 0
    reader.close()


OUTSIDER = pa.table({"secret": [1]})

ATTACKS = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "FROM '/etc/passwd'",
    "FROM '{folder}/in.csv'",
    "FROM '{folder}/in.parquet'",
    "FROM read_parquet('{folder}/in.parquet')",
    "FROM 'https://example.org/x.parquet'",
    "COPY document TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{folder}/out.parquet'",
    "EXPLAIN ANALYZE COPY document TO '{folder}/out.csv'",
    "EXPORT DATABASE '{folder}/export'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/new.duckdb'",
    "ATTACH '{folder}/other.duckdb' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access=true",
    "RESET enable_external_access",
    "SET lock_configuration=false",
    "SET temp_directory='{folder}/t'",
    "PRAGMA enable_profiling",
    "PRAGMA profiling_output='{folder}/profile'",
    "CALL enable_logging(storage='file', storage_path='{folder}/l')",
    "INSERT INTO run SELECT * FROM run",
    "DELETE FROM document",
    "UPDATE document SET kept = true",
    "DROP VIEW kept",
    "CREATE TABLE t (i INT)",
    "CREATE TEMP TABLE t (i INT)",
    "CREATE SECRET (TYPE s3)",
    "SELECT 1; DELETE FROM document",
    "FROM OUTSIDER",
    "SELECT getenv('HOME')",
    "CHECKPOINT",
    "",
    "-- nothing",
    "SELEC 1",
    "SELECT absent FROM document",
    "SELECT error('a' || chr(10) || 'b')",
    "SELECT 'x'::INTEGER FROM document",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_reading_the_log_is_refused(built, tmp_path, attack):
    out = Path(shutil.copytree(built, tmp_path / "out"))
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "in.csv").write_text("a\n1\n")
    pa.parquet.write_table(OUTSIDER, folder / "in.parquet")
    duckdb.connect(str(folder / "other.duckdb")).close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InvalidInput) as caught:
        run_sql(out, attack.format(folder=folder)).read_all()
    assert "\n" not in str(caught.value)
    assert caught.value.problem.endswith((".", "!", "?"))
    assert caught.value.remedy == SQL_REMEDY
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_logging_to_a_file_writes_nothing(built, tmp_path):
    sql = f"FROM enable_logging(storage='file', storage_path='{tmp_path}/l')"
    with contextlib.suppress(InvalidInput):  # DuckDB 1.4 refuses only the queries after it
        run_sql(built, sql).read_all()
    assert list(tmp_path.iterdir()) == []
    assert run_sql(built, "FROM kept").read_all().num_rows == 3


def test_an_error_far_into_the_result_is_invalid_input_too(built):
    sql = "SELECT CASE WHEN i = 900000 THEN error('late') ELSE i END FROM range(1000000) AS r(i)"
    with pytest.raises(InvalidInput, match="late"):
        run_sql(built, sql).read_all()


@pytest.mark.parametrize("document", [str(IDS[4]), "1:0", " 1:0 "])
def test_why_takes_an_id_or_a_place(built, document):
    rows = why(built, document)
    assert [row["round"] for row in rows] == [0, 1, None]
    assert rows[-1]["document_reason"] == "filled"
    assert rows[-1]["explanation"].startswith("Kept with weight 1")


@pytest.mark.parametrize(
    "document",
    [
        "7",
        "9:9",
        "",
        "x",
        "-1",
        "1:",
        ":1",
        "0:0:0",
        "1e3",
        "9" * 19,
        "0:9999999999999",
        "٣",
        "0;1",
    ],
)
def test_an_unknown_document_is_said_so(built, document):
    with pytest.raises(InvalidInput) as caught:
        why(built, document)
    assert caught.value.problem == f"There is no document {document} in the log."
    assert caught.value.remedy == "Give a document_id from the document table, or SHARD:ROW."


def test_summary(built):
    found = summary(built)
    assert list(found) == [
        "run", "rounds", "damaged_shards", "reasons", "keep_rates", "stage_seconds",
        "activity_seconds", "rollbacks",
    ]  # fmt: skip
    assert found["run"]["kept_tokens"] == 70
    assert [row["round"] for row in found["rounds"]] == [0, 1]
    assert found["reasons"] == [
        {"reason": "filled", "kept": True, "documents": 1, "tokens": 40},
        {"reason": "selected", "kept": True, "documents": 2, "tokens": 30},
        {"reason": "never_selected", "kept": False, "documents": 1, "tokens": 100},
        {"reason": "over_budget", "kept": False, "documents": 1, "tokens": 30},
        {"reason": "empty", "kept": False, "documents": 1, "tokens": 0},
    ]
    rates = found["keep_rates"]
    assert (rates["column"], rates["values"]) == ("source", 3)
    assert [row["value"] for row in rates["rows"]] == [None, "math", "web"]
    assert found["stage_seconds"] == {"read": 1.25, "score": 76.5}


def test_summary_chooses_the_first_column_that_tells_something(log):
    log.metadata = [("same", pa.array(["x"] * 6)), ('odd "name"', SOURCES)]
    assert summary(log.build())["keep_rates"]["column"] == 'odd "name"'


def test_summary_without_metadata(log):
    log.metadata = []
    log.changes["run"] = {}
    found = summary(log.build())
    assert found["keep_rates"] is None
    assert found["stage_seconds"] == {}


def test_no_log(tmp_path):
    for ask in (connect, summary, lambda out: why(out, "1"), lambda out: run_sql(out, "SELECT 1")):
        with pytest.raises(InvalidInput) as caught:
            ask(tmp_path)
        assert caught.value.problem == f"There is no selection log in {tmp_path}."
        assert caught.value.remedy == "Give the output folder of a finished curate run."
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_log(tmp_path):
    (tmp_path / "selection_log.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(InvalidInput, match="cannot be opened"):
        connect(tmp_path)


def test_a_log_that_was_cut_short_names_a_way_out(log):
    """Running curate again with the same output folder would only report the finished run."""
    out: Path = log.build()
    path = out / "selection_log.duckdb"
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) // 5, 20_000):
        path.write_bytes(content[:size])
        with pytest.raises(InvalidInput, match=r"cannot be (read|opened)") as caught:
            summary(out)
        assert caught.value.remedy.endswith(
            "; if it is damaged, restore it, or run curate again with another --out."
        )
    path.write_bytes(content)
    assert summary(out)["run"]["run_id"] == "run-1"


def test_a_second_connection_may_be_open(log):
    out: Path = log.build()
    with connect(out) as first, connect(out) as second:
        assert first.execute("FROM kept").fetchall() == second.execute("FROM kept").fetchall()
