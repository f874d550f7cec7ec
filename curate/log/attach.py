"""Several selection logs behind one DuckDB connection that can reach nothing else.

A log may come from somebody else. So each is attached read-only to an in-memory database, which is
then locked as the connection of `query.py` is, before the first query; tables are named with their
database, and are checked to be tables, because a view or a macro of a log could be anything.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from curate.errors import InvalidInput
from curate.log.cells import visible
from curate.log.query import LOCKED, QUERY_MEMORY, cannot_open, fetch_rows, log_file
from curate.log.schema import DOCUMENT, literal
from curate.refusal import writing

_TABLES = ("run", "shard", "decision", "document")
_BUILT_IN = {column.name for column in DOCUMENT.columns}


@dataclass(frozen=True, slots=True)
class AttachedLog:
    """A log among those of a connection.

    Attributes:
        number: which one; `table` names its tables by it. A log given twice is attached once.
        out: the output folder it lies in, as given.
    """

    number: int
    out: Path

    def table(self, name: str) -> str:
        """A table of this log in SQL."""
        return f"log_{self.number}.main.{name}"


@contextlib.contextmanager
def attach(outs: Sequence[Path]) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[AttachedLog]]]:
    """A locked connection to the logs of the runs in `outs`, which are given in the same order.

    Queries may make temporary tables; they spill to a folder that is removed at the end.
    """
    files = [log_file(out).resolve() for out in outs]
    numbers = {file: number for number, file in enumerate(dict.fromkeys(files))}
    logs = [AttachedLog(numbers[file], out) for file, out in zip(files, outs, strict=True)]
    with (
        tempfile.TemporaryDirectory(prefix="curate-log-") as spill,
        writing(Path(spill)),
        duckdb.connect(config=_settings(spill)) as connection,
    ):
        for file, log in zip(files, logs, strict=True):
            if numbers.pop(file, None) is not None:
                _attach(connection, file, log)
        for name, value in LOCKED.items():
            connection.execute(f"SET {name} = {value}")
        for log in logs:
            _check_tables(connection, log)
        yield connection, logs


def _settings(spill: str) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "temp_directory": spill,
        "memory_limit": QUERY_MEMORY,
        "preserve_insertion_order": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }


def _attach(connection: duckdb.DuckDBPyConnection, file: Path, log: AttachedLog) -> None:
    name = f"log_{log.number}"
    try:
        connection.execute(f"ATTACH {literal(str(file))} AS {name} (READ_ONLY, TYPE duckdb)")
    except duckdb.Error as error:
        raise cannot_open(log.out, error) from error


def _check_tables(connection: duckdb.DuckDBPyConnection, log: AttachedLog) -> None:
    query = f"SELECT table_name FROM duckdb_tables() WHERE {_is_in(log)}"
    found = {row["table_name"] for row in fetch_rows(connection, query)}
    for name in _TABLES:
        if name not in found:
            raise InvalidInput(
                f"The selection log in {log.out} has no table {name}.",
                "Give the output folder of a finished curate run.",
            )


def _is_in(log: AttachedLog) -> str:
    return f"database_name = 'log_{log.number}' AND schema_name = 'main'"


def has_tokens_kept(connection: duckdb.DuckDBPyConnection, log: AttachedLog) -> bool:
    """Whether the log says how many tokens of each document were kept, not only whether all."""
    return "tokens_kept" in _document_columns(connection, log)


def metadata_columns(connection: duckdb.DuckDBPyConnection, log: AttachedLog) -> list[str]:
    """The pool's own columns in the `document` table, in its order."""
    return [name for name in _document_columns(connection, log) if name not in _BUILT_IN]


def _document_columns(connection: duckdb.DuckDBPyConnection, log: AttachedLog) -> list[str]:
    where = f"{_is_in(log)} AND table_name = 'document'"
    query = f"SELECT column_name FROM duckdb_columns() WHERE {where} ORDER BY column_index"
    return [row["column_name"] for row in fetch_rows(connection, query)]


def keep_rate_columns(connection: duckdb.DuckDBPyConnection, log: AttachedLog) -> list[str]:
    """Metadata columns that have a keep_rate view, so few values; the views are not read."""
    query = f"SELECT view_name FROM duckdb_views() WHERE {_is_in(log)}"
    views = {row["view_name"] for row in fetch_rows(connection, query)}
    columns = metadata_columns(connection, log)
    return [column for column in columns if f"keep_rate_by_{column}" in views]


def check_same_pool(connection: duckdb.DuckDBPyConnection, logs: Sequence[AttachedLog]) -> None:
    """Refuse logs of runs over different files, or over the same in another order."""
    first = logs[0]
    for log in logs[1:]:
        for shard in fetch_rows(connection, _first_other_shard(first, log)):
            uri = visible(str(shard["uri"]))
            raise InvalidInput(
                f"The runs in {first.out} and {log.out} are over different pools: "
                f"shard {shard['shard_id']} ({uri}) is the first that differs.",
                "Compare runs over the same files in the same order.",
            )


def _first_other_shard(log: AttachedLog, other: AttachedLog) -> str:
    return f"""
    SELECT shard_id, coalesce(a.uri, b.uri)::VARCHAR AS uri
    FROM {log.table("shard")} AS a FULL JOIN {other.table("shard")} AS b USING (shard_id)
    WHERE a.shard_id IS NULL OR b.shard_id IS NULL OR a.fingerprint IS DISTINCT FROM b.fingerprint
    ORDER BY shard_id LIMIT 1
    """
