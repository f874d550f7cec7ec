"""What must hold of every row of the log, as SQL.

Each rule is a condition on a row and the words for a row that breaks it. All rules of a table are
counted in one scan; DuckDB spills where it must, and only counts reach Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curate.log.attach import AttachedLog
from curate.records import ROW_BITS
from curate.verification.manifest import Manifest

KEPT_REASONS = ("selected", "filled")
UNREAD_REASONS = ("empty", "quarantined")
DROPPED_REASONS = ("over_budget", "overruled", "never_selected", *UNREAD_REASONS)
_EVER_KEPT_REASONS = ("selected", "over_budget", "overruled")


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that every row fulfils; `broken` says what is wrong with one that does not."""

    condition: str
    broken: str


def document_rules(*, by_token: bool) -> list[Rule]:
    """Rules of `document` (d) with what its decisions (v, see `create_visits`) came to."""
    shared = [
        Rule(_place("d"), "whose document_id is not its shard and row"),
        Rule(
            f"d.kept AND d.reason IN {KEPT_REASONS} OR NOT d.kept AND d.reason IN "
            f"{DROPPED_REASONS}",
            "whose kept and reason disagree",
        ),
        Rule(
            f"(d.reason IN {UNREAD_REASONS}) = (d.tokens = 0)", "whose reason and tokens disagree"
        ),
        Rule(
            "(d.reason = 'quarantined') = (d.problem IS NOT NULL)",
            "whose reason and problem disagree",
        ),
        Rule("d.tokens >= 0 AND d.bytes >= 0", "of a negative size"),
        Rule("v.visits > 0 OR NOT d.kept", "that are kept, but that no round visited"),
        Rule(
            f"CASE WHEN d.reason IN {_EVER_KEPT_REASONS} THEN coalesce(v.ever_kept, false) "
            "WHEN d.reason = 'never_selected' THEN NOT coalesce(v.ever_kept, false) "
            f"WHEN d.reason IN {UNREAD_REASONS} THEN v.visits IS NULL ELSE true END",
            "whose reason is not what its decisions say",
        ),
    ]
    if by_token:
        return [
            *shared,
            Rule(
                "d.tokens_kept BETWEEN 0 AND d.tokens AND d.kept = (d.tokens_kept > 0)",
                "whose tokens_kept and kept disagree",
            ),
            Rule(
                "d.weight = CASE WHEN d.tokens > 0 THEN d.tokens_kept / d.tokens ELSE 0 END::FLOAT",
                "whose weight is not the share of its tokens that are kept",
            ),
            Rule(
                "d.tokens_kept = coalesce(v.last_tokens_kept, 0)",
                "whose tokens_kept are not those of its last decision",
            ),
        ]
    return [
        *shared,
        Rule(
            "d.tokens_kept = CASE WHEN d.kept THEN d.tokens ELSE 0 END",
            "whose tokens_kept and kept disagree",
        ),
        Rule(
            "CASE WHEN d.kept THEN isfinite(d.weight) AND d.weight > 0 ELSE d.weight = 0 END",
            "whose weight and kept disagree",
        ),
    ]


def decision_rules(*, by_token: bool) -> list[Rule]:
    """Rules of `decision` (c) joined with the `document` (d) and the `round` (r) that it names."""
    kept = (
        "c.tokens_kept BETWEEN 0 AND c.tokens AND c.kept = (c.tokens_kept > 0)"
        if by_token
        else "c.tokens_kept = CASE WHEN c.kept THEN c.tokens ELSE 0 END"
    )
    return [
        Rule("d.document_id IS NOT NULL", "of documents that do not exist"),
        Rule("r.round IS NOT NULL", "of rounds that do not exist"),
        Rule(_place("c"), "whose document_id is not its shard and row"),
        Rule(
            "d.document_id IS NULL OR c.tokens = d.tokens AND c.bytes = d.bytes",
            "of another size than the document's",
        ),
        Rule("c.tokens_read BETWEEN 1 AND c.tokens", "that read more tokens than there are"),
        Rule(
            "c.reason = CASE WHEN c.kept THEN 'above_threshold' ELSE 'below_threshold' END",
            "whose kept and reason disagree",
        ),
        Rule(kept, "whose tokens_kept and kept disagree"),
    ]


def _place(table: str) -> str:
    return (
        f"{table}.document_id = ({table}.shard_id::BIGINT << {ROW_BITS}) + {table}.row "
        f"AND {table}.row BETWEEN 0 AND {(1 << ROW_BITS) - 1}"
    )


def broken_rows(rules: Sequence[Rule], table: str, source: str) -> str:
    """One row: for each rule, how many rows break it and the lowest document id of these."""
    columns = ", ".join(
        f"count(*) FILTER (({rule.condition}) IS NOT TRUE)::BIGINT, "
        f"min({table}.document_id) FILTER (({rule.condition}) IS NOT TRUE)::BIGINT"
        for rule in rules
    )
    return f"SELECT {columns} FROM {source}"


def create_visits(log: AttachedLog, manifest: Manifest) -> str:
    """What each document's decisions came to: table `visits`.

    Scores are standardized within their round as the run did it; final scores and excess losses
    are means of a document's visits, so they lie between the lowest and the highest.
    """
    scales = ", ".join(
        f"({number}, {one.score_mean!r}::DOUBLE, {one.score_std!r}::DOUBLE)"
        for number, one in enumerate(manifest.rounds)
    )
    return f"""
    CREATE TEMP TABLE visits AS
    SELECT document_id, count(*) AS visits, bool_or(kept) AS ever_kept,
        arg_max(tokens_kept, c.round) AS last_tokens_kept,
        min(c.round) AS first_round, max(c.round) AS last_round,
        min(excess_loss) AS excess_low, max(excess_loss) AS excess_high,
        min({_STANDARDIZED}) AS score_low, max({_STANDARDIZED}) AS score_high
    FROM {log.table("decision")} AS c
    LEFT JOIN (VALUES {scales}) AS s(round, mean, deviation) ON s.round = c.round
    GROUP BY document_id
    """


