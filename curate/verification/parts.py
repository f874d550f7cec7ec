"""The parts of the dataset: their rows counted, and those chosen that are looked at one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.noise import make_key, shuffled_order
from curate.read.schema import is_text
from curate.records import output_columns
from curate.verification.manifest import Manifest
from curate.verification.result import Notes, plural

SAMPLE_GROUPS = 8
"""Row groups that a verification looks at row by row unless it is a full one."""

UNREADABLE = (pa.ArrowException, OSError, ValueError, RuntimeError, MemoryError)
"""What Arrow raises on a damaged file."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part whose rows are as many as the log keeps of its shard.

    Attributes:
        path: where it lies.
        name: its path in the output folder.
        shard_id: the pool shard that its rows come from.
        columns: name and type of each of its columns but those that curate adds.
        group_rows: rows of each of its row groups.
    """

    path: Path
    name: str
    shard_id: int
    columns: tuple[tuple[str, pa.DataType], ...]
    group_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(self.group_rows)


@dataclass(frozen=True, slots=True)
class Group:
    """A row group of a part, and how many rows of the part come before it."""

    part: Part
    index: int
    first_row: int


def check_parts(
    out: Path, manifest: Manifest, sound: set[str], kept: dict[int, int], notes: Notes
) -> list[Part]:
    """Count the rows of every part; returns those whose rows can be looked at.

    Args:
        out: the output folder.
        manifest: its manifest.
        sound: files that are what was recorded.
        kept: how many documents of each shard the log keeps.
        notes: for findings.
    """
    shards = {f"data/part-{shard:05d}.parquet": shard for shard, count in kept.items() if count}
    for name in sorted(shards.keys() - manifest.files.keys()):
        notes.find("parts", f"{name} is not there, but the log keeps rows of its shard.")
    parts = []
    for name in manifest.parts:
        if name not in shards:
            notes.find("parts", f"{name} is no part of a shard that the log keeps rows of.")
            continue
        part = _open(out, name, shards[name], manifest, notes) if name in sound else None
        if part is not None and part.rows == kept[part.shard_id]:
            parts.append(part)
            continue
        if part is not None:
            text = f"{name} has {plural(part.rows, 'row')}, but the log keeps "
            notes.find("parts", f"{text}{kept[part.shard_id]:,} of its shard.")
        checks = ["parts", "outcome", "source", *(["tokens"] if manifest.by_token else [])]
        notes.skip(f"the rows of {name} were not looked at", *checks)
    rows = sum(part.rows for part in parts)
    notes.checked["parts"] = (
        f"{len(parts):,} of {plural(len(shards), 'part')}, {plural(rows, 'row')}"
    )
    return parts


def _open(out: Path, name: str, shard_id: int, manifest: Manifest, notes: Notes) -> Part | None:
    """Read a part's footer."""
    try:
        with pq.ParquetFile(out / name) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except UNREADABLE:
        notes.find("parts", f"{name} is not a readable Parquet file.")
        return None
    found = [(field.name, field.type) for field in schema]
    wanted = [(one.name, one.type) for one in output_columns(manifest.settings["granularity"])]
    columns, added = tuple(found[: -len(wanted)]), found[-len(wanted) :]
    if added != wanted:
        notes.find("parts", f"{name} does not end in the columns that curate adds.")
        return None
    text = manifest.settings["text_column"]
    texts = [kind for column, kind in columns if column == text]
    if len(set(schema.names)) < len(schema.names) or not any(map(is_text, texts)):
        notes.find("parts", f'{name} has no column "{text}" of text, or two columns of one name.')
        return None
    return Part(out / name, name, shard_id, columns, tuple(groups))


def choose_groups(parts: Sequence[Part], seed: int, *, full: bool) -> list[Group]:
    """Every row group, or the sample of them that the run's seed draws, in order."""
    groups = []
    for part in parts:
        first = 0
        for index, rows in enumerate(part.group_rows):
            groups.append(Group(part, index, first))
            first += rows
    if full:
        return groups
    order = shuffled_order(make_key(seed, "verify"), range(len(groups)))
    return [groups[i] for i in sorted(order[:SAMPLE_GROUPS])]
