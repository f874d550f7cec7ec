"""The SQL of `compare.py` over attached logs.

Each log becomes one temporary table `outcome_N` with a row per document; all that is said about
runs and pairs of runs is read from these. Counts, sums and ranks are integers and scores are
rounded to 1e-9 of a standard deviation, so the order in which threads add does not show.

Runs with tokenizers of their own count the same document differently. Where two runs are set side
by side, what the second kept of a document is counted in tokens of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curate.log.attach import AttachedLog
from curate.log.schema import quote
from curate.log.views import MAXIMUM_VALUES


@dataclass(frozen=True, slots=True)
class Grouping:
    """A metadata column to break kept tokens down by, and a log that has it."""

    log: AttachedLog
    column: str


def outcome(log: AttachedLog) -> str:
    """The temporary table with the outcome of every document of a log."""
    return f"outcome_{log.number}"


def create_outcome(
    log: AttachedLog, *, has_tokens_kept: bool, average: str, rounds_per_pass: int
) -> str:
    """The statement that makes `outcome`, once per log.

    `score` is what the final selection ranked the document by: the score standardized within its
    round, averaged over the rounds that visited the document as the run averaged its decisions;
    NULL where no round did. `percentile` is the share (0 to 1) of scored documents with a lower
    score, counting half of those with the same.

    Args:
        log: the log.
        has_tokens_kept: whether its documents say how many of their tokens were kept.
        average: `blade.average` of its run; what is none of its values counts as last.
        rounds_per_pass: of its run, which weighs decisions by pass.
    """
    tokens_kept = "d.tokens_kept" if has_tokens_kept else "d.tokens"
    decision = log.table("decision")
    visit, merit = {
        "uniform": ("NULL", "avg(z)"),
        "linear": (f"c.round // {rounds_per_pass} + 1", _LINEAR),
    }.get(average, ("c.round", "arg_max(z, visit)"))
    return f"""
    CREATE TEMP TABLE {outcome(log)} AS
    WITH scale AS (
        SELECT round, avg(score::DOUBLE) AS mean,
            CASE WHEN min(score) < max(score) THEN stddev_pop(score::DOUBLE) END AS deviation
        FROM {decision} WHERE isfinite(score) GROUP BY round
    ), visits AS (
        SELECT c.document_id, {visit} AS visit,
            coalesce((c.score::DOUBLE - s.mean) / s.deviation, 0) AS z
        FROM {decision} AS c JOIN scale AS s ON s.round = c.round WHERE isfinite(c.score)
    ), scored AS (
        SELECT document_id, round({merit}, 9) AS score FROM visits GROUP BY document_id
    ), ranked AS (
        SELECT *, (rank() OVER merit + count(*) OVER merit - 1) / (2 * count(*) OVER ())
            AS percentile
        FROM scored WINDOW merit AS (ORDER BY score)
    )
    SELECT d.document_id, d.tokens::BIGINT AS tokens, coalesce(d.kept, false) AS kept,
        CASE WHEN d.kept THEN coalesce({tokens_kept}, 0)::BIGINT ELSE 0 END AS tokens_kept,
        r.score, r.percentile::DOUBLE AS percentile
    FROM {log.table("document")} AS d LEFT JOIN ranked AS r ON r.document_id = d.document_id
    """


_LINEAR = "sum(z * visit ORDER BY visit) / sum(visit)"


def settings(log: AttachedLog) -> str:
    """One row: what the run was asked for."""
    return f"""
    SELECT run_id::VARCHAR AS run_id, method::VARCHAR AS method,
        granularity::VARCHAR AS granularity, keep_ratio::DOUBLE AS keep, seed::BIGINT AS seed
    FROM {log.table("run")} LIMIT 1
    """


def config(log: AttachedLog) -> str:
    """One row: the resolved config as text."""
    return f"SELECT config::VARCHAR AS config FROM {log.table('run')} LIMIT 1"


def count_rounds(log: AttachedLog) -> str:
    """One row: how many rounds decided, a final scoring included."""
    return f"SELECT count(*) AS rounds FROM {log.table('round')}"


def totals(log: AttachedLog) -> str:
    """One row: documents and tokens of the pool and of what was kept."""
    return f"""
    SELECT count(*) AS pool_documents, coalesce(sum(tokens), 0) AS pool_tokens,
        count(*) FILTER (kept) AS kept_documents, coalesce(sum(tokens_kept), 0) AS kept_tokens
    FROM {outcome(log)}
    """


def shared(first: AttachedLog, second: AttachedLog) -> str:
    """One row: what two runs kept in common, and the second's figures in tokens of the first.

    Of a document of which both kept parts, the log knows how many tokens but not which: they share
    at most the fewer of the two, and at least what does not fit side by side.
    """
    return f"""
    WITH both_runs AS (
        SELECT a.tokens AS tokens, a.kept AS kept, a.tokens_kept AS tokens_kept,
            b.tokens AS other_tokens, b.kept AS other_kept,
            {_in_tokens_of("a", "b")} AS other_tokens_kept
        FROM {outcome(second)} AS b LEFT JOIN {outcome(first)} AS a USING (document_id)
    )
    SELECT coalesce(sum(tokens), 0) AS common_tokens,
        coalesce(sum(coalesce(tokens, other_tokens)), 0) AS second_pool_tokens,
        coalesce(sum(other_tokens_kept), 0) AS second_kept_tokens,
        count(*) FILTER (tokens <> other_tokens) AS documents_counted_differently,
        coalesce(sum(least(tokens_kept, other_tokens_kept)) FILTER (tokens IS NOT NULL), 0)
            AS shared_tokens,
        coalesce(sum(greatest(0, tokens_kept + other_tokens_kept - tokens))
            FILTER (tokens IS NOT NULL), 0) AS shared_tokens_at_least,
        count(*) FILTER (kept AND other_kept) AS documents_kept_by_both,
        count(*) FILTER (kept AND NOT other_kept) AS documents_kept_by_first_only,
        count(*) FILTER (other_kept AND NOT kept) AS documents_kept_by_second_only
    FROM both_runs
    """


def _in_tokens_of(first: str, run: str) -> str:
    """What a run kept of a document, in tokens of the first run where that knows the document."""
    scaled = f"round({run}.tokens_kept::DOUBLE * {first}.tokens / {run}.tokens)::BIGINT"
    unlike = f"{first}.tokens <> {run}.tokens AND {run}.tokens > 0"
    return f"CASE WHEN {unlike} THEN {scaled} ELSE {run}.tokens_kept END"


def rank_sums(first: AttachedLog, second: AttachedLog) -> str:
    """One row: sums over the documents that both scored of twice their ranks, ties averaged.

    Twice an average rank is the lowest plus the highest rank of those that tie: an integer.
    """
    return f"""
    WITH ranked AS (
        SELECT rank() OVER x + count(*) OVER x AS x, rank() OVER y + count(*) OVER y AS y
        FROM {outcome(first)} AS a JOIN {outcome(second)} AS b USING (document_id)
        WHERE a.score IS NOT NULL AND b.score IS NOT NULL
        WINDOW x AS (ORDER BY a.score), y AS (ORDER BY b.score)
    )
    SELECT count(*) AS n, sum(x) AS x, sum(y) AS y,
        sum(x::HUGEINT * x) AS xx, sum(y::HUGEINT * y) AS yy, sum(x::HUGEINT * y) AS xy
    FROM ranked
    """


def disagreements(keeper: AttachedLog, other: AttachedLog, grouping: Grouping | None) -> str:
    """Documents that one run kept and the other did not, widest apart in percentile rank first.

    The parameter is how many to give. Those that one of the runs never scored come last.
    """
    order = "k.percentile - o.percentile DESC NULLS LAST, document_id"
    runs = f"{outcome(keeper)} AS k JOIN {outcome(other)} AS o USING (document_id)"
    value, source = "NULL", ""
    if grouping is not None:
        value = f"v.{quote(grouping.column)}::VARCHAR"
        source = f"JOIN {grouping.log.table('document')} AS v USING (document_id)"
    sides = ", ".join(
        f"{run}.kept AS {side}_kept, {run}.percentile AS {side}_percentile, "
        f"round({document}.weight::DOUBLE, 6) AS {side}_weight, "
        f"{document}.reason::VARCHAR AS {side}_reason"
        for side, run, document in (("keeper", "k", "kd"), ("other", "o", "od"))
    )
    return f"""
    WITH apart AS (
        SELECT document_id FROM {runs}
        WHERE k.kept AND NOT o.kept ORDER BY {order} LIMIT ?
    )
    SELECT document_id, k.tokens AS tokens, {value} AS value, {sides}
    FROM apart JOIN ({runs}) USING (document_id)
    JOIN {keeper.table("document")} AS kd USING (document_id)
    JOIN {other.table("document")} AS od USING (document_id) {source}
    ORDER BY {order}
    """


def shares(logs: Sequence[AttachedLog], grouping: Grouping) -> str:
    """Tokens of the pool and of what each run kept by value of a metadata column, largest first.

    No more values than a keep_rate view has; `num_values` counts them all. Tokens are as the first
    of `logs` counts them: the pool's, `kept_N`, which the N-th kept, and `total_N`, of all values.
    """
    kept = ", ".join(
        f"coalesce(sum({_in_tokens_of('o0', f'o{n}')}), 0) AS kept_{n}" for n, _ in enumerate(logs)
    )
    totals = ", ".join(f"sum(kept_{n}) OVER () AS total_{n}" for n, _ in enumerate(logs))
    joins = " ".join(
        f"LEFT JOIN {outcome(log)} AS o{n} ON o{n}.document_id = v.document_id"
        for n, log in enumerate(logs)
    )
    value = f"v.{quote(grouping.column)}::VARCHAR"
    return f"""
    SELECT *, count(*) OVER () AS num_values, {totals} FROM (
        SELECT {value} AS value, coalesce(sum(o0.tokens), 0) AS pool_tokens, {kept}
        FROM {grouping.log.table("document")} AS v {joins} GROUP BY {value}
    ) ORDER BY pool_tokens DESC, value LIMIT {MAXIMUM_VALUES}
    """


def count_values(grouping: Grouping) -> str:
    """One row: how many values a metadata column has, a missing one included, and documents."""
    name = quote(grouping.column)
    return f"""
    SELECT count(DISTINCT {name}) + (count(*) > count({name}))::INTEGER AS num_values,
        count(*) AS documents
    FROM {grouping.log.table("document")}
    """