_STANDARDIZED = "CASE WHEN deviation > 0 THEN (score - mean) / deviation ELSE 0 END::DOUBLE"


def create_kept(log: AttachedLog) -> str:
    """The kept documents with their place in the part of their shard: table `kept`."""
    return f"""
    CREATE TEMP TABLE kept AS
    SELECT d.document_id, d.shard_id, d.row, d.tokens, d.tokens_kept, d.weight,
        v.* EXCLUDE (document_id, visits, ever_kept, last_tokens_kept),
        row_number() OVER (PARTITION BY d.shard_id ORDER BY d.row) - 1 AS place
    FROM {log.table("document")} AS d LEFT JOIN visits AS v USING (document_id)
    WHERE d.kept ORDER BY shard_id, place
    """


KEPT_ROWS = """
SELECT coalesce(document_id, -1)::BIGINT AS document_id, coalesce(row, -1)::BIGINT AS row,
    coalesce(tokens, -1)::BIGINT AS tokens, coalesce(tokens_kept, -1)::BIGINT AS tokens_kept,
    weight::FLOAT AS weight,
    first_round::INTEGER AS first_round, last_round::INTEGER AS last_round,
    excess_low::DOUBLE AS excess_low, excess_high::DOUBLE AS excess_high,
    score_low::DOUBLE AS score_low, score_high::DOUBLE AS score_high
FROM kept WHERE shard_id = ? AND place >= ? AND place < ? ORDER BY place
"""


def shard_counts(log: AttachedLog) -> str:
    """Each shard of `shard` or `document`: what is said of it, what its documents come to."""
    return f"""
    WITH counted AS (
        SELECT shard_id, count(*) AS documents, count(*) FILTER (tokens > 0) AS full_documents,
            sum(tokens) AS tokens, sum(bytes) AS text_bytes,
            count(*) FILTER (kept) AS kept
        FROM {log.table("document")} GROUP BY shard_id
    )
    SELECT coalesce(s.shard_id, c.shard_id)::INTEGER AS shard_id, s.uri::VARCHAR AS uri,
        s.bytes::BIGINT AS bytes, s.fingerprint::VARCHAR AS fingerprint,
        CASE WHEN s.status = 'quarantined' THEN 0 ELSE s.rows END::BIGINT AS rows,
        s.documents::BIGINT AS documents, s.tokens::BIGINT AS tokens,
        coalesce(c.documents, 0)::BIGINT AS found_rows,
        coalesce(c.full_documents, 0)::BIGINT AS found_documents,
        coalesce(c.tokens, 0)::BIGINT AS found_tokens,
        coalesce(c.text_bytes, 0)::BIGINT AS found_text_bytes,
        coalesce(c.kept, 0)::BIGINT AS found_kept
    FROM {log.table("shard")} AS s FULL JOIN counted AS c ON c.shard_id = s.shard_id
    ORDER BY 1
    """


def round_counts(log: AttachedLog) -> str:
    """Each round of `round`: what is said of it, and what its decisions come to."""
    return f"""
    WITH counted AS (
        SELECT round, count(*) AS documents_scored, count(*) FILTER (kept) AS documents_kept,
            sum(tokens) AS tokens_scored, sum(tokens_kept) AS tokens_kept
        FROM {log.table("decision")} GROUP BY round
    )
    SELECT r.round::INTEGER AS round,
        {", ".join(f"r.{name}::BIGINT AS {name}" for name in ROUND_COUNTS)},
        {", ".join(f"coalesce(c.{name}, 0)::BIGINT AS found_{name}" for name in ROUND_COUNTS)}
    FROM {log.table("round")} AS r LEFT JOIN counted AS c ON c.round = r.round
    ORDER BY r.round
    """


ROUND_COUNTS = ("documents_scored", "documents_kept", "tokens_scored", "tokens_kept")


def totals(log: AttachedLog) -> str:
    """One row: what `document` and `decision` come to."""
    return f"""
    SELECT count(*)::BIGINT AS pool_documents, coalesce(sum(tokens), 0)::BIGINT AS pool_tokens,
        count(*) FILTER (kept)::BIGINT AS kept_documents,
        coalesce(sum(tokens_kept), 0)::BIGINT AS kept_tokens,
        (count(*) - count(DISTINCT document_id))::BIGINT AS repeated_documents,
        (SELECT count(*) FROM {log.table("decision")})::BIGINT AS decisions,
        (SELECT count(*) FROM (
            SELECT 1 FROM {log.table("decision")} GROUP BY document_id, round HAVING count(*) > 1
        ))::BIGINT AS repeated_decisions,
        sum(weight::DOUBLE * tokens_kept) / sum(tokens_kept) AS mean_weight
    FROM {log.table("document")}
    """


def run_row(log: AttachedLog) -> str:
    """What `run` says of the run."""
    return f"""
    SELECT run_id::VARCHAR AS run_id, config::VARCHAR AS config, seed::BIGINT AS seed,
        method::VARCHAR AS method, granularity::VARCHAR AS granularity, keep_ratio::DOUBLE AS keep,
        pool_documents::BIGINT AS pool_documents, pool_tokens::BIGINT AS pool_tokens,
        kept_documents::BIGINT AS kept_documents, kept_tokens::BIGINT AS kept_tokens
    FROM {log.table("run")}
    """
