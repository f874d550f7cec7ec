"""Selection logs of small invented runs, built by the real builder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import records
from curate.log.load import build_log

MakeLog = Callable[..., Path]
BIN_SOURCES = ("wiki", "maths", "<script>alert(1)</script>", "a|b`c\n# d [x](http://evil)", None)


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    """Call it to build a log: `make_log(documents=200, rounds=3, models=True, metadata=...)`."""

    def build(
        *,
        documents: int = 200,
        rounds: int = 3,
        models: bool = True,
        metadata: dict[str, Sequence[Any]] | None = None,
        run: dict[str, Any] | None = None,
        name: str = "selection_log.duckdb",
    ) -> Path:
        metadata = {"source": BIN_SOURCES} if metadata is None else metadata
        return _write_log(tmp_path / name, documents, rounds, models, metadata, run or {})

    return build


def _write_log(
    path: Path,
    documents: int,
    rounds: int,
    models: bool,
    metadata: dict[str, Sequence[Any]],
    run: dict[str, Any],
) -> Path:
    rng = random.Random(7)
    folder = path.parent / f"{path.stem}.fragments"
    folder.mkdir()
    rows = [
        {"document_id": i, "shard_id": 0, "row": i, "tokens": 20 + i % 90, "bytes": 100 + i}
        for i in range(documents)
    ]
    for name, values in metadata.items():
        for row in rows:
            row[name] = values[row["row"] % len(values)]
    decisions, kept = _decisions(rng, rows, rounds, models, folder)
    selection = [
        {
            "document_id": row["document_id"],
            "weight": 1.0 if row["document_id"] in kept else 0.0,
            "score": rng.gauss(0, 1),
            "excess_loss": 0.1 if models else None,
            "round": rounds - 1,
            "kept": row["document_id"] in kept,
            "tokens_kept": row["tokens"] if row["document_id"] in kept else 0,
            "reason": "selected" if row["document_id"] in kept else "never_selected",
        }
        for row in rows
    ]
    columns = [pa.field(name, pa.string()) for name in metadata]
    document_schema = pa.schema([*records.DOCUMENT, *columns])
    training = [
        {"step": step, "model": model, "loss": 9 * 0.997**step + rng.gauss(0, 0.1) + 2}
        for model in ("proxy", "reference", "lookahead")
        for step in range(900 if model == "proxy" else 350)
        if models
    ]
    tokens = {row["document_id"]: row["tokens"] for row in rows}
    values = {
        "run_id": "r",
        "curate_version": "0.1.0",
        "config": json.dumps({"pool": "/home/somebody/pool/*.parquet", "seed": 3, "keep": 0.2}),
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "method": "blade" if models else "random",
        "granularity": "document",
        "keep_ratio": 0.2,
        "pool_documents": documents,
        "pool_tokens": sum(tokens.values()),
        "target_documents": 30,
        "target_tokens": 4200,
        "kept_documents": len(kept),
        "kept_tokens": sum(tokens[i] for i in kept),
        "model_parameters": 2_600_000 if models else None,
        "activity_seconds": json.dumps({"model": 230.0, "tokenize": 7.0, "count <b>": 0.1}),
        "stage_seconds": json.dumps({"read": 3.2, "train": 170.4, "score": 61.0, "write": 2.5}),
        **run,
    }
    build_log(
        path,
        run=values,
        shards=records.SHARD.empty_table(),
        rounds=pa.Table.from_pylist(_rounds(rounds, models, documents), records.ROUND),
        documents=[_fragment(folder / "document.parquet", rows, document_schema)],
        selection=[_fragment(folder / "selection.parquet", selection, records.SELECTION)],
        decisions=decisions,
        training=[_fragment(folder / "training.parquet", training, records.TRAINING)],
        metadata_columns=list(metadata),
    )
    return path


def _decisions(
    rng: random.Random, rows: list[dict[str, Any]], rounds: int, models: bool, folder: Path
) -> tuple[list[Path], set[int]]:
    paths, kept = [], set()
    for number in range(rounds):
        fragment = []
        for row in rows:
            related = row["row"] % 5 == 1
            excess = rng.gauss(0.8 if related else 0.0, 0.6)
            fragment.append(
                {
                    **{key: row[key] for key in ("document_id", "tokens", "bytes")},
                    "round": number,
                    "proxy_loss": 5 + excess if models else None,
                    "reference_loss": 5.0 if models else None,
                    "excess_loss": excess if models else None,
                    "score": excess,
                    "threshold": 0.7,
                    "kept": excess >= 0.7,
                }
            )
        kept = {row["document_id"] for row in fragment if row["kept"]}
        paths.append(_fragment(folder / f"decision-{number}.parquet", fragment, records.DECISION))
    return paths, kept


def _rounds(rounds: int, models: bool, documents: int) -> list[dict[str, Any]]:
    return [
        {
            "round": number,
            "method": "blade",
            "lambda": 0.0,
            "keep_ratio": 0.2,
            "proxy_step": 100 * number,
            "reference_steps": 30,
            "target_loss_proxy": 6.5 - 0.3 * number if models else None,
            "target_loss_reference": 6.1 - 0.35 * number if models else None,
            "target_separation": 4.9 if models and number == rounds - 1 else None,
            "train_loss": 6.0 - 0.2 * number if models else None,
            "threshold": 0.7,
            "documents_scored": documents,
            "documents_kept": documents // 5,
            "tokens_scored": documents * 50,
            "tokens_kept": documents * 10,
            "seconds": 61.5,
        }
        for number in range(rounds)
    ]


def _fragment(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path
