"""Asking the selection log: a user's SQL, why one document ended as it did, and a summary.

A log may come from somebody else, and the SQL from anywhere, so both run in a connection that can
read this one file and nothing more: read-only, no other files, no network, no extensions, no Python
variables, and none of that can be switched back on. One statement is run at a time, and only one
that reads. It may take 2 GB of memory, and the rest of what it needs in a temporary folder (TMPDIR
chooses the place); it may take any time, and Ctrl-C ends it. What DuckDB refuses is reported as
invalid input in one sentence.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from curate.errors import InvalidInput
from curate.files import StrPath, check_contained
from curate.log.schema import DOCUMENT, quote
from curate.records import make_document_id, split_document_id

_T = TypeVar("_T")

LOG_NAME = "selection_log.duckdb"
"""File name of the log in an output folder."""

BATCH_ROWS = 8192

DAMAGED_SHARDS = "SELECT count(*) AS shards FROM shard WHERE status = 'quarantined'"
"""Counts the quarantined shards of a log."""

_LARGEST_ID = 2**63 - 1
_SQL_REMEDY = "Run DESCRIBE or SHOW TABLES to see what the log holds."
_LOG_REMEDY = "Give the output folder of a finished curate run."
_DAMAGED_REMEDY = "if it is damaged, restore it, or run curate again with another --out."
_ID_REMEDY = "Give a document_id from the document table, or SHARD:ROW."
QUERY_MEMORY = "2GB"
"""What a query may hold in memory; the rest goes to disk."""
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
"""Settings under which no query reaches anything but what is open; the last one makes them stay."""
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


def connect(out: Path) -> duckdb.DuckDBPyConnection:
    """Open the log of the run in `out` for reading that log only."""
    path = log_file(out)
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    try:
        return connect_file(path, spill=Path(_spill_folder().name) / name)
    except duckdb.Error as error:
        raise cannot_open(out, error) from error


def connect_file(log: Path, *, spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open a log read-only, unable to reach any other file or the network.

    Args:
        log: the file.
        spill: folder for what exceeds `QUERY_MEMORY`; beside the log by default, for our own.

    Raises:
        duckdb.Error: it cannot be opened.
    """
    limits = {"memory_limit": QUERY_MEMORY}
    if spill is not None:
        limits["temp_directory"] = str(spill)
    return duckdb.connect(str(log.absolute()), read_only=True, config={**LOCKED, **limits})


@functools.cache
def _spill_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process for what exceeds the memory limit, removed when it ends.

    DuckDB lets queries read its spill folder. The default lies beside the log, where somebody else
    may have put a link; a log opened twice needs the same one.
    """
    return tempfile.TemporaryDirectory(prefix="curate-log-", ignore_cleanup_errors=True)


@contextlib.contextmanager
def reading(out: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """`connect`, for queries of our own on a log that may be anybody's.

    Raises:
        InvalidInput: the log has not the tables that a run's log has.
    """
    with connect(out) as connection:
        try:
            yield connection
        except duckdb.Error as error:
            raise InvalidInput(
                f"The selection log in {out} cannot be read: {first_line(error)}",
                f"{_LOG_REMEDY[:-1]}; {_DAMAGED_REMEDY}",
            ) from error


def log_file(out: Path) -> Path:
    """The log of the run in `out`."""
    check_contained(out)
    path = out / LOG_NAME
    if not path.is_file():
        raise InvalidInput(
            f"There is no selection log in {out}.",
            _LOG_REMEDY,
        )
    return path


def cannot_open(out: Path, error: duckdb.Error) -> InvalidInput:
    """What to say when DuckDB does not open the log of the run in `out`."""
    return InvalidInput(
        f"The selection log in {out} cannot be opened: {first_line(error)}",
        f"Close other connections to it; {_DAMAGED_REMEDY}",
    )


def run_sql(out: StrPath, sql: str) -> pa.RecordBatchReader:
    """Run one reading SQL statement on the log of the run in `out`.

    The rows come as they are computed; the log is closed after the last one, or with the reader.
    """
    connection = connect(Path(out).expanduser())
    steps = _Steps(connection)
    try:
        reader = steps.run(lambda: _arrow_reader(_relation(connection, sql)))
    except BaseException as error:
        steps.close()
        connection.close()
        if isinstance(error, (duckdb.Error, pa.ArrowException, ValueError)):
            raise _invalid_sql(error) from error
        raise
    return pa.RecordBatchReader.from_batches(reader.schema, _batches(reader, connection, steps))


class _Steps:
    """Runs what a query does in a thread of its own, so that a signal ends it at once.

    Within a call DuckDB may look at no signal for as long as the call takes.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(1)

    def run(self, step: Callable[[], _T]) -> _T:
        """The result of a step; a signal ends it, then comes through."""
        future = self._thread.submit(step)
        try:
            return future.result()
        finally:
            while not future.done():  # a call that has not begun yet forgets an interruption
                self._connection.interrupt()
                wait([future], timeout=0.05)

    def close(self) -> None:
        """End the thread, and what DuckDB computes ahead of the rows that were read."""
        self._connection.interrupt()
        self._thread.shutdown()


