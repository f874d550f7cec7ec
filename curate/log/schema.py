"""The tables of the selection log: every name, type, unit and meaning, in one place.

The log must explain itself to somebody who opens it in any DuckDB shell years later, without this
program. So each table is declared here together with what it and each of its columns mean, and the
meaning is stored in the database as comments. `records.py` says what fragments hold on disk; the
tables follow the same names and types. Views over the tables are in `views.py`.

Two rules hold throughout: losses are mean nats per token, and a higher score means keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: its name, its DuckDB type, and what it means."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Table:
    """One table: its name, what a row stands for, and its columns in order."""

    name: str
    comment: str
    columns: tuple[Column, ...]


_DOCUMENT_ID = Column(
    "document_id", "BIGINT", "Stable id of the pool row: shard_id * 2^40 + row. See why(id)."
)
_SHARD_ID = Column("shard_id", "INTEGER", "Pool shard of the document: document_id >> 40.")
_ROW = Column("row", "BIGINT", "Row within the shard, from 0: document_id & (2^40 - 1).")
_TOKENS = Column("tokens", "BIGINT", "Tokens of the document.")
_BYTES = Column("bytes", "BIGINT", "UTF-8 bytes of the document's text.")

RUN = Table(
    "run",
    "The run that wrote this log: one row.",
    (
        Column("run_id", "VARCHAR", "Name of the run, unique to its config and inputs."),
        Column("started_at", "TIMESTAMP", "When the run started, UTC."),
        Column("finished_at", "TIMESTAMP", "When the run finished, UTC."),
        Column("curate_version", "VARCHAR", "Version of curate that wrote the log."),
        Column("config", "JSON", "The resolved config, every default written out."),
        Column("seed", "BIGINT", "Seed of everything random."),
        Column("device", "VARCHAR", "Device the models ran on: cpu, cuda or another of PyTorch's."),
        Column("dtype", "VARCHAR", "Floating-point type of the models' arithmetic."),
        Column("threads", "INTEGER", "CPU threads the models used."),
        Column("method", "VARCHAR", "Selection method, for example blade, color or random."),
        Column("granularity", "VARCHAR", "What is kept or dropped: document or token."),
        Column("keep_ratio", "DOUBLE", "Share of the pool's tokens to keep, 0 to 1."),
        Column("pool_documents", "BIGINT", "Documents of the pool, empty ones included."),
        Column("pool_tokens", "BIGINT", "Tokens of the pool."),
        Column("target_documents", "BIGINT", "Documents of the target."),
        Column("target_tokens", "BIGINT", "Tokens of the target."),
        Column("kept_documents", "BIGINT", "Documents in the curated dataset."),
        Column(
            "kept_tokens",
            "BIGINT",
            "Tokens in the curated dataset; at token granularity those that are labels.",
        ),
        Column("model_parameters", "BIGINT", "Parameters of the proxy; the reference has as many."),
        Column("stage_seconds", "JSON", "Wall-clock seconds of each stage: {stage: seconds}."),
        Column(
            "activity_seconds",
            "JSON",
            "The same seconds by what was done, model work (model) and all that waited for none of "
            "it: {activity: seconds}. Both end before the log was made.",
        ),
        Column(
            "rollbacks",
            "JSON",
            "Every time that a stage started over, from then on with learning rates halved, "
            "because a loss or a score was not finite: [{stage, problem}].",
        ),
    ),
)

SHARD = Table(
    "shard",
    "One row per pool shard (input file).",
    (
        Column("shard_id", "INTEGER", "Number of the shard in the pool, from 0."),
        Column("uri", "VARCHAR", "Path or address of the file."),
        Column("bytes", "BIGINT", "Size of the file in bytes."),
        Column(
            "rows",
            "BIGINT",
            "Rows of the file, empty and quarantined ones included; NULL where damage hides it.",
        ),
        Column("fingerprint", "VARCHAR", "What the file's content was recognized by."),
        Column("status", "VARCHAR", "ok, or quarantined: the shard is damaged and was left out."),
        Column("error", "VARCHAR", "Why it is quarantined; NULL where it is not."),
        Column("documents", "BIGINT", "Rows with at least one token."),
        Column("tokens", "BIGINT", "Tokens of all its documents."),
    ),
)

ROUND = Table(
    "round",
    "One row per round: proxy steps on a stretch of the pool, or a scoring of all of it.",
    (
        Column("round", "INTEGER", "Number of the round, from 0."),
        Column("method", "VARCHAR", "Selection method that scored this round."),
        Column(
            "lambda",
            "FLOAT",
            "Penalty weight of the round's sync; above 0 it multiplies the excess loss in the "
            'score of a round. Write "lambda" in quotes.',
        ),
        Column("keep_ratio", "FLOAT", "Share of the tokens scored that the round keeps, 0 to 1."),
        Column("proxy_step", "BIGINT", "Optimizer steps the proxy had taken when the round began."),
        Column(
            "reference_steps",
            "BIGINT",
            "Optimizer steps of the reference at this round's sync; 0: none.",
        ),
        Column("target_loss_proxy", "FLOAT", "Proxy's loss on target documents, nats per token."),
        Column("target_loss_reference", "FLOAT", "Reference's loss on the same documents."),
        Column(
            "target_separation",
            "FLOAT",
            "Spreads by which held-out documents of the target score above the pool's; NULL if not "
            "measured.",
        ),
        Column("train_loss", "FLOAT", "Proxy's mean training loss in the round, nats per token."),
        Column(
            "threshold",
            "FLOAT",
            "Cut-off of the round, in score units: lowest score kept; where blocks had cut-offs of "
            "their own (decision.threshold), the mean of these by tokens.",
        ),
        Column("documents_scored", "BIGINT", "Documents the round visited."),
        Column("documents_kept", "BIGINT", "Documents the round kept."),
        Column("tokens_scored", "BIGINT", "Tokens of the documents the round visited."),
        Column(
            "tokens_kept",
            "BIGINT",
            "Tokens the round kept: its documents', or at token granularity those that are labels.",
        ),
        Column("seconds", "DOUBLE", "Wall-clock seconds the round took."),
    ),
)

DECISION = Table(
    "decision",
    "One row per document per round that visited it. Losses are mean nats per token.",
    (
        _DOCUMENT_ID,
        _SHARD_ID,
        _ROW,
        Column("round", "INTEGER", "Round that took the decision."),
        _TOKENS,
        _BYTES,
        Column("tokens_read", "BIGINT", "Tokens of the document that its losses are means of."),
        Column(
            "proxy_loss",
            "FLOAT",
            "Loss of the proxy, or its copy at the sync, nats per token; NULL if no model scored.",
        ),
        Column("reference_loss", "FLOAT", "Reference's loss, nats per token; NULL without one."),
        Column("excess_loss", "FLOAT", "proxy_loss - reference_loss, nats per token."),
        Column(
            "ngram_vote",
            "FLOAT",
            "Part of the score, zero or less, from an n-gram classifier; NULL if none votes.",
        ),
        Column(
            "redundancy_vote",
            "FLOAT",
            "Part of the score, zero or less, for what the proxy has learned; NULL if none votes.",
        ),
        Column(
            "noise",
            "FLOAT",
            "Part of the score that is seeded noise; NULL if none, too little, or by token.",
        ),
        Column("score", "FLOAT", "What documents are ranked by; higher = keep."),
        Column(
            "threshold",
            "FLOAT",
            "Cut-off the score was held against, in score units; NULL if its block kept nothing.",
        ),
        Column("kept", "BOOLEAN", "Whether this round kept the document."),
        Column(
            "tokens_kept",
            "BIGINT",
            "Tokens kept: all of a kept document's, or at token granularity those that are labels.",
        ),
        Column(
            "reason",
            "VARCHAR",
            "above_threshold (kept; by token: some of its tokens are) or below_threshold (not; so "
            "too where equal scores drew for the last places, or its block kept nothing).",
        ),
    ),
)

DOCUMENT_REASONS: dict[str, str] = {
    "selected": "kept: in the token budget by weight; by token: some of its tokens are",
    "filled": "kept: no round that decides kept it, but the best by score fill the budget",
    "over_budget": "dropped: kept in some round, but the budget went to higher weights or scores",
    "overruled": "dropped: a round kept it, but not the one that decides",
    "never_selected": "dropped: no round that visited it kept it",
    "empty": "dropped: the document has no tokens",
    "quarantined": "dropped: the row cannot be used, see problem",
}
"""The values of `document.reason`, which the selection writes."""

DOCUMENT = Table(
    "document",
    "The final outcome, one row per pool row, then the pool's own metadata columns.",
    (
        _DOCUMENT_ID,
        _SHARD_ID,
        _ROW,
        _TOKENS,
        _BYTES,
        Column(
            "weight",
            "FLOAT",
            "Weight in the curated dataset, mean 1 over kept tokens; at token granularity the "
            "share of the document's tokens that are kept. 0 when dropped.",
        ),
        Column("kept", "BOOLEAN", "Whether the document is in the curated dataset."),
        Column(
            "tokens_kept",
            "BIGINT",
            "Tokens kept: all of a kept document's, or at token granularity those that are labels.",
        ),
        Column(
            "reason",
            "VARCHAR",
            "; ".join(f"{reason} = {meaning}" for reason, meaning in DOCUMENT_REASONS.items())
            + ".",
        ),
        Column("problem", "VARCHAR", "Why the row cannot be used; NULL where it can."),
    ),
)

TRAINING = Table(
    "training",
    "One row per optimizer step of each model, but for those that a rollback discarded.",
    (
        Column("step", "BIGINT", "Optimizer step, counted within the model."),
        Column("model", "VARCHAR", "Which model took it: proxy, reference or lookahead."),
        Column("loss", "FLOAT", "Training loss of the step, nats per token."),
        Column("learning_rate", "FLOAT", "Learning rate of the step."),
        Column("gradient_norm", "FLOAT", "Global L2 norm of the gradient, before clipping."),
        Column("tokens_per_second", "FLOAT", "Training throughput, tokens per second."),
    ),
)

EVALUATION = Table(
    "evaluation",
    "What a small model learned from each arm's data: one row per arm, seed and token budget.",
    (
        Column(
            "arm",
            "VARCHAR",
            "What the model trained on: curated (this run's dataset), random (a sample of the pool "
            "of the same size), pool (the whole pool), or the folder of another run.",
        ),
        Column("seed", "BIGINT", "Seed of the model's first weights and of the order of its data."),
        Column("tokens", "BIGINT", "Tokens the model was trained on, repetition included."),
        Column(
            "target_bits_per_byte",
            "DOUBLE",
            "Loss on the held-out target test, bits per UTF-8 byte; lower is better.",
        ),
        Column(
            "general_bits_per_byte",
            "DOUBLE",
            "Loss on a held-out sample of the pool, bits per UTF-8 byte; lower is better.",
        ),
        Column("target_loss", "DOUBLE", "Loss on the target test, nats per token."),
        Column("general_loss", "DOUBLE", "Loss on the sample of the pool, nats per token."),
        Column("seconds", "DOUBLE", "Wall-clock seconds of training."),
    ),
)
"""Made by `curate evaluate` alone, so not one of `TABLES`."""

TABLES: tuple[Table, ...] = (RUN, SHARD, ROUND, DECISION, DOCUMENT, TRAINING)
"""Every table of the log, in the order they are created."""


def quote(name: str) -> str:
    """Any text as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Any text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def stored_names(metadata_columns: Sequence[str]) -> list[str]:
    """The names under which metadata columns are stored in `document`, in the same order.

    DuckDB compares names without regard to case, so a column that meets a built-in one, or an
    earlier metadata column, gets the prefix `pool_`, as often as it takes to be unique.
    """
    taken = {column.name for column in DOCUMENT.columns}
    names = []
    for name in metadata_columns:
        stored = name or "pool_"
        while stored.lower() in taken:
            stored = f"pool_{stored}"
        taken.add(stored.lower())
        names.append(stored)
    return names


def document_table(names: Sequence[str], sources: Sequence[str], types: Sequence[str]) -> Table:
    """The `document` table with metadata columns: stored names, pool names, DuckDB types."""
    metadata = tuple(
        Column(name, kind, f"Metadata of the pool: its column {source}.")
        for name, source, kind in zip(names, sources, types, strict=True)
    )
    return Table(DOCUMENT.name, DOCUMENT.comment, DOCUMENT.columns + metadata)


def create_table(table: Table) -> list[str]:
    """The statements that create a table and explain it."""
    columns = ", ".join(f"{quote(column.name)} {column.type}" for column in table.columns)
    return [
        f"CREATE TABLE {quote(table.name)} ({columns})",
        f"COMMENT ON TABLE {quote(table.name)} IS {literal(table.comment)}",
        *comment_columns(table.name, table.columns),
    ]


def comment_columns(name: str, columns: Iterable[Column]) -> list[str]:
    """The statements that explain the columns of a table or of a view."""
    return [
        f"COMMENT ON COLUMN {quote(name)}.{quote(column.name)} IS {literal(column.comment)}"
        for column in columns
    ]
