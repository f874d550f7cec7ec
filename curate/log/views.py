"""The questions people ask of a selection log, as views stored in the log itself.

What was kept and what was dropped, how the keep rate differs between sources, how scores are
spread, and why one document ended where it did. They live in the database as SQL so that every
DuckDB shell answers them, with or without this program. Table names in the views carry no database
name, so the log may be opened under any name; `why` is a macro, so it looks in the current one.
"""

from __future__ import annotations

from curate.log.schema import Column, Table, comment_columns, literal, quote

MAXIMUM_VALUES = 1000
"""A metadata column with more distinct values than this gets no keep_rate view."""

HISTOGRAM_BINS = 40

_KEEP_RATE = (
    Column("value", "", "Value of the metadata column; NULL for documents without one."),
    Column("documents", "BIGINT", "Pool documents with this value."),
    Column("documents_kept", "BIGINT", "Those of them in the curated dataset."),
    Column("document_keep_rate", "DOUBLE", "documents_kept / documents."),
    Column("tokens", "BIGINT", "Tokens of the pool documents with this value."),
    Column(
        "tokens_kept",
        "BIGINT",
        "Tokens kept of them, each counted once whatever its weight; at token granularity labels.",
    ),
    Column("token_keep_rate", "DOUBLE", "tokens_kept / tokens."),
    Column("share_of_pool_tokens", "DOUBLE", "tokens / all tokens of the pool."),
    Column("share_of_kept_tokens", "DOUBLE", "tokens_kept / all tokens kept."),
    Column(
        "enrichment",
        "DOUBLE",
        "share_of_kept_tokens / share_of_pool_tokens: how many times more frequent than before.",
    ),
)

_HISTOGRAM = (
    Column("round", "INTEGER", "Round of the decisions."),
    Column("bin_low", "DOUBLE", "Lower edge of the bin, in score units; belongs to the bin."),
    Column("bin_high", "DOUBLE", "Upper edge; belongs to the bin only in the last one."),
    Column("documents", "BIGINT", "Decisions of the round with a finite score in the bin."),
    Column("documents_kept", "BIGINT", "Those of them that kept the document."),
)


_QUARANTINED = (
    Column("shard_id", "INTEGER", "Number of the shard in the pool, from 0."),
    Column("uri", "VARCHAR", "Path or address of the file."),
    Column("row", "BIGINT", "Row within the shard, from 0; NULL where it is the whole shard."),
    Column("rows", "BIGINT", "Rows that are lost; NULL where damage hides how many they are."),
    Column("problem", "VARCHAR", "Why it cannot be read."),
)

_QUARANTINED_ROWS = """
    SELECT shard_id, uri, NULL::BIGINT AS row, rows, error AS problem
    FROM shard WHERE status = 'quarantined'
    UNION ALL
    SELECT d.shard_id, s.uri, d.row, 1, d.problem
    FROM document AS d JOIN shard AS s USING (shard_id) WHERE d.problem IS NOT NULL
    ORDER BY shard_id, row
"""


def create_views(document: Table, few_valued: list[str]) -> list[str]:
    """The statements that create and explain all views.

    `few_valued` names the metadata columns, as stored, that get a keep_rate view.
    """
    statements = [
        *_create_view(
            "kept",
            "SELECT * FROM document WHERE kept",
            "The documents of the curated dataset.",
            document.columns,
        ),
        *_create_view(
            "dropped",
            "SELECT * FROM document WHERE NOT kept",
            "The pool rows that are not in the curated dataset.",
            document.columns,
        ),
        *_create_view(
            "quarantined",
            _QUARANTINED_ROWS,
            "What of the pool cannot be read: whole shards, and single rows of sound ones.",
            _QUARANTINED,
        ),
    ]
    for name in few_valued:
        statements += _create_view(
            f"keep_rate_by_{name}",
            _keep_rate(name),
            f"How much of the pool was kept for each value of {name}, largest first.",
            _KEEP_RATE,
        )
    statements += _create_view(
        "score_histogram",
        _histogram(),
        f"Scores of each round in {HISTOGRAM_BINS} equal bins between its lowest and highest.",
        _HISTOGRAM,
    )
    return statements + _create_why()


def _create_view(name: str, query: str, comment: str, columns: tuple[Column, ...]) -> list[str]:
    return [
        f"CREATE VIEW {quote(name)} AS {query}",
        f"COMMENT ON VIEW {quote(name)} IS {literal(comment)}",
        *comment_columns(name, columns),
    ]