def why(out: StrPath, document: str) -> list[dict[str, Any]]:
    """Every decision about one document, then its outcome, as rows of the macro `why`.

    Args:
        out: the output folder of a finished run.
        document: a document id, or SHARD:ROW.
    """
    number = _parse_document(document)
    with reading(Path(out).expanduser()) as connection:
        rows = [] if number is None else fetch_rows(connection, "FROM why(?)", [number])
    if not rows:
        raise InvalidInput(f"There is no document {document} in the log.", _ID_REMEDY)
    return rows


def summary(out: StrPath) -> dict[str, Any]:
    """The run at a glance.

    Returns:
        run: the row of the `run` table, without its config, times and rollbacks.
        rounds: the rows of the `round` table.
        damaged_shards: how many shards of the pool were quarantined.
        reasons: for each reason, whether it keeps, its documents and its tokens.
        keep_rates: the metadata `column` chosen, the first of `grouping_columns`, with few enough
            for a keep_rate view, its ten values with most tokens as `rows`, and how many values
            there are in all; None when there is no such column.
        stage_seconds: wall-clock seconds by stage.
        activity_seconds: the same by activity; empty in a log of an older curate.
        rollbacks: every stage that started over, and why; none in a log of an older curate.
    """
    with reading(Path(out).expanduser()) as connection:
        run = next(iter(fetch_rows(connection, "FROM run")), {})
        run.pop("config", None)
        stages = run.pop("stage_seconds", None)
        activities = run.pop("activity_seconds", None)
        rollbacks = run.pop("rollbacks", None)
        return {
            "run": run,
            "rounds": fetch_rows(connection, "FROM round ORDER BY round"),
            "damaged_shards": fetch_rows(connection, DAMAGED_SHARDS)[0]["shards"],
            "reasons": fetch_rows(
                connection,
                "SELECT reason, kept, count(*) AS documents, sum(tokens)::BIGINT AS tokens "
                "FROM document GROUP BY reason, kept ORDER BY kept DESC, tokens DESC, reason",
            ),
            "keep_rates": _keep_rates(connection),
            "stage_seconds": json.loads(stages) if stages else {},
            "activity_seconds": json.loads(activities) if activities else {},
            "rollbacks": json.loads(rollbacks) if rollbacks else [],
        }


