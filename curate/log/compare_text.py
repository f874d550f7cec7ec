"""A comparison of runs as text for a terminal: one table per question, most important first.

Takes the plain values that `compare.py` returns. Text from the logs passes through `cell`, so it
cannot move the cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curate.log.cells import cell, text_table, visible

VALUES_SHOWN = 20
"""Values of the metadata column that the table has; JSON has more."""

_Row = Mapping[str, Any]

_LEGEND = """\
Correlation: Spearman's, of the scores of documents that both scored; - where a run has but one.
Overlap: shared tokens / kept tokens of the smaller selection. Jaccard: shared / kept by either.
At random: the same for two independent random selections of these sizes.
"""
_PARTS = """\
{pair}: both keep parts of documents, and the logs do not say which: what they share lies between
the two figures.
"""
_TOKENIZERS = """\
{pair}: their tokenizers differ; the tokens of both are counted as {first} counts them.
"""


def render_comparison(comparison: _Row) -> str:
    """The runs, how far they agree, what each kept, and the documents they disagree on most."""
    runs, pairs, shares = (comparison[name] for name in ("runs", "pairs", "shares"))
    parts = [_runs(runs), _pairs(pairs)]
    if shares is not None:
        parts.append(_shares(shares, [run["name"] for run in runs]))
    column = None if shares is None else shares["column"]
    for pair in pairs:
        parts.append(_disagreements(pair, "first", "second", column))
        parts.append(_disagreements(pair, "second", "first", column))
    return "\n".join(part for part in parts if part)


def _runs(runs: Sequence[_Row]) -> str:
    names = ("Run", "Folder", "Method", "Granularity", "Keep", "Seed", "Documents", "Tokens")
    cells = [
        (
            run["name"],
            run["out"],
            *(_known(run[name]) for name in ("method", "granularity", "keep", "seed")),
            _count(run["kept_documents"]),
            _count(run["kept_tokens"]),
            _percent(run["kept_tokens"] / run["pool_tokens"] if run["pool_tokens"] else None),
        )
        for run in runs
    ]
    right = (False, False, False, False, True, True, True, True, True)
    return text_table((*names, "Of the pool"), cells, right)


def _pairs(pairs: Sequence[_Row]) -> str:
    names = ("Runs", "Scored by both", "Correlation", "Shared tokens")
    shares = ("Overlap", "At random", "Jaccard", "At random")
    cells = [
        (
            _title(pair),
            _count(pair["documents_scored"]),
            "-" if pair["spearman"] is None else f"{pair['spearman']:.3f}",
            _between(_count, pair["shared_tokens_at_least"], pair["shared_tokens"]),
            _between(_percent, pair["overlap_at_least"], pair["overlap"]),
            _percent(pair["random_overlap"]),
            _between(_percent, pair["jaccard_at_least"], pair["jaccard"]),
            _percent(pair["random_jaccard"]),
        )
        for pair in pairs
    ]
    notes = [
        note.format(pair=_title(pair), first=pair["first"])
        for pair in pairs
        for note, holds in (
            (_PARTS, pair["shared_tokens_at_least"] < pair["shared_tokens"]),
            (_TOKENIZERS, pair["documents_counted_differently"] > 0),
        )
        if holds
    ]
    table = text_table((*names, *shares), cells, (False, *(True,) * 7))
    return "".join([table, _LEGEND, *notes])


def _between(write: Callable[[Any], str], low: float | None, high: float | None) -> str:
    """A figure, or its bounds where they differ."""
    return write(high) if low == high else f"{write(low).removesuffix(' %')} to {write(high)}"


def _title(pair: _Row) -> str:
    return f"{pair['first']} and {pair['second']}"


def _shares(shares: _Row, runs: Sequence[str]) -> str:
    shown = shares["rows"][:VALUES_SHOWN]
    cells = [
        (
            row["value"],
            _percent(row["share_of_pool_tokens"]),
            *(_percent(row["share_of_kept_tokens"][name]) for name in runs),
        )
        for row in shown
    ]
    names = (cell(shares["column"]), "Pool", *runs)
    title = f"Share of tokens by {visible(shares['column'])}, in the pool and of what was kept:\n"
    hidden = shares["values"] - len(shown)
    more = f"and {hidden:,} more\n" if hidden else ""
    return title + text_table(names, cells, (False, *(True,) * (1 + len(runs)))) + more


def _disagreements(pair: _Row, keeper: str, other: str, column: str | None) -> str:
    rows = pair[f"kept_by_{keeper}_only"]
    if not rows:
        return ""
    names = [
        "Document",
        *([] if column is None else [cell(column)]),
        "Tokens",
        *(f"Rank in {pair[side]}" for side in (keeper, other)),
        f"Weight in {pair[keeper]}",
        *(f"Reason in {pair[side]}" for side in (keeper, other)),
    ]
    cells = [
        (
            row["document"],
            *([] if column is None else [row["value"]]),
            _count(row["tokens"]),
            *(_percent(row[side]["percentile"]) for side in (keeper, other)),
            _known(row[keeper]["weight"]),
            *(_known(row[side]["reason"]) for side in (keeper, other)),
        )
        for row in rows
    ]
    total = pair[f"documents_kept_by_{keeper}_only"]
    documents = "document" if total == 1 else "documents"
    title = (
        f"Kept by {pair[keeper]}, not by {pair[other]}: {_count(total)} {documents}, first those "
        "whose scores differ most in percentile rank.\n"
    )
    right = (False, *([] if column is None else [False]), True, True, True, True, False, False)
    return title + text_table(names, cells, right)


def _known(value: object) -> object:
    return "-" if value is None else value


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