def _keep_rate(name: str) -> str:
    return f"""
    WITH by_value AS (
        SELECT d.{quote(name)} AS value,
            count(*) AS documents,
            count(*) FILTER (d.kept) AS documents_kept,
            coalesce(sum(d.tokens), 0)::BIGINT AS tokens,
            coalesce(sum(d.tokens_kept), 0)::BIGINT AS tokens_kept
        FROM document AS d GROUP BY d.{quote(name)}
    ), shares AS (
        SELECT *,
            tokens / nullif(sum(tokens) OVER (), 0) AS share_of_pool_tokens,
            tokens_kept / nullif(sum(tokens_kept) OVER (), 0) AS share_of_kept_tokens
        FROM by_value
    )
    SELECT value, documents, documents_kept,
        documents_kept / documents AS document_keep_rate,
        tokens, tokens_kept,
        tokens_kept / nullif(tokens, 0) AS token_keep_rate,
        share_of_pool_tokens, share_of_kept_tokens,
        share_of_kept_tokens / nullif(share_of_pool_tokens, 0) AS enrichment
    FROM shares ORDER BY tokens DESC, documents DESC, value
    """


def _histogram() -> str:
    bins = HISTOGRAM_BINS
    return f"""
    WITH finite AS (
        SELECT round, score::DOUBLE AS score, kept FROM decision WHERE isfinite(score)
    ), span AS (
        SELECT round, min(score) AS low, (max(score) - min(score)) / {bins} AS width
        FROM finite GROUP BY round
    ), counted AS (
        SELECT f.round,
            least({bins - 1}, coalesce(floor((f.score - s.low) / nullif(s.width, 0)), 0)) AS bin,
            count(*) AS documents,
            count(*) FILTER (f.kept) AS documents_kept
        FROM finite AS f JOIN span AS s ON f.round = s.round GROUP BY ALL
    )
    SELECT s.round,
        s.low + s.width * b.bin AS bin_low,
        s.low + s.width * (b.bin + 1) AS bin_high,
        coalesce(c.documents, 0) AS documents,
        coalesce(c.documents_kept, 0) AS documents_kept
    FROM span AS s
    JOIN range({bins}) AS b(bin) ON s.width > 0 OR b.bin = 0
    LEFT JOIN counted AS c ON c.round = s.round AND c.bin = b.bin
    ORDER BY s.round, b.bin
    """


def _figure(column: str, other: str = "") -> str:
    """SQL for a number as text: four digits, more only where `other` would read the same."""
    short = f"format('{{:.4g}}', {column}::DOUBLE)"
    if not other:
        return short
    exact = f"format('{{:.9g}}', {column}::DOUBLE)"
    same = f"{short} = format('{{:.4g}}', {other}::DOUBLE) AND {column} <> {other}"
    return f"CASE WHEN {same} THEN {exact} ELSE {short} END"


_BY_TOKEN = "(SELECT count(*) > 0 FROM run WHERE granularity = 'token')"
"""SQL: a score is then a mean, but the cut-off is that of tokens."""


def _round_explanation() -> str:
    excess = (
        f"'excess loss ' || {_figure('r.excess_loss')} || ' nats/token (proxy ' || "
        f"{_figure('r.proxy_loss')} || ', reference ' || {_figure('r.reference_loss')} || '); '"
    )
    comparison = (
        "CASE WHEN r.score > r.threshold THEN 'above' WHEN r.score = r.threshold THEN 'at' "
        "ELSE 'below' END"
    )
    proxy = f"'proxy loss ' || {_figure('r.proxy_loss')} || ' nats/token; '"
    ngram = f"{_figure('r.ngram_vote')} || ' of it from an n-gram classifier'"
    redundancy = f"{_figure('r.redundancy_vote')} || ' of it for redundancy'"
    noise = f"{_figure('r.noise')} || ' of it noise'"
    vote = f"' (' || nullif(concat_ws(', ', {ngram}, {redundancy}, {noise}), '') || ')'"
    cut_off = (
        f"'score ' || {_figure('r.score', 'r.threshold')} || coalesce({vote}, '') || ' is ' || "
        f"{comparison} || ' the cut-off ' || {_figure('r.threshold', 'r.score')}"
    )
    score = f"'score ' || {_figure('r.score')} || coalesce({vote}, '')"
    alone = f"{score} || CASE WHEN r.kept THEN '' ELSE '; its block kept nothing' END"
    tokens = (
        f"'mean score ' || {_figure('r.score')} || '; ' || r.tokens_kept || ' of its ' || r.tokens "
        f"|| ' tokens at or above the cut-off ' || {_figure('r.threshold')}"
    )
    return f"""
    'Round ' || r.round || ': ' || CASE WHEN r.tokens_read < r.tokens
            THEN 'read ' || r.tokens_read || ' of its tokens; ' ELSE '' END
        || coalesce({excess}, {proxy}, '')
        || coalesce(CASE WHEN {_BY_TOKEN} THEN {tokens} END, {cut_off}, {alone}, 'no score')
        || CASE WHEN r.kept THEN ': kept in this round.'
            WHEN r.score = r.threshold AND NOT {_BY_TOKEN}
            THEN ', where equal scores drew for the last places: not kept in this round.'
            ELSE ': not kept in this round.' END
    """