def _relation(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    sql.encode()  # text that is not Unicode is a ValueError, as is a statement of a new type
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InvalidInput(
            f"Expected one SQL statement but the text holds {len(statements)}.", _SQL_REMEDY
        )
    if statements[0].type not in _READING:
        kind = str(statements[0].type.name)
        if kind.startswith("MULTI"):  # it makes a type of its own on the way
            raise InvalidInput(
                "A PIVOT without a list of values is not a single query.",
                "Name the values: PIVOT ... ON column IN (value, ...).",
            )
        raise InvalidInput(
            f"The selection log is read-only and {kind} is not a query.", _SQL_REMEDY
        )
    relation = connection.sql(statements[0].query)
    if relation is None:
        raise InvalidInput("The SQL statement returns no rows by nature.", _SQL_REMEDY)
    return relation


def _arrow_reader(relation: duckdb.DuckDBPyRelation) -> pa.RecordBatchReader:
    """A reader that streams; DuckDB renamed the method over the versions that are supported."""
    if hasattr(relation, "to_arrow_reader"):
        return relation.to_arrow_reader(BATCH_ROWS)
    return relation.fetch_record_batch(BATCH_ROWS)


def _batches(
    reader: pa.RecordBatchReader, connection: duckdb.DuckDBPyConnection, steps: _Steps
) -> Iterator[pa.RecordBatch]:
    try:
        while (batch := steps.run(lambda: next(reader, None))) is not None:
            yield batch
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _invalid_sql(error) from error
    finally:
        steps.close()
        reader.close()
        connection.close()


def fetch_rows(
    connection: duckdb.DuckDBPyConnection, sql: str, values: list[object] | None = None
) -> list[dict[str, Any]]:
    """The rows of a query as a dict each; for results of a few rows."""
    cursor = connection.execute(sql, values or [])
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _parse_document(document: str) -> int | None:
    """The document id, or None where the text cannot be one."""
    parts = re.fullmatch(r"\s*(?:([0-9]{1,10}):)?([0-9]{1,19})\s*", document)
    if parts is None:
        return None
    number = int(parts[2])
    if parts[1] is not None:
        place = (int(parts[1]), number)
        number = make_document_id(*place)
        if split_document_id(number) != place:
            return None
    return number if number <= _LARGEST_ID else None


def _keep_rates(connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    for column in grouping_columns(connection, 1):
        view = quote(f"keep_rate_by_{column}")
        values = fetch_rows(connection, f"SELECT count(*) AS n FROM {view}")[0]["n"]
        rows = fetch_rows(connection, f"{keep_rate_rows(column)} LIMIT 10")
        return {"column": column, "rows": rows, "values": values}
    return None


def keep_rate_rows(column: str) -> str:
    """SQL for the rows of a keep_rate view with the values as text.

    Some types (times with a zone) DuckDB hands to Python only with another package's help.
    """
    return f"SELECT * REPLACE (value::VARCHAR AS value) FROM {quote(f'keep_rate_by_{column}')}"


def grouping_columns(connection: duckdb.DuckDBPyConnection, most: int) -> list[str]:
    """The first metadata columns whose keep_rate view says something, in the pool's order.

    Those of at least two values, and of at least two documents a value: not a user's id column. A
    look at one reads it for all documents, so no more are looked at than it takes to find `most`.
    """
    views = "SELECT view_name FROM duckdb_views() WHERE NOT internal"
    named = {row["view_name"] for row in fetch_rows(connection, views)}
    columns = [row["column_name"] for row in fetch_rows(connection, "DESCRIBE document")]
    found: list[str] = []
    for column in columns[len(DOCUMENT.columns) :]:
        if len(found) == most:
            break
        view = f"keep_rate_by_{column}"
        if view in named:
            sql = f"SELECT count(*) AS n, sum(documents) AS documents FROM {quote(view)}"
            counts = fetch_rows(connection, sql)[0]
            if 2 <= counts["n"] <= counts["documents"] / 2:
                found.append(column)
    return found


def _invalid_sql(error: Exception) -> InvalidInput:
    return InvalidInput(f"The query failed: {first_line(error)}", _SQL_REMEDY)


def first_line(error: Exception) -> str:
    """The first line of an error's text, as a sentence."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text if text.endswith((".", "!", "?")) else f"{text or type(error).__name__}."
