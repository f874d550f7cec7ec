"""The table `evaluation` of a finished run's log, written by `curate evaluate`.

A log that somebody has open must not change under them, and one half written must not be left
behind. So the rows go into a copy of the file under a temporary name, which is renamed over it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from curate.files import atomic_path
from curate.log import schema
from curate.log.load import BUILD_MEMORY, remove_siblings
from curate.log.query import LOCKED


def write_evaluation(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Put these rows into the log at `path` as its table `evaluation`, replacing the one it has.

    Args:
        path: the log of a finished run.
        rows: values by column of `schema.EVALUATION`.
    """
    names = [column.name for column in schema.EVALUATION.columns]
    places = ", ".join("?" * len(names))
    with atomic_path(path) as temporary:
        remove_siblings(temporary)
        shutil.copyfile(path, temporary)
        config = {**LOCKED, "memory_limit": BUILD_MEMORY}
        with duckdb.connect(str(temporary.absolute()), config=config) as connection:
            connection.execute(f"DROP TABLE IF EXISTS {schema.EVALUATION.name}")
            for statement in schema.create_table(schema.EVALUATION):
                connection.execute(statement)
            values = [[row[name] for name in names] for row in rows]
            connection.executemany(
                f"INSERT INTO {schema.EVALUATION.name} VALUES ({places})", values
            )
            connection.execute("CHECKPOINT")
        remove_siblings(temporary)