def _final_explanation() -> str:
    plural = "CASE o.rounds WHEN 1 THEN ' round' ELSE ' rounds' END"
    rounds = f"o.rounds_kept || ' of ' || o.rounds || {plural}"
    weight = f"'Kept with weight ' || coalesce({_figure('o.weight')}, 'unknown')"
    mean = f"CASE WHEN {_BY_TOKEN} THEN ' (the share of its tokens that are labels)' ELSE "
    mean += "' (the mean over kept tokens is 1)' END"
    return f"""
    CASE o.reason
        WHEN 'selected' THEN {weight} || {mean} || ': kept in '
            || {rounds} || ', and inside the token budget.'
        WHEN 'filled' THEN {weight} || ': no round that decides kept it, but it has one of the '
            || 'best scores among the rest, which fill the token budget.'
        WHEN 'over_budget' THEN 'Dropped: kept in ' || {rounds}
            || ', but the token budget was spent on documents with higher weight or score.'
        WHEN 'overruled' THEN 'Dropped: kept in ' || {rounds}
            || ', but not in the one that decides.'
        WHEN 'never_selected' THEN CASE WHEN o.rounds = 0
            THEN 'Dropped: no round visited it.'
            ELSE 'Dropped: no round that visited it kept it (' || o.rounds || ').'
            END
        WHEN 'empty' THEN 'Dropped: the document has no tokens.'
        WHEN 'quarantined' THEN 'Quarantined: the row cannot be used (' || o.problem || ').'
        ELSE CASE WHEN o.kept THEN {weight} ELSE 'Dropped' END
            || ': ' || coalesce(o.reason, 'no reason was recorded') || '.'
    END
    """


def _create_why() -> list[str]:
    decision = "r.round, r.proxy_loss, r.reference_loss, r.excess_loss, r.score, r.threshold"
    outcome = "o.weight AS document_weight, o.kept AS document_kept, o.reason AS document_reason"
    place = "o.document_id, o.shard_id, o.row, o.tokens, o.bytes"
    # Plain subqueries: DuckDB 1.4 cannot read back the CTEs of a macro that 2.0 has stored.
    visits = "(SELECT count(*) FROM decision AS c WHERE c.document_id = id"
    query = f"""
    SELECT {place}, {decision}, r.kept, r.reason, {outcome},
        {_round_explanation()} AS explanation
    FROM (SELECT * FROM decision AS c WHERE c.document_id = id) AS r
    CROSS JOIN (SELECT * FROM document AS d WHERE d.document_id = id) AS o
    UNION ALL
    SELECT {place}, NULL, NULL, NULL, NULL, NULL, NULL, o.kept, o.reason, {outcome},
        {_final_explanation()} AS explanation
    FROM (
        SELECT document_id, shard_id, row, tokens, bytes, weight, kept, reason, problem,
            {visits}) AS rounds, {visits} AND c.kept) AS rounds_kept
        FROM document AS d WHERE d.document_id = id
    ) AS o
    ORDER BY round NULLS LAST
    """
    comment = (
        "Why a document was kept or dropped: one row per decision, then one (round NULL) for the "
        "outcome; the column explanation says it in words."
    )
    return [
        f"CREATE MACRO why(id) AS TABLE {query}",
        f"COMMENT ON MACRO TABLE why IS {literal(comment)}",
    ]
