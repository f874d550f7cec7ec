"""The records that stages exchange: one source of truth for names, types and units.

Shapes on disk are Arrow schemas; every fragment under `state/` and every table of the selection log
is written from one of them. Losses are mean nats per token. Higher score and higher excess loss
mean keep.
"""

from __future__ import annotations

import pyarrow as pa

ROW_BITS = 40
"""Low bits of a document id that hold the row; the shard sits above them."""

OUTPUT_COLUMNS: tuple[pa.Field, ...] = (
    pa.field("curate_weight", pa.float32()),
    pa.field("curate_score", pa.float32()),
    pa.field("curate_excess_loss", pa.float32()),
    pa.field("curate_round", pa.int32()),
)
"""Columns appended to every kept row, after all of its own."""

TOKEN_COLUMNS: tuple[pa.Field, ...] = (
    pa.field("input_ids", pa.list_(pa.int32())),
    pa.field("loss_mask", pa.list_(pa.bool_())),
)
"""Columns appended after those at token granularity; mask[i] says whether token i is a label."""


def output_columns(granularity: str) -> tuple[pa.Field, ...]:
    """The columns that a run of this granularity appends."""
    return OUTPUT_COLUMNS + (TOKEN_COLUMNS if granularity == "token" else ())


DOCUMENT = pa.schema(
    [
        pa.field("document_id", pa.int64()),
        pa.field("shard_id", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("problem", pa.string()),
    ]
)
"""One row per pool row, in pool order; the user's metadata columns follow these.

`problem` says why a row cannot be used (it then has no tokens), and is null for all others.
"""

DECISION = pa.schema(
    [
        pa.field("document_id", pa.int64()),
        pa.field("round", pa.int32()),
        pa.field("tokens", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("tokens_read", pa.int64()),
        pa.field("proxy_loss", pa.float32()),
        pa.field("reference_loss", pa.float32()),
        pa.field("excess_loss", pa.float32()),
        pa.field("ngram_vote", pa.float32()),
        pa.field("redundancy_vote", pa.float32()),
        pa.field("noise", pa.float32()),
        pa.field("score", pa.float32()),
        pa.field("threshold", pa.float32()),
        pa.field("kept", pa.bool_()),
        pa.field("tokens_kept", pa.int64()),
    ]
)
"""One row per document per round that visited it; losses are null for methods without models.

`tokens_read` is how many of its tokens the losses are means of. `ngram_vote` and `redundancy_vote`
are parts of the score, zero or less, from an n-gram classifier and for what the proxy has learned;
null where none votes. `noise` is the part of it that follows from the seed and the document alone;
null where there is none. `tokens_kept` is all of a kept document's tokens, or at token granularity
those that are labels.
"""

MASK = pa.schema(
    [
        pa.field("document_id", pa.int64()),
        pa.field("round", pa.int32()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.bool_())),
    ]
)
"""Token granularity: which tokens a round kept, one row per document with at least one."""

SELECTION = pa.schema(
    [
        pa.field("document_id", pa.int64()),
        pa.field("weight", pa.float32()),
        pa.field("score", pa.float32()),
        pa.field("excess_loss", pa.float32()),
        pa.field("round", pa.int32()),
        pa.field("kept", pa.bool_()),
        pa.field("tokens_kept", pa.int64()),
        pa.field("reason", pa.string()),
    ]
)
"""The outcome for every pool row, in document id order. `weight` is 0 for dropped rows."""

ROUND = pa.schema(
    [
        pa.field("round", pa.int32()),
        pa.field("method", pa.string()),
        pa.field("lambda", pa.float32()),
        pa.field("keep_ratio", pa.float32()),
        pa.field("proxy_step", pa.int64()),
        pa.field("reference_steps", pa.int64()),
        pa.field("target_loss_proxy", pa.float32()),
        pa.field("target_loss_reference", pa.float32()),
        pa.field("target_separation", pa.float32()),
        pa.field("train_loss", pa.float32()),
        pa.field("threshold", pa.float32()),
        pa.field("documents_scored", pa.int64()),
        pa.field("documents_kept", pa.int64()),
        pa.field("tokens_scored", pa.int64()),
        pa.field("tokens_kept", pa.int64()),
        pa.field("seconds", pa.float64()),
    ]
)
"""One row per round: proxy steps on a stretch of the pool, or a scoring of all of it."""

TRAINING = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("model", pa.string()),
        pa.field("loss", pa.float32()),
        pa.field("learning_rate", pa.float32()),
        pa.field("gradient_norm", pa.float32()),
        pa.field("tokens_per_second", pa.float32()),
    ]
)
"""One row per optimizer step; `step` counts within `model` (proxy, reference, lookahead)."""

SHARD = pa.schema(
    [
        pa.field("shard_id", pa.int32()),
        pa.field("uri", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("fingerprint", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("documents", pa.int64()),
        pa.field("tokens", pa.int64()),
    ]
)
"""One row per pool shard. `rows` counts all rows, `documents` those with at least one token."""


def make_document_id(shard_id: int, row: int) -> int:
    """The one stable value for (shard, row): `shard_id * 2**40 + row`."""
    return (shard_id << ROW_BITS) | row


def split_document_id(document_id: int) -> tuple[int, int]:
    """Inverse of `make_document_id`: (shard_id, row)."""
    return document_id >> ROW_BITS, document_id & ((1 << ROW_BITS) - 1)
