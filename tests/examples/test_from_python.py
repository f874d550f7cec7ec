"""The Python example runs as written, on a pool made here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_from_disk

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_python.py"
SMALL = (
    "model.window=32",
    "model.vocabulary_size=300",
    "train.batch_tokens=512",
    "blade.warmup_tokens=1000",
    "compute.threads=1",
)


def test_from_python(tmp_path: Path):
    words = ["the", "model", "reads", "each", "page", "once", "and", "keeps", "some"]
    texts = [" ".join(words[i % 7 :] * (1 + i % 5)) for i in range(40)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "pool.parquet")
    pq.write_table(pa.table({"text": texts[:5]}), tmp_path / "target.parquet")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "pool.parquet", "target.parquet", "out", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("kept ")
    rows = len(load_from_disk(str(tmp_path / "out-materialized")))
    assert lines[-1] == f"exported {rows:,} rows to out-materialized"
