"""Building the selection log: Parquet fragments in, one DuckDB file out.

A log holds a row for every document of the pool and for every decision, so no row passes through
Python: DuckDB reads the fragments and writes the tables itself, spilling to a folder beside the log
when it meets its memory limit. The file is written in the storage format of DuckDB 1.2, which every
later shell opens, under a temporary name, and is renamed once it is checkpointed and closed. Rows
go in in the order of the fragments (`document` by id), so the same inputs give the same rows.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curate import records
from curate.errors import InvalidInput
from curate.files import atomic_path, pattern_of
from curate.log import schema, views
from curate.log.plain import json_text

BUILD_MEMORY = "512MB"
"""What DuckDB may hold in memory while it writes to a log; the rest goes to disk."""

STORAGE_VERSION = "v1.2.0"
"""The oldest DuckDB whose shell must be able to open a log."""


def build_log(
    path: Path,
    *,
    run: Mapping[str, object],
    shards: pa.Table,
    rounds: pa.Table,
    documents: Sequence[Path],
    selection: Sequence[Path],
    decisions: Sequence[Path],
    training: Sequence[Path],
    metadata_columns: Sequence[str],
) -> None:
    """Write the selection log to `path`, whole or not at all.

    Args:
        path: the DuckDB file to write; replaced when it exists.
        run: values of the `run` table by column; a column left out is NULL.
        shards: rows of `records.SHARD`.
        rounds: rows of `records.ROUND`.
        documents: Parquet fragments of `records.DOCUMENT` followed by the metadata columns.
        selection: fragments of `records.SELECTION`, with one row per document.
        decisions: fragments of `records.DECISION`, appended in this order.
        training: fragments of `records.TRAINING`, appended in this order.
        metadata_columns: names of the metadata columns, in the order of the fragments.
    """
    check_log_path(path)
    _check_documents(documents, metadata_columns)
    names = schema.stored_names(metadata_columns)
    with atomic_path(path) as temporary:
        with _new_database(temporary) as connection:
            types = _metadata_types(connection, documents, len(names))
            document = schema.document_table(names, metadata_columns, types)
            _create_tables(connection, document)
            _insert_run(connection, run)
            _insert_arrow(connection, schema.SHARD, shards)
            _insert_arrow(connection, schema.ROUND, rounds)
            _insert_decisions(connection, decisions)
            _insert_documents(connection, documents, selection, len(names))
            _insert_training(connection, training)
            few = [name for name in names if _few_values(connection, name)]
            _execute(connection, views.create_views(document, few))
        remove_siblings(path)


def check_log_path(path: Path) -> None:
    """Refuse a path that DuckDB cannot write to; worth asking before a long run."""
    for character, name in (("?", "question mark"), ("\\", "backslash")):
        if character in str(path.absolute()):
            raise InvalidInput(
                f"DuckDB cannot write to {path} because its path has a {name}.",
                "Choose an output folder without one.",
            )
    whole = str(path.absolute())
    if whole != whole.encode(errors="replace").decode():
        name = ascii(whole).strip("'")
        raise InvalidInput(
            f"DuckDB cannot write to {name} because its path is not UTF-8.",
            "Choose an output folder with another path.",
        )


@contextlib.contextmanager
def _new_database(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose current database is a new file; checkpointed and closed at the end."""
    remove_siblings(path)
    spill = path.with_name(f"{path.name}.spill")
    connection = duckdb.connect(
        config={
            "memory_limit": BUILD_MEMORY,
            "temp_directory": str(spill.absolute()),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
    )
    try:
        file = schema.literal(str(path.absolute()))
        connection.execute(f"ATTACH {file} AS selection_log (STORAGE_VERSION '{STORAGE_VERSION}')")
        connection.execute("USE selection_log")
        yield connection
        connection.execute("CHECKPOINT selection_log")
        connection.execute("USE memory")
        connection.execute("DETACH selection_log")
    finally:
        connection.close()
        remove_siblings(path)


def remove_siblings(path: Path) -> None:
    """Remove what DuckDB leaves beside a database: its write-ahead log and its spill folder.

    One that a killed process left behind would be replayed into the new file.
    """
    for sibling in path.parent.iterdir():
        if sibling.name in (f"{path.name}.spill", f"{path.name}.tmp"):
            shutil.rmtree(sibling)
        elif sibling.name.startswith(f"{path.name}.wal"):
            sibling.unlink()


def _execute(connection: duckdb.DuckDBPyConnection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement)


def _create_tables(connection: duckdb.DuckDBPyConnection, document: schema.Table) -> None:
    for table in schema.TABLES:
        chosen = document if table is schema.DOCUMENT else table
        _execute(connection, schema.create_table(chosen))


def _check_documents(documents: Sequence[Path], metadata_columns: Sequence[str]) -> None:
    """Columns are read by position, because names may repeat; so their order must be right."""
    expected = [*records.DOCUMENT.names, *metadata_columns]
    for fragment in documents:
        found = pq.read_schema(fragment).names
        if found != expected:
            raise ValueError(f"{fragment} has columns {found}, expected {expected}")


def _scan(width: int) -> str:
    """SQL that reads the fragments of a parameter, with columns c0, c1, ... by position."""
    columns = ", ".join(f"c{number}" for number in range(width))
    return f"{_named_scan()} AS fragment({columns})"


def _named_scan() -> str:
    """All fragments have the types of one corpus; to unite them DuckDB would hold every footer."""
    return "read_parquet(?, hive_partitioning = false)"


def _metadata_types(
    connection: duckdb.DuckDBPyConnection, documents: Sequence[Path], count: int
) -> list[str]:
    """DuckDB types of the metadata columns; text where no shard holds any value."""
    if not documents:
        return ["VARCHAR"] * count
    width = len(records.DOCUMENT.names) + count
    query = f"DESCRIBE SELECT * FROM {_scan(width)}"
    rows = connection.execute(query, [_names(documents)]).fetchall()
    types = [str(row[1]) for row in rows[len(records.DOCUMENT.names) :]]
    return ["VARCHAR" if kind.strip('"') == "NULL" else kind for kind in types]


def _names(fragments: Sequence[Path]) -> list[str]:
    return [pattern_of(fragment) for fragment in fragments]


def _insert_run(connection: duckdb.DuckDBPyConnection, run: Mapping[str, object]) -> None:
    unknown = set(run) - {column.name for column in schema.RUN.columns}
    if unknown:
        raise ValueError(f"the run table has no columns {sorted(unknown)}")
    values = [_run_value(column, run.get(column.name)) for column in schema.RUN.columns]
    marks = ", ".join("?" for _ in values)
    connection.execute(f"INSERT INTO run VALUES ({marks})", values)


def _run_value(column: schema.Column, value: object) -> object:
    if value is None:
        return None
    if column.type == "JSON" and not isinstance(value, str):
        return json_text(value)
    if column.type == "TIMESTAMP":
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return value


def _insert_arrow(
    connection: duckdb.DuckDBPyConnection, table: schema.Table, rows: pa.Table
) -> None:
    columns = ", ".join(schema.quote(column.name) for column in table.columns)
    connection.register("rows_to_insert", rows)
    connection.execute(f"INSERT INTO {table.name} SELECT {columns} FROM rows_to_insert")
    connection.unregister("rows_to_insert")


def _insert_decisions(connection: duckdb.DuckDBPyConnection, decisions: Sequence[Path]) -> None:
    if not decisions:
        return
    connection.execute(
        f"""
        INSERT INTO decision SELECT
            document_id, {_shard_id("document_id")}, {_row("document_id")},
            round, tokens, bytes, tokens_read, proxy_loss, reference_loss, excess_loss, ngram_vote,
            redundancy_vote, noise, score, threshold, kept, tokens_kept,
            CASE WHEN kept THEN 'above_threshold' ELSE 'below_threshold' END
        FROM {_named_scan()}
        ORDER BY round, document_id
        """,
        [_names(decisions)],
    )


def _shard_id(column: str) -> str:
    return f"({column} >> {records.ROW_BITS})::INTEGER"


def _row(column: str) -> str:
    return f"{column} & {(1 << records.ROW_BITS) - 1}"


def _insert_documents(
    connection: duckdb.DuckDBPyConnection,
    documents: Sequence[Path],
    selection: Sequence[Path],
    metadata: int,
) -> None:
    """Join documents with their outcomes; each must have exactly one."""
    if not documents:
        return
    built_in = len(records.DOCUMENT.names)
    outcome = f"SELECT document_id, weight, kept, tokens_kept, reason FROM {_named_scan()}"
    extra = "".join(f", d.c{number}" for number in range(built_in, built_in + metadata))
    connection.execute(
        f"""
        INSERT INTO document
        SELECT d.c0, d.c1, d.c2, d.c3, d.c4, s.weight, s.kept, s.tokens_kept, s.reason,
            d.c5{extra}
        FROM (SELECT * FROM {_scan(built_in + metadata)}) AS d
        JOIN ({outcome}) AS s ON s.document_id = d.c0
        ORDER BY d.c0
        """,
        [_names(documents), _names(selection)],
    )
    expected = sum(pq.read_metadata(fragment).num_rows for fragment in documents)
    found = connection.execute("SELECT count(*) FROM document").fetchall()[0][0]
    if found != expected:
        raise ValueError(f"{expected} documents met {found} outcomes in the selection")


def _insert_training(connection: duckdb.DuckDBPyConnection, training: Sequence[Path]) -> None:
    if not training:
        return
    columns = ", ".join(column.name for column in schema.TRAINING.columns)
    query = f"INSERT INTO training SELECT {columns} FROM {_named_scan()}"
    connection.execute(query, [_names(training)])


def _few_values(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Whether a metadata column gets a keep_rate view; counted exactly only when it is close."""
    column = schema.quote(name)
    estimate, exact = (
        f"SELECT approx_count_distinct({column}) FROM document",
        f"SELECT count(DISTINCT {column}) FROM document",
    )
    if connection.execute(estimate).fetchall()[0][0] > 2 * views.MAXIMUM_VALUES:
        return False
    return bool(connection.execute(exact).fetchall()[0][0] <= views.MAXIMUM_VALUES)
