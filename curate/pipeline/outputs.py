"""Stages `config`, `select`, `data` and `log`: decisions become the files that people use."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from curate.clock import LOG, SELECT, WRITE, doing
from curate.config import Config, config_to_tree, config_to_yaml
from curate.errors import InvalidInput
from curate.files import copy_folder, write_text
from curate.log.load import build_log
from curate.log.query import LOG_NAME
from curate.pipeline.folder import RunFolder
from curate.pipeline.prepare import Inputs
from curate.pipeline.progress import Progress
from curate.pipeline.quarantine import damaged_shards
from curate.pipeline.rounds import RoundFiles
from curate.read.cache import TokenCache
from curate.records import SHARD
from curate.select.final import Kept, KeptReader, select_documents
from curate.select.masks import MaskReader, select_tokens
from curate.select.methods.base import TOKEN
from curate.write.card import write_card
from curate.write.parts import write_part
from curate.write.report import write_report


def config_stage(config: Config, folder: RunFolder) -> None:
    """Write the resolved config, every derived value filled in."""
    if folder.result("config") is not None:
        return
    started = time.monotonic()
    path = folder.path / "config.yaml"
    write_text(path, config_to_yaml(config))
    settings = config_to_tree(config)
    settings.pop("out")
    folder.finish("config", settings, [path], started)


@doing(SELECT)
def select_stage(
    config: Config, folder: RunFolder, cache: TokenCache, rounds: RoundFiles
) -> tuple[Path, Kept]:
    """Decide every document; returns the selection file and its totals.

    Raises:
        InvalidInput: no token is kept (of documents there is always one).
    """
    path = folder.state / "selection.parquet"
    done = folder.result("select")
    if done is None:
        started = time.monotonic()
        documents, decisions, scales = cache.document_files(), rounds.decisions, rounds.scales
        if config.granularity == TOKEN:
            kept = select_tokens(
                path,
                _masks_path(folder),
                documents=documents,
                decisions=decisions,
                masks=rounds.masks,
                scales=scales,
            )
        else:
            kept = select_documents(
                path,
                documents=documents,
                decisions=decisions,
                scales=scales,
                keep=config.keep,
                seed=config.seed,
            )
        if not kept.documents:
            raise InvalidInput(
                f"The budget keeps no token: keep is {config.keep:g} and the pool has "
                f"{cache.tokens:,} tokens.",
                "Give a larger --keep or a larger pool, and another folder with --out.",
            )
        done = {"documents": kept.documents, "tokens": kept.tokens}
        folder.finish("select", done, [], started)
    return path, Kept(**done)


def _masks_path(folder: RunFolder) -> Path:
    return folder.state / "masks.parquet"


@doing(WRITE)
def data_stage(inputs: Inputs, folder: RunFolder, selection: Path, progress: Progress) -> None:
    """Write the kept rows of each shard as one part, and the tokenizer beside them."""
    if folder.result("data") is not None:
        return
    started = time.monotonic()
    interval = 60 * inputs.config.compute.checkpoint_minutes
    place, tokenizer = folder.path / "data", folder.path / "tokenizer"
    shards_done = _shards_done(folder)
    if not shards_done:
        for old in (place, tokenizer):
            shutil.rmtree(old, ignore_errors=True)
        copy_folder(folder.state / "tokenizer", tokenizer)
    pool, write = inputs.pool, inputs.config.write
    by_token = inputs.config.granularity == TOKEN
    masks = MaskReader(_masks_path(folder)) if by_token else None
    selected = KeptReader(selection)
    progress.start("write", len(pool.shards), "shard")
    for shard in pool.shards:
        kept = selected.shard(shard.shard_id)
        progress.advance(1)
        if shard.shard_id < shards_done:
            for piece in kept:
                if masks is not None:
                    masks.skip(piece.num_rows)
            continue
        write_part(
            place / f"part-{shard.shard_id:05d}.parquet",
            pool.schema,
            pool.iter_batches(shard),
            kept,
            masks=masks,
            row_group_rows=write.row_group_rows,
            compression=write.compression,
        )
        if time.monotonic() - started >= interval:
            folder.pause("data", {"shards": shard.shard_id + 1}, started)
            started = time.monotonic()
    folder.finish("data", {}, sorted([*place.iterdir(), *tokenizer.iterdir()]), started)


def _shards_done(folder: RunFolder) -> int:
    """Shards whose parts an interrupted run has written."""
    partial = folder.partial("data")
    return int(partial["shards"]) if partial else 0


@doing(LOG)
def log_stage(
    inputs: Inputs,
    config: Config,
    folder: RunFolder,
    cache: TokenCache,
    *,
    rounds: RoundFiles,
    selection: Path,
    figures: Mapping[str, Any],
) -> None:
    """Build the selection log, and the dataset card and report from it."""
    if folder.result("log") is not None:
        return
    started = time.monotonic()
    log = folder.path / LOG_NAME
    build_log(
        log,
        run={**_run_record(inputs, config, folder), **figures},
        shards=_shard_table(inputs, cache),
        rounds=rounds.records,
        documents=cache.document_files(),
        selection=[selection],
        decisions=rounds.decisions,
        training=rounds.training,
        metadata_columns=inputs.metadata_columns,
    )
    outputs = [log, folder.path / "README.md", folder.path / "report.html"]
    write_card(outputs[1], log)
    write_report(outputs[2], log)
    folder.finish("log", {}, outputs, started)


def complete_stage(folder: RunFolder, figures: Mapping[str, Any]) -> None:
    """The last entry of the manifest: everything before it is whole."""
    folder.finish("complete", figures, [], time.monotonic())


def _run_record(inputs: Inputs, config: Config, folder: RunFolder) -> dict[str, Any]:
    identity = json.dumps(folder.identity, sort_keys=True)
    return {
        "run_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "started_at": folder.started_at(),
        "finished_at": datetime.now(UTC),
        "curate_version": version("curate"),
        "config": folder.result("config"),
        "seed": config.seed,
        **(folder.compute or inputs.compute.names),
        "threads": torch.get_num_threads(),
        "method": config.method,
        "granularity": config.granularity,
        "keep_ratio": config.keep,
        "stage_seconds": folder.stage_seconds(),
        "activity_seconds": folder.activity_seconds(),
        "rollbacks": folder.rollbacks,
    }


def _shard_table(inputs: Inputs, cache: TokenCache) -> pa.Table:
    damaged = damaged_shards(inputs.pool, cache)
    totals = {shard.shard_id: [0, 0, 0] for shard in inputs.pool.shards}
    for fragment in cache.fragments:
        counts = (fragment.rows, fragment.documents, fragment.tokens)
        totals[fragment.shard_id] = [
            total + count for total, count in zip(totals[fragment.shard_id], counts, strict=True)
        ]
    rows = [
        {
            "shard_id": shard.shard_id,
            "uri": shard.uri,
            "bytes": shard.bytes,
            "rows": shard.rows if shard.shard_id in damaged else totals[shard.shard_id][0],
            "fingerprint": shard.fingerprint,
            "status": "quarantined" if shard.shard_id in damaged else "ok",
            "error": damaged.get(shard.shard_id),
            "documents": totals[shard.shard_id][1],
            "tokens": totals[shard.shard_id][2],
        }
        for shard in inputs.pool.shards
    ]
    return pa.Table.from_pylist(rows, schema=SHARD)
