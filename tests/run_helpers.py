"""A small pool with every kind of column, the command line, and runs that tests share."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from curate.pipeline.folder import RunFolder
from curate.records import OUTPUT_COLUMNS
from curate.stop import Stop

os.environ["HF_HUB_OFFLINE"] = "1"

TINY = {
    "model.name": "nano",
    "model.window": 32,
    "model.vocabulary_size": 300,
    "train.batch_tokens": 512,
    "blade.warmup_tokens": 1000,
    "compute.dtype": "float32",
    "compute.threads": 1,
}
"""Settings that make a run take two seconds."""


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Settings as arguments; the model as the flag that a later one overrides."""
    parts = [
        ("--model", str(value)) if key == "model.name" else ("--set", f"{key}={value}")
        for key, value in settings.items()
    ]
    return [part for pair in parts for part in pair]


TINY_FLAGS = as_flags(TINY)

SHARDS = 3
ROWS = 20
TIMES = {
    "run": ["started_at", "finished_at", "stage_seconds", "activity_seconds"],
    "round": ["seconds"],
    "training": ["tokens_per_second"],
}
"""The columns of the log that hold times, by table."""

_WORDS = [
    "river", "stone", "cloud", "amber", "violet", "engine", "lantern", "harbor", "meadow", "copper",
    "thunder", "willow", "saddle", "marble", "canyon", "ribbon", "falcon", "garnet", "hollow",
    "anchor", "Grüße", "日本", "🙂",
]  # fmt: skip


def words(random: np.random.Generator, count: int) -> str:
    """That many words."""
    return " ".join(random.choice(_WORDS, count))


def rich_table(shard: int, rows: int = ROWS) -> pa.Table:
    """A shard with nested, decimal, zoned, dictionary, binary and null columns.

    Row 3 has null for a text, row 7 the empty text; row 11 of shard 1 is many windows long.
    """
    random = np.random.default_rng([7, shard])
    texts: list[str | None] = [words(random, int(random.integers(4, 20))) for _ in range(rows)]
    texts[3], texts[7] = None, ""
    if shard == 1:
        texts[11] = words(random, 150)
    ids = [shard * 1000 + row for row in range(rows)]
    start = datetime.datetime(2024, 3, 30, 23, 30, tzinfo=datetime.UTC)
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.int64()),
        "text": pa.array(texts, pa.string()),
        "source": pa.array([("web", "book", "code")[i % 3] for i in ids]).dictionary_encode(),
        "meta": pa.array(
            [{"tags": [f"t{i}", None][: i % 3], "deep": {"n": i}} if i % 4 else None for i in ids],
            pa.struct(
                [
                    pa.field("tags", pa.list_(pa.string())),
                    pa.field("deep", pa.struct([pa.field("n", pa.int32())])),
                ]
            ),
        ),
        "scores": pa.array([[i / 3, float("nan")][: i % 3] for i in ids], pa.list_(pa.float32())),
        "price": pa.array([decimal.Decimal(i) / 8 for i in ids], pa.decimal128(12, 3)),
        "seen": pa.array(
            [start + datetime.timedelta(minutes=97 * i) for i in ids],
            pa.timestamp("us", tz="Europe/Berlin"),
        ),
        "day": pa.array([start.date() + datetime.timedelta(days=i) for i in ids], pa.date32()),
        "blob": pa.array([bytes([i % 256, 0, 255]) if i % 5 else None for i in ids], pa.binary()),
        "nothing": pa.nulls(rows),
        "flag": pa.array([None if i % 6 == 0 else i % 2 == 0 for i in ids], pa.bool_()),
        "kept": pa.array([f"the pool's own {i}" for i in ids], pa.string()),
    }
    return pa.table(columns)


COMPARABLE = ("id", "text", "source", "price", "seen", "day", "blob", "flag", "kept")
"""Columns of `rich_table` that SQL compares by value."""


def write_pool(folder: Path) -> Path:
    """Write the rich pool under `folder`, with a target beside it; returns `folder`."""
    (folder / "pool").mkdir(parents=True)
    for shard in range(SHARDS):
        pq.write_table(
            rich_table(shard),
            folder / "pool" / f"shard-{shard}.parquet",
            row_group_size=8,
            use_compliant_nested_type=False,
        )
    random = np.random.default_rng(99)
    target = [*(words(random, 12) for _ in range(12)), ""]
    pq.write_table(pa.table({"text": target}), folder / "target.parquet")
    return folder


def write_plain_pool(folder: Path, shards: int = 2, rows: int = 15) -> Path:
    """Write a pool of texts and ids alone under `folder`, with a target; returns `folder`."""
    (folder / "pool").mkdir(parents=True)
    random = np.random.default_rng(5)
    for shard in range(shards):
        texts = [words(random, int(random.integers(4, 20))) for _ in range(rows)]
        table = pa.table({"text": texts, "id": range(shard * rows, (shard + 1) * rows)})
        pq.write_table(table, folder / "pool" / f"{shard}.parquet")
    pq.write_table(
        pa.table({"text": [words(random, 9) for _ in range(9)]}), folder / "target.parquet"
    )
    return folder


