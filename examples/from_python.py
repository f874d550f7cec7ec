"""The three steps of the command line, from Python: run, ask the log, export.

Usage: python examples/from_python.py POOL TARGET OUT [KEY=VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import curate


def main(pool: str, target: str, out: str, *assignments: str) -> None:
    """Keep a fifth of the pool, print what the log says, and export what was kept."""
    flags = {"pool": pool, "target": target, "out": out, "keep": 0.2}
    summary = curate.run(curate.load_config(flags=flags, assignments=assignments))
    print(f"kept {summary.kept_tokens:,} of {summary.pool_tokens:,} tokens")

    reasons = "SELECT reason, count(*) AS documents FROM document GROUP BY reason ORDER BY reason"
    for row in curate.run_sql(out, reasons).read_all().to_pylist():
        print(f"{row['reason']}: {row['documents']} documents")

    # Trainers that know nothing of weights read a copy in which weights are repetition.
    dest = Path(out).with_name(f"{Path(out).name}-materialized")
    exported = curate.export(out, to="hf", dest=dest, materialize=True)
    print(f"exported {exported.rows:,} rows to {dest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
