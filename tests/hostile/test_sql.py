"""SQL reads the log and nothing else, through the API and the command line; nothing is written."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_helpers import Run, curate, environment, snapshot

from curate import run_sql
from curate.errors import InvalidInput
from curate.log.query import connect

PLANTED = "PLANTED-IN-ANOTHER-FILE"
SURPRISE = pa.table({"surprise": [PLANTED]})
REMEDY = "To fix: Run DESCRIBE or SHOW TABLES to see what the log holds.\n"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that a query must not reach."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "in.csv").write_text(f"a\n{PLANTED}\n")
    (folder / "in.json").write_text(f'{{"a": "{PLANTED}"}}\n')
    pq.write_table(SURPRISE, folder / "in.parquet")
    with duckdb.connect(str(folder / "in.duckdb")) as other:
        other.execute(f"CREATE TABLE t AS SELECT '{PLANTED}' AS a")
    return folder


@pytest.fixture(scope="module")
def out(blade: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log whose name holds quotes."""
    folder = tmp_path_factory.mktemp("runs") / "o'u\"t; --"
    folder.mkdir()
    shutil.copyfile(blade.log, folder / blade.log.name)
    return folder


@contextlib.contextmanager
def nothing_changes(*folders: Path) -> Iterator[None]:
    before = [snapshot(folder) for folder in folders]
    yield
    assert [snapshot(folder) for folder in folders] == before


REFUSED = [
    "FROM read_csv('{in}.csv')",
    "FROM read_csv(['{in}.csv', 'selection_log.duckdb'])",
    "FROM read_json('{in}.json')",
    "FROM read_parquet('{in}.parquet')",
    "FROM parquet_scan('{in}.parquet')",
    "FROM parquet_metadata('{in}.parquet')",
    "FROM sniff_csv('{in}.csv')",
    "FROM read_text('{in}.csv')",
    "FROM read_blob('{in}.duckdb')",
    "FROM glob('{folder}/*')",
    "FROM '{in}.csv'",
    "FROM '{in}.parquet'",
    'FROM "{in}.parquet"',
    "FROM 'file://{in}.parquet'",
    "FROM 's3://bucket/x.parquet'",
    "FROM 'https://example.org/x.parquet'",
    "DESCRIBE FROM '{in}.parquet'",
    "SUMMARIZE '{in}.parquet'",
    "EXPLAIN ANALYZE FROM '{in}.parquet'",
    "FROM query('FROM read_csv(''{in}.csv'')')",
    "FROM query_table('{in}.parquet')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{in}.csv'')'))",
    "WITH a AS (FROM read_text('{in}.csv')) FROM a",
    "SELECT (SELECT content FROM read_text('{in}.csv'))",
    "SELECT 1 UNION ALL FROM (SELECT size FROM read_blob('{in}.csv'))",
    "COPY document TO '{folder}/out.csv'",
    "COPY (FROM kept) TO '{folder}/out' (FORMAT parquet, PARTITION_BY (reason))",
    "COPY document FROM '{in}.csv'",
    "EXPORT DATABASE '{folder}/export'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{in}.duckdb' AS other",
    "ATTACH IF NOT EXISTS '{folder}/new.duckdb'",
    "DETACH selection_log",
    "USE memory",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM 'https://example.org'",
    "LOAD httpfs",
    "UPDATE EXTENSIONS",
    "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "FROM duckdb_secrets()",
    "SET enable_external_access = true",
    "SET GLOBAL enable_external_access = true",
    "RESET lock_configuration",
    "SET python_enable_replacements = true",
    "SET allowed_directories = ['/']",
    "SET memory_limit = '1TB'",
    "PRAGMA enable_external_access",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "SET VARIABLE a = 1",
    "SELECT getenv('HOME')",
    "PREPARE a AS FROM read_text('{in}.csv')",
    "EXECUTE a",
    "PREPARE a AS SELECT 1; EXECUTE a",
    "SELECT ?",
    "SELECT $a",
    "CREATE MACRO m() AS TABLE FROM read_text('{in}.csv')",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE OR REPLACE VIEW kept AS SELECT 1",
    "INSERT INTO run FROM run",
    "WITH a AS (DELETE FROM document RETURNING *) FROM a",
    "UPDATE document SET kept = true",
    "MERGE INTO run USING run AS r ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE document",
    "ALTER TABLE run ADD COLUMN a INT",
    "COMMENT ON TABLE run IS 'a'",
    "DROP TABLE document",
    "EXPLAIN ANALYZE INSERT INTO run FROM run",
    "EXPLAIN ANALYZE CREATE TABLE t (i INT)",
    "EXPLAIN ANALYZE SET threads = 1",
    "BEGIN",
    "VACUUM",
    "CHECKPOINT",
    "SELECT 1; DROP TABLE document",
    "SELECT 1 /* ; */; -- ;\nDROP TABLE document --",
    "/**/;;/* SELECT 1 */",
    "FROM SURPRISE",
    "FROM surprise_frame",
    "FROM sys",
    "SELECT \x1b]0;owned\x07",
    "SELECT '\udcff'",
]


def filled(attack: str, outside: Path) -> str:
    return attack.replace("{in}", str(outside / "in")).replace("{folder}", str(outside))


@pytest.mark.parametrize("attack", REFUSED, ids=range(len(REFUSED)))
def test_an_attack_is_refused_by_both_doors(out: Path, outside: Path, attack: str) -> None:
    surprise_frame = pd.DataFrame({"surprise": [PLANTED]})  # a local variable in a caller's frame
    sql = filled(attack, outside)
    with nothing_changes(out, outside):
        with pytest.raises(InvalidInput):
            run_sql(out, sql).read_all()
        result = curate("log", str(out), "--sql", sql)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("Error: ")
    assert result.stderr.endswith(REMEDY)
    assert result.stderr.count("\n") == 2
    assert PLANTED not in result.output
    assert len(surprise_frame) == 1


