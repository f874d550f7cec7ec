"""Changing a run's output as an accident does, or as somebody who covers it up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from run_helpers import Run, digest

from curate.files import sealed_json_text
from curate.verification import Verification, verify


def change_manifest(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and seal it anew, as whoever knows how could."""
    path = run.out / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(sealed_json_text(tree))


def cover_up(run: Run) -> None:
    """Record the files as they are now; a part that is new or gone is recorded so."""

    def record(tree: dict[str, Any]) -> None:
        data = {f"data/{path.name}" for path in run.parts()}
        names = {name for name in tree["files"] if not name.startswith("data/")} | data
        tree["files"] = {name: digest(run.out / name) for name in sorted(names)}

    change_manifest(run, record)


def change_part(run: Run, index: int, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write one part with other rows, and cover it up."""
    path = run.parts()[index]
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path, use_compliant_nested_type=False)
    cover_up(run)


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """The table with one value replaced."""
    index, kind = table.column_names.index(column), table.field(column).type
    values = table.column(column).to_pylist()
    values[row] = value
    return table.set_column(index, table.field(index), pa.array(values, kind))


def change_log(run: Run, *statements: str) -> None:
    """Run SQL that writes on the log, and cover it up."""
    with duckdb.connect(str(run.log)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("CHECKPOINT")
    cover_up(run)


def sentences(run: Run, **options: Any) -> list[str]:
    """What a full verification finds."""
    return [finding.sentence for finding in found(run, **options).findings]


def found(run: Run, **options: Any) -> Verification:
    return verify(run.out, **{"full": True, **options})


def flip(path: Path, offset: int, bit: int) -> bytes:
    """Flip one bit of a file in place; returns what was there before."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[offset] ^= 1 << bit
    path.write_bytes(changed)
    return before
