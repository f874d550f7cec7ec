"""A database for sorts that are larger than memory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

_MEMORY = "512MB"
"""What is held in memory; the models of the run are there too."""


@contextlib.contextmanager
def spilling(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database that spills to a place in `folder`, of which nothing is left at the end.

    What a killed process spilled there is removed first.
    """
    place = folder / "duckdb.tmp"
    shutil.rmtree(place, ignore_errors=True)
    try:
        with duckdb.connect() as database:
            database.execute("SET temp_directory = ?", [str(place)])
            database.execute(f"SET memory_limit = '{_MEMORY}'")
            yield database
    finally:
        shutil.rmtree(place, ignore_errors=True)