@dataclass(frozen=True)
class Run:
    """A finished run and the folder its inputs are in; tests copy it before they change it."""

    inputs: Path
    out: Path

    @property
    def log(self) -> Path:
        return self.out / "selection_log.duckdb"

    def sql(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query on the log, by a DuckDB that knows nothing of curate."""
        with duckdb.connect(str(self.log), read_only=True) as connection:
            return connection.execute(query, parameters or None).fetchall()

    def parts(self) -> list[Path]:
        return sorted((self.out / "data").iterdir())

    def copy(self, place: Path) -> Run:
        """A copy to change; its inputs are the same files."""
        shutil.copytree(self.out, place)
        return Run(self.inputs, place)


def curate(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(_main(), [str(one) for one in arguments])


def _main() -> Any:
    from curate.cli import main

    return main


def run_arguments(inputs: Path, out: Path, **settings: Any) -> list[str]:
    """The arguments of a tiny run; `settings` by dotted key with __ for the dot."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    values = {**TINY, **given}
    return [
        "run", "--pool", str(inputs / "pool"), "--target", str(inputs / "target.parquet"),
        "--out", str(out),
        *as_flags(values),
    ]  # fmt: skip


def run_tiny(inputs: Path, out: Path, stop: Stop | None = None, **settings: Any) -> Run:
    """Run `curate run` on the pool in `inputs`, in this process and without the command line."""
    from curate.config import load_config
    from curate.pipeline import run

    given = {key.replace("__", "."): value for key, value in settings.items()}
    paths = {"pool": str(inputs / "pool"), "target": str(inputs / "target.parquet")}
    config = load_config(None, {**paths, "out": str(out), **TINY, **given})
    run(config, io.StringIO(), stop)
    return Run(inputs, out)


@functools.cache
def _shared(base: Path) -> dict[str, Run]:
    return {}


STRICT = {
    "blade__passes": 2,
    "blade__average": "linear",
    "blade__final": "rescore",
    "blade.lambda": 0.5,
    "blade__control": "proxy",
    "blade__train_on": "kept",
}
"""Two passes, a final rescore, and the published choices."""


def shared_run(factory: pytest.TempPathFactory, **settings: Any) -> Run:
    """The run of these settings on the rich pool, made once a test session; never change it."""
    base = factory.getbasetemp()
    runs = _shared(base)
    inputs = base / "shared-inputs"
    if not inputs.exists():
        write_pool(inputs)
    name = ",".join(f"{key}={value}" for key, value in sorted(settings.items())) or "default"
    if name not in runs:
        runs[name] = run_tiny(inputs, factory.mktemp("shared") / "out", **settings)
    return runs[name]


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 and modification time of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): f"{digest(path)} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def listing(folder: Path) -> list[str]:
    """Relative paths of everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_digests(run: Run) -> dict[str, str]:
    return {path.name: digest(path) for path in run.parts()}


def log_rows(run: Run) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of a log in order, without times."""
    with duckdb.connect(str(run.log), read_only=True) as connection:
        tables = connection.execute(
            "SELECT table_name FROM duckdb_tables() ORDER BY table_name"
        ).fetchall()
        return {name: _rows_without_times(connection, name) for (name,) in tables}


def _rows_without_times(connection: duckdb.DuckDBPyConnection, name: str) -> list[tuple[Any, ...]]:
    times = TIMES.get(name, [])
    columns = f"* EXCLUDE ({', '.join(times)})" if times else "*"
    return connection.execute(f'SELECT COLUMNS({columns})::VARCHAR FROM "{name}"').fetchall()


def assert_same_outcome(ours: Run, theirs: Run) -> None:
    """`data/` is the same to the byte and the log the same but for times."""
    assert data_digests(ours) == data_digests(theirs)
    mine, others = log_rows(ours), log_rows(theirs)
    assert mine.keys() == others.keys()
    for table, rows in mine.items():
        assert rows == others[table], table


def environment(**changes: str) -> dict[str, str]:
    """The environment of a subprocess that imports the curate that this process imports."""
    import curate as package

    source = str(Path(package.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", **changes}


PROGRAM = "from curate.cli import main; main()"
"""The command line, for a process of its own."""


def spawn(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextlib.contextmanager
def working_folder(place: Path) -> Iterator[Path]:
    """Be in a folder for a while."""
    before = Path.cwd()
    os.chdir(place)
    try:
        yield place
    finally:
        os.chdir(before)


OURS = [field.name for field in OUTPUT_COLUMNS]
"""Names of the columns that a run appends."""


def shard_of(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))


class Fault:
    """Raises KeyboardInterrupt as one stage is recorded, just before or just after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage: str | None = None
        self.after = False
        finish, write = RunFolder.finish, RunFolder._write

        def faulty_finish(folder: RunFolder, stage: str, *rest: Any) -> None:
            self.current = stage
            finish(folder, stage, *rest)
            if stage == self.stage and self.after:
                raise KeyboardInterrupt

        def faulty_write(folder: RunFolder) -> None:
            if self.current == self.stage and not self.after:
                raise KeyboardInterrupt
            write(folder)

        self.current = "create"
        monkeypatch.setattr(RunFolder, "finish", faulty_finish)
        monkeypatch.setattr(RunFolder, "_write", faulty_write)

    def at(self, stage: str | None, *, after: bool) -> None:
        self.stage, self.after, self.current = stage, after, "create"


def interrupted_after(fault: Fault, stage: str, place: Path, **settings: Any) -> Path:
    """The inputs of a run in `place`/out that ended once a stage was recorded."""
    inputs = write_plain_pool(place)
    fault.at(stage, after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, place / "out", **settings)
    fault.at(None, after=True)
    return inputs