def test_no_function_of_duckdb_gives_what_another_file_holds(out: Path, outside: Path) -> None:
    """Every function that this DuckDB has, on the name of a file: the planted word stays there."""
    with connect(out) as log:
        rows = log.execute(
            "SELECT DISTINCT function_name, function_type FROM duckdb_functions() "
            "WHERE function_type IN ('table', 'table_macro', 'scalar', 'macro')"
        ).fetchall()
    assert len(rows) > 500
    told = []
    with nothing_changes(out, outside), connect(out) as log:
        for name, kind in sorted(rows):
            for file in (outside / "in.csv", outside / "in.parquet"):
                call = f"\"{name}\"('{file}')"
                sql = f"FROM {call} LIMIT 100" if "table" in kind else f"SELECT {call}"
                with contextlib.suppress(duckdb.Error):
                    told.append((sql, str(log.sql(sql).to_arrow_table())))
    assert len(told) > 50
    assert [sql for sql, text in told if PLANTED in text] == []


def test_settings_stay_locked(out: Path) -> None:
    sql = (
        "SELECT name, value FROM duckdb_settings() WHERE name IN ('enable_external_access', "
        "'lock_configuration', 'python_enable_replacements', 'autoload_known_extensions', "
        "'memory_limit') ORDER BY name"
    )
    assert run_sql(out, sql).read_all().to_pydict()["value"] == [
        "false", "false", "true", "1.8 GiB", "false",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["selection_log.duckdb.tmp", "selection_log.duckdb.wal.recovery"])
def test_a_link_beside_the_log_opens_nothing(
    blade: Run, outside: Path, tmp_path: Path, name: str
) -> None:
    """DuckDB lets queries read its spill folder and its write-ahead files: these names."""
    shutil.copyfile(blade.log, tmp_path / blade.log.name)
    place = tmp_path / name
    place.symlink_to(outside if name.endswith(".tmp") else outside / "in.csv")
    file = place / "in.csv" if name.endswith(".tmp") else place
    result = curate("log", str(tmp_path), "--sql", f"FROM read_text('{file}')")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {place} is a link that leads out of its folder.\n"
        "To fix: Put what it leads to in its place, or give another folder.\n"
    )


def test_files_beside_the_log_are_not_read(blade: Run, tmp_path: Path) -> None:
    shutil.copyfile(blade.log, tmp_path / blade.log.name)
    (tmp_path / "selection_log.duckdb.tmp").mkdir()
    file = tmp_path / "selection_log.duckdb.tmp" / "in.csv"
    file.write_text(PLANTED)
    with pytest.raises(InvalidInput, match="file system operations are disabled"):
        run_sql(tmp_path, f"FROM read_text('{file}')")


def test_a_large_sort_spills_out_of_sight_and_is_cleared(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.log.query.QUERY_MEMORY", "30MB")
    sql = "SELECT max(i) FROM (SELECT i, hash(i) AS h FROM range(2000000) r(i) ORDER BY h OFFSET 1)"
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    with nothing_changes(copy):
        assert run_sql(copy, sql).read_all().num_rows == 1
    assert [path.name for path in copy.iterdir()] == ["selection_log.duckdb"]


def test_memory_is_bounded(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.log.query.QUERY_MEMORY", "30MB")
    with pytest.raises(InvalidInput, match="Out of Memory"):
        run_sql(out, "SELECT list(repeat('a', 1000000)) FROM range(1000)").read_all()


@pytest.mark.parametrize(
    ("number", "sql"),
    [
        (signal.SIGINT, "SELECT count(*) FROM range(1000000000000) a(i) WHERE hash(i) = 3"),
        (signal.SIGTERM, "SELECT * FROM range(1000000000000) a(i) WHERE i < 9000 OR hash(i) = 3"),
    ],
)
def test_a_query_without_end_ends_by_a_signal(out: Path, number: int, sql: str) -> None:
    program = (
        "import sys, curate.log.query as query\n"
        "opened = query.connect\n"
        "query.connect = lambda out: [print('open', flush=True), opened(out)][1]\n"
        "from curate.cli import main\n"
        "main()\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", program, "log", str(out), "--sql", sql],
        env=environment(), text=True, **pipes,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(0.3)  # into the query; a signal before it must end the process too
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number, said
    assert said == "\nInterrupted. Run the same command again to go on.\n"


def test_a_log_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A database whose views do what a query may not, and one that is no database."""
    path = tmp_path / "selection_log.duckdb"
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE TABLE t (i INT)")
    for arguments in ([], ["--why", "1"]):
        result = curate("log", str(tmp_path), *arguments)
        assert result.exit_code == 2, result.exception
        assert result.stderr.startswith(f"Error: The selection log in {tmp_path} cannot be read: ")
    path.write_bytes(b"not a database" * 1000)
    assert curate("log", str(tmp_path)).exit_code == 2


def test_dates_beyond_python_are_refused_in_a_sentence(out: Path) -> None:
    for form in ("table", "csv", "json"):
        result = curate("log", str(out), "--sql", "SELECT 'infinity'::DATE", "--format", form)
        assert result.stderr == (
            "Error: The result holds dates beyond the years 1 to 9999.\n"
            "To fix: Cast them to text in the query, with ::VARCHAR.\n"
        )
