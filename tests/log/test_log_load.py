"""The file: tables, comments, order, names, types; whole or absent; opened by DuckDB alone."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from log_sample import DECISIONS, IDS, RUN, SOURCES, TOKENS, Log

from curate import records
from curate.errors import InvalidInput, OutputFailed
from curate.log import schema

ARROW_OF = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "BOOLEAN": pa.bool_(),
}


def open_plain(out: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(out / "selection_log.duckdb"), read_only=True)


@pytest.mark.parametrize(
    ("table", "record"),
    [
        (schema.SHARD, records.SHARD),
        (schema.ROUND, records.ROUND),
        (schema.TRAINING, records.TRAINING),
    ],
)
def test_tables_that_mirror_a_record_have_its_names_types_and_order(table, record):
    found = [(column.name, ARROW_OF[column.type]) for column in table.columns]
    assert found == list(zip(record.names, record.types, strict=True))


def test_decision_and_document_are_their_records_and_what_is_derived():
    decision = {c.name: ARROW_OF[c.type] for c in schema.DECISION.columns}
    derived = {"shard_id": pa.int32(), "row": pa.int64(), "reason": pa.string()}
    assert decision == derived | dict(
        zip(records.DECISION.names, records.DECISION.types, strict=True)
    )
    document = [c.name for c in schema.DOCUMENT.columns]
    *given, problem = records.DOCUMENT.names
    assert document == [*given, "weight", "kept", "tokens_kept", "reason", problem]


DECISION_COLUMNS = """document_id shard_id row round tokens bytes tokens_read
    proxy_loss reference_loss excess_loss ngram_vote redundancy_vote noise score threshold
    kept tokens_kept reason"""
DOCUMENT_COLUMNS = """document_id shard_id row tokens bytes weight kept tokens_kept reason problem
    source"""


def test_the_stored_columns_are_those_of_the_design(built):
    with open_plain(built) as log:
        found = {
            table: [row[0] for row in log.execute(f"DESCRIBE {table}").fetchall()]
            for (table,) in log.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        }
    assert set(found) == {"run", "shard", "round", "decision", "document", "training"}
    assert found["run"] == list(RUN)
    assert found["decision"] == DECISION_COLUMNS.split()
    assert found["document"] == DOCUMENT_COLUMNS.split()


def test_every_table_view_and_column_is_explained(built):
    with open_plain(built) as log:
        silent = log.execute(
            """
            SELECT table_name, column_name FROM duckdb_columns()
                WHERE NOT internal AND (comment IS NULL OR length(comment) < 8)
            UNION ALL SELECT table_name, NULL FROM duckdb_tables() WHERE comment IS NULL
            UNION ALL SELECT view_name, NULL FROM duckdb_views()
                WHERE NOT internal AND comment IS NULL
            """
        ).fetchall()
        comments = dict(
            log.execute(
                "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'decision'"
            ).fetchall()
        )
        why = log.execute(
            "SELECT comment FROM duckdb_functions() WHERE function_name = 'why'"
        ).fetchall()
    assert silent == []
    assert "nats per token" in comments["proxy_loss"]
    assert "higher = keep" in comments["score"]
    assert why[0][0].startswith("Why a document was kept or dropped")


def test_rows_come_through_in_order(built):
    with open_plain(built) as log:
        documents = log.execute("SELECT document_id, shard_id, row, tokens FROM document")
        assert documents.fetchall() == [
            (number, number >> 40, number % 2**40, tokens)
            for number, tokens in zip(IDS, TOKENS, strict=True)
        ]
        decisions = log.execute("SELECT document_id, shard_id, row, round, reason FROM decision")
        assert decisions.fetchall() == [
            (
                IDS[row[0]],
                IDS[row[0]] >> 40,
                IDS[row[0]] % 2**40,
                row[1],
                "above_threshold" if row[6] else "below_threshold",
            )
            for row in DECISIONS
        ]
        assert log.execute("SELECT step, loss FROM training").fetchall() == [(1, 5.0), (2, 4.5)]
        assert log.execute('SELECT "lambda", seconds FROM round').fetchall() == [
            (1.0, 1.5),
            (1.0, 75.0),
        ]


def test_the_run_row(built):
    with open_plain(built) as log:
        started, finished, config, score = log.execute(
            "SELECT started_at, finished_at, config, stage_seconds->>'score' FROM run"
        ).fetchall()[0]
    assert started == finished - datetime.timedelta(hours=1)
    assert finished == datetime.datetime(2025, 1, 2, 4, 4, 5)
    assert json.loads(config) == {"seed": 7, "path": "pool", "clip": None}
    assert score == "76.5"


def test_a_run_column_that_is_not_there_is_a_fault(log):
    log.changes["run"] = {"colour": "red"}
    with pytest.raises(ValueError, match="colour"):
        log.build()
    assert list(log.path.parent.iterdir()) == []


PROGRAM = """
import duckdb, sys
c = duckdb.connect(config={
    "autoload_known_extensions": "false", "autoinstall_known_extensions": "false"})
