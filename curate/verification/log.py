"""The selection log against itself and against the manifest."""

from __future__ import annotations

import json
from typing import Any

import duckdb

from curate.log.attach import AttachedLog
from curate.log.query import fetch_rows
from curate.records import split_document_id
from curate.verification import log_sql
from curate.verification.files import compare_settings
from curate.verification.manifest import Manifest
from curate.verification.result import Notes, plural

_MEAN_TOLERANCE = 1e-6
"""Weights are float32, each of them within 6e-8 of what they were scaled to."""


def check_log(
    connection: duckdb.DuckDBPyConnection, log: AttachedLog, manifest: Manifest, notes: Notes
) -> dict[int, int]:
    """Hold every table against the others; returns how many documents of each shard are kept.

    Leaves the tables `visits` and `kept` behind for what is asked next.
    """
    totals = fetch_rows(connection, log_sql.totals(log))[0]
    documents, decisions = totals["pool_documents"], totals["decisions"]
    notes.checked["log"] = (
        f"{plural(documents, 'document')}, {plural(decisions, 'decision')}, "
        f"{plural(len(manifest.rounds), 'round')}"
    )
    _check_run(connection, log, manifest, totals, notes)
    _check_totals(totals, manifest, notes)
    connection.execute(log_sql.create_visits(log, manifest))
    _check_rules(connection, log, manifest, notes)
    _check_rounds(connection, log, manifest, notes)
    connection.execute(log_sql.create_kept(log))
    return _check_shards(connection, log, manifest, notes)


def _check_run(
    connection: duckdb.DuckDBPyConnection,
    log: AttachedLog,
    manifest: Manifest,
    totals: dict[str, Any],
    notes: Notes,
) -> None:
    rows = fetch_rows(connection, log_sql.run_row(log))
    if len(rows) != 1:
        notes.find("log", f"The log's table run has {plural(len(rows), 'row')}, not 1.")
        return
    run, settings = rows[0], manifest.settings
    try:
        config = json.loads(run["config"])
    except (TypeError, ValueError):
        config = None
    compare_settings(config, manifest, "the log", notes)
    said = {name: settings.get(name) for name in ("seed", "method", "granularity", "keep")}
    for name, value in {"run_id": manifest.run_id, **said}.items():
        if run[name] != value:
            notes.find("settings", f"The log's table run and manifest.json differ in {name}.")
    for name in manifest.totals:
        if run[name] != totals[name]:
            _differ(f"The log's table run says {name}", run[name], totals[name], notes)


def _check_totals(totals: dict[str, Any], manifest: Manifest, notes: Notes) -> None:
    for name, said in manifest.totals.items():
        if said != totals[name]:
            _differ(f"manifest.json says {name}", said, totals[name], notes)
    for table in ("document", "decision"):
        if repeated := totals[f"repeated_{table}s"]:
            rows = plural(repeated, "row")
            notes.find("log", f"The log's table {table} has {rows} more than once.")
    mean = totals["mean_weight"]
    if not manifest.by_token and mean is not None and not abs(mean - 1) <= _MEAN_TOLERANCE:
        notes.find("log", f"The weights of the kept documents have the mean {mean:.6g}, not 1.")


def _check_rules(
    connection: duckdb.DuckDBPyConnection, log: AttachedLog, manifest: Manifest, notes: Notes
) -> None:
    document, decision, rounds = (log.table(one) for one in ("document", "decision", "round"))
    by_token = manifest.by_token
    for table, alias, rules, source in (
        (
            "document",
            "d",
            log_sql.document_rules(by_token=by_token),
            f"{document} AS d LEFT JOIN visits AS v USING (document_id)",
        ),
        (
            "decision",
            "c",
            log_sql.decision_rules(by_token=by_token),
            f"{decision} AS c LEFT JOIN {document} AS d ON d.document_id = c.document_id "
            f"LEFT JOIN {rounds} AS r ON r.round = c.round",
        ),
    ):
        counts = connection.execute(log_sql.broken_rows(rules, alias, source)).fetchall()[0]
        for rule, count, first in zip(rules, counts[::2], counts[1::2], strict=True):
            if count:
                notes.find(
                    "log",
                    f"The log's table {table} has {plural(count, 'row')} {rule.broken}, "
                    f"first document {_place(first)}.",
                )


def _check_rounds(
    connection: duckdb.DuckDBPyConnection, log: AttachedLog, manifest: Manifest, notes: Notes
) -> None:
    rows = fetch_rows(connection, log_sql.round_counts(log))
    if [row["round"] for row in rows] != list(range(len(manifest.rounds))):
        notes.find("log", "The log's table round does not have the rounds of manifest.json.")
        return
    for row, recorded in zip(rows, manifest.rounds, strict=True):
        for name, said in recorded.counts.items():
            found = row[f"found_{name}"]
            if row[name] != found:
                _differ(f"The log says {name} of round {row['round']}", row[name], found, notes)
            if said != row[name]:
                where = f"manifest.json says {name} of round {row['round']}"
                _differ(where, said, row[name], notes)


def _check_shards(
    connection: duckdb.DuckDBPyConnection, log: AttachedLog, manifest: Manifest, notes: Notes
) -> dict[int, int]:
    rows = fetch_rows(connection, log_sql.shard_counts(log))
    if [row["shard_id"] for row in rows] != list(range(len(manifest.pool))):
        notes.find("log", "The log does not have the shards of manifest.json.")
    for row in rows:
        shard_id = row["shard_id"]
        if shard_id is None or not 0 <= shard_id < len(manifest.pool):
            continue
        for name in ("rows", "documents", "tokens"):
            if row[name] != row[f"found_{name}"]:
                found = row[f"found_{name}"]
                _differ(f"The log says {name} of shard {shard_id}", row[name], found, notes)
        recorded = manifest.pool[shard_id]
        for name in ("rows", "documents", "tokens", "text_bytes"):
            said, found = getattr(recorded, name), row[f"found_{name}"]
            if said != found:
                _differ(f"manifest.json says {name} of shard {shard_id}", said, found, notes)
        for name in ("uri", "bytes", "fingerprint"):
            if row[name] != getattr(recorded, name):
                text = f"The log and manifest.json differ in the {name} of shard {shard_id}."
                notes.find("log", text)
    return {row["shard_id"]: row["found_kept"] for row in rows if row["shard_id"] is not None}


def _differ(said: str, value: object, found: object, notes: Notes) -> None:
    notes.find("log", f"{said} is {value}, but the log's rows come to {found}.")


def _place(document_id: int | None) -> str:
    if document_id is None:
        return "without an id"
    return ":".join(str(one) for one in split_document_id(document_id))
