"""Pools of a given size, made of the documents of another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq


def write_pool(source: Path, place: Path, size: float) -> None:
    """The first documents of a pool, up to `size` bytes of text; again where there are too few."""
    place.mkdir(parents=True)
    left = size
    for number, shard in enumerate(itertools.cycle(sorted(source.glob("*.parquet")))):
        table = pq.read_table(shard, columns=["text"])
        ends = pc.cumulative_sum(pc.fill_null(pc.binary_length(table["text"]), 0).cast("int64"))
        taken = pc.sum(pc.less_equal(ends, left)).as_py() or 0
        part = table.slice(0, taken)
        pq.write_table(part, place / f"{number:05d}.parquet", row_group_size=1000)
        left -= size if taken < len(table) else ends[-1].as_py()
        if left <= 0:
            return
        if left == size:
            raise SystemExit(f"{shard} has no text.")