c.execute("ATTACH '" + sys.argv[1] + "' AS l (READ_ONLY)")
print(c.execute("SELECT count(*) FROM l.kept").fetchall())
c.execute("USE l")
print(c.execute("SELECT config->>'seed' FROM run").fetchall())
print(len(c.execute("FROM why(1)").fetchall()))
"""


def test_the_log_opens_without_this_package_and_without_extensions(built):
    path = str(built / "selection_log.duckdb")
    command = [sys.executable, "-I", "-c", PROGRAM, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[(3,)]\n[('7',)]\n2\n"


def test_the_storage_format_is_that_of_duckdb_1_2(built):
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{built / 'selection_log.duckdb'}' AS l (READ_ONLY)")
        tags = connection.execute(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'l'"
        ).fetchall()[0][0]
    assert tags["storage_version"].startswith("v1.2.0")


def test_the_same_inputs_give_the_same_bytes_and_leave_nothing_beside_them(log):
    log.build()
    first = log.path.read_bytes()
    log.build()
    assert log.path.read_bytes() == first
    assert [file.name for file in log.path.parent.iterdir()] == ["selection_log.duckdb"]


def test_leftovers_of_a_killed_run_are_not_replayed(log):
    out = log.path.parent
    out.mkdir()
    stale = out / ".selection_log.duckdb.tmp"
    stale.write_bytes(b"half a database")
    (out / f"{stale.name}.wal").write_bytes(b"a write-ahead log of another database")
    (out / f"{stale.name}.spill").mkdir()
    (out / f"{stale.name}.spill" / "block").write_bytes(b"spilled")
    log.path.with_name("selection_log.duckdb.wal").write_bytes(b"of an older log")
    log.build()
    assert [file.name for file in out.iterdir()] == ["selection_log.duckdb"]
    with open_plain(out) as opened:
        assert opened.execute("SELECT count(*) FROM document").fetchall() == [(6,)]


def test_a_failed_build_leaves_the_old_log(log):
    log.build()
    before = log.path.read_bytes()
    log.changes["decisions"] = [log.folder / "absent.parquet"]
    with pytest.raises(OutputFailed, match=r"absent\.parquet"):
        log.build()
    assert log.path.read_bytes() == before
    assert [file.name for file in log.path.parent.iterdir()] == ["selection_log.duckdb"]


def test_fragments_must_have_the_columns_in_order(log):
    log.changes["metadata_columns"] = ["origin"]
    with pytest.raises(ValueError, match="origin"):
        log.build()


def test_each_document_needs_one_outcome(log):
    log.build()
    log.changes["selection"] = [log.folder / "state" / "selection.parquet"] * 2
    with pytest.raises(ValueError, match="6 documents met 12 outcomes"):
        log.build()


def test_an_empty_run_is_a_log_too(log):
    log.metadata = []
    for name in ("documents", "selection", "decisions", "training", "run"):
        log.changes[name] = {} if name == "run" else []
    log.changes |= {
        "shards": records.SHARD.empty_table(),
        "rounds": records.ROUND.empty_table(),
        "metadata_columns": ["source"],
    }
    with open_plain(log.build()) as opened:
        for view in ("document", "kept", "keep_rate_by_source", "score_histogram", "why(0)"):
            assert opened.execute(f"FROM {view}").fetchall() == []


def test_paths_may_hold_any_character(tmp_path):
    folder = tmp_path / "it's a [1] * {x} % # 日本=1"
    folder.mkdir()
    out = Log(folder).build()
    with open_plain(out) as opened:
        assert opened.execute("SELECT count(*) FROM document").fetchall() == [(6,)]


def test_a_path_that_looks_like_a_pattern_is_only_a_path(tmp_path):
    """Beside folders that the pattern would match, whose rows are others."""
    for name in ("x1", "x2"):
        (tmp_path / name).mkdir()
        other = Log(tmp_path / name)
        other.metadata = [("source", pa.array(["of another run"] * 6))]
        other.build()
    for name in ("x[1]", "x*", "x[0-9]"):
        (tmp_path / name).mkdir()
        with open_plain(Log(tmp_path / name).build()) as opened:
            found = opened.execute("SELECT source FROM document ORDER BY document_id").fetchall()
        assert [source for (source,) in found] == SOURCES.to_pylist()


@pytest.mark.parametrize(("name", "character"), [("what?", "question mark"), ("a\\b", "backslash")])
def test_a_path_that_duckdb_cannot_write_is_refused(tmp_path, name, character):
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(InvalidInput, match=character):
        Log(folder).build()
