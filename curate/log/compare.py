"""Comparing the selections of runs over the same pool, from their logs alone.

Why: a selection is a hypothesis. Before training on one, its user wants to know how far it is from
another seed, another method, or a draw at random: do the runs rank documents alike, do they keep
the same tokens, what did each favor, and which documents do they disagree on most.

How: `attach.py` opens the logs in one DuckDB, which does all the counting (`compare_sql.py`) and
spills to a temporary folder where it must (TMPDIR chooses the place); only a few rows reach Python.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from curate.errors import InvalidInput
from curate.files import StrPath
from curate.log import attach, compare_sql
from curate.log.attach import AttachedLog
from curate.log.cells import visible
from curate.log.compare_sql import Grouping
from curate.log.query import fetch_rows, first_line
from curate.records import split_document_id

_REMEDY = "Give the output folders of finished curate runs, and TMPDIR room for temporary files."


@dataclass(frozen=True, slots=True)
class _Run:
    log: AttachedLog
    figures: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.figures["name"])


def compare(outs: Sequence[StrPath], *, by: str | None = None, top: int = 10) -> dict[str, Any]:
    """Compare the selections of two or more finished runs over the same pool.

    Args:
        outs: the runs' output folders; in the result they are named A, B, ... in this order.
        by: a metadata column to break kept tokens down by; by default the one that `summary` would
            choose for the first run.
        top: how many documents to give for each direction of each pair's disagreement.

    Returns:
        runs: for each run its `name`, `out`, what it was asked for (`run_id`, `method`,
            `granularity`, `keep`, `seed`), and documents and tokens of its pool and kept set.
        pairs: for each pair, `first` and `second` by name; `spearman`, the rank correlation of the
            scores of the `documents_scored` that both scored, None when those of a run are all the
            same; `overlap`, `shared_tokens` over the kept tokens of the smaller selection;
            `jaccard`, shared over all tokens that either kept; `random_overlap` and
            `random_jaccard`, what to expect of two independent random selections of the same
            sizes; how many documents both or only one kept; and `kept_by_first_only` and
            `kept_by_second_only`, those documents whose percentile ranks (0 to 1, 1 is the highest
            score) are furthest apart. Where both runs keep parts of documents the log does not say
            which, so `shared_tokens`, `overlap` and `jaccard` are upper bounds, and
            `shared_tokens_at_least`, `overlap_at_least` and `jaccard_at_least` lower ones. Tokens
            are counted as the first run counts them; the tokenizers of
            `documents_counted_differently` count otherwise.
        shares: the `column` asked for or chosen, its number of `values`, and as `rows` the (at most
            1,000) values with most tokens in the pool: each one's share of the pool's tokens, and
            of the tokens each run kept, as the first run counts them. None without a column.

    Documents are ranked by what the final selection ranked them by, standardized in their round.

    Raises:
        InvalidInput: fewer than two runs, no log, different pools, or no such column.
    """
    if len(outs) < 2:
        raise InvalidInput(
            f"Expected two or more runs to compare but got {len(outs)}.",
            "Give the output folders of finished runs over the same pool.",
        )
    if top < 0:
        raise InvalidInput(f"The number of documents to show is {top}.", "Set top to 0 or more.")
    with attach.attach([Path(out).expanduser() for out in outs]) as (connection, logs):
        try:
            attach.check_same_pool(connection, logs)
            grouping = _grouping(connection, logs, by)
            return _compare(connection, logs, grouping, top)
        except duckdb.Error as error:
            problem = f"The selection logs cannot be compared: {visible(first_line(error))}"
            raise InvalidInput(problem, _REMEDY) from error


def _compare(
    connection: duckdb.DuckDBPyConnection,
    logs: Sequence[AttachedLog],
    grouping: Grouping | None,
    top: int,
) -> dict[str, Any]:
    for log in {log.number: log for log in logs}.values():
        known = attach.has_tokens_kept(connection, log)
        average, rounds = _averaging(connection, log)
        outcome = compare_sql.create_outcome(
            log, has_tokens_kept=known, average=average, rounds_per_pass=rounds
        )
        connection.execute(outcome)
    runs = [_Run(log, _figures(connection, log, index)) for index, log in enumerate(logs)]
    return {
        "runs": [run.figures for run in runs],
        "pairs": [
            _pair(connection, first, second, grouping, top)
            for first, second in itertools.combinations(runs, 2)
        ],
        "shares": None if grouping is None else _shares(connection, runs, grouping),
    }


def _grouping(
    connection: duckdb.DuckDBPyConnection, logs: Sequence[AttachedLog], by: str | None
) -> Grouping | None:
    """The column asked for, or the first that tells something, as `grouping_columns` has it."""
    if by is None:
        for column in attach.keep_rate_columns(connection, logs[0]):
            chosen = Grouping(logs[0], column)
            counts = fetch_rows(connection, compare_sql.count_values(chosen))[0]
            if 2 <= counts["num_values"] <= counts["documents"] / 2:
                return chosen
        return None
    known: dict[str, AttachedLog] = {}
    for log in logs:
        for name in attach.metadata_columns(connection, log):
            known.setdefault(name, log)
    if by in known:
        return Grouping(known[by], by)
    names = ", ".join(visible(name) for name in known)
    raise InvalidInput(
        f"The logs have no metadata column {by}.",
        f"Choose one of these: {names}." if names else "Leave --by out, for they have none.",
    )


def _averaging(connection: duckdb.DuckDBPyConnection, log: AttachedLog) -> tuple[str, int]:
    """`blade.average` of a run and the rounds of a pass; without a config, last and 1."""
    found = next(iter(fetch_rows(connection, compare_sql.config(log))), {})
    try:
        blade = json.loads(found["config"])["blade"]
        average = str(blade["average"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return "last", 1
    passes = blade.get("passes")
    if not isinstance(passes, int) or passes < 1:
        return average, 1
    rounds = int(fetch_rows(connection, compare_sql.count_rounds(log))[0]["rounds"])
    scored = blade.get("final") in ("rescore", "ensemble")
    return average, max(1, (rounds - scored) // passes)


def _figures(connection: duckdb.DuckDBPyConnection, log: AttachedLog, index: int) -> dict[str, Any]:
    asked: dict[str, Any] = dict.fromkeys(("run_id", "method", "granularity", "keep", "seed"))
    asked |= next(iter(fetch_rows(connection, compare_sql.settings(log))), {})
    totals = fetch_rows(connection, compare_sql.totals(log))[0]
    return {"name": _name(index), "out": str(log.out), **asked, **totals}


def _name(index: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    turn, letter = divmod(index, 26)
    return chr(ord("A") + letter) + (str(turn) if turn else "")


def _pair(
    connection: duckdb.DuckDBPyConnection,
    first: _Run,
    second: _Run,
    grouping: Grouping | None,
    top: int,
) -> dict[str, Any]:
    ranks = fetch_rows(connection, compare_sql.rank_sums(first.log, second.log))[0]
    shared = fetch_rows(connection, compare_sql.shared(first.log, second.log))[0]
    common = shared.pop("common_tokens")
    sizes = first.figures["kept_tokens"], shared.pop("second_kept_tokens")
    pools = first.figures["pool_tokens"], shared.pop("second_pool_tokens")
    query = compare_sql.disagreements(first.log, second.log, grouping)
    ours = fetch_rows(connection, query, [top])
    query = compare_sql.disagreements(second.log, first.log, grouping)
    theirs = fetch_rows(connection, query, [top])
    return {
        "first": first.name,
        "second": second.name,
        "documents_scored": ranks["n"],
        "spearman": spearman(ranks),
        **shared,
        **overlaps(
            (shared["shared_tokens_at_least"], shared["shared_tokens"]), sizes, pools, common
        ),
        "kept_by_first_only": [_disagreement(row, "keeper", "other") for row in ours],
        "kept_by_second_only": [_disagreement(row, "other", "keeper") for row in theirs],
    }


def spearman(sums: Mapping[str, int]) -> float | None:
    """Rank correlation, -1 to 1, from exact sums of ranks; None without spread in either.

    Args:
        sums: `n` documents; sums `x` and `y` of two runs' ranks; `xx`, `yy`, `xy` of products.
    """
    n = sums["n"]
    if not n:
        return None
    x, y = sums["x"], sums["y"]
    covariance = n * sums["xy"] - x * y
    spread = (n * sums["xx"] - x * x) * (n * sums["yy"] - y * y)
    if not spread:
        return None
    return math.copysign(math.sqrt(covariance * covariance / spread), covariance)


def overlaps(
    shared: tuple[int, int], sizes: tuple[int, int], pools: tuple[int, int], common: int
) -> dict[str, float | None]:
    """How much two selections share, and would if each were drawn at random, in shares of tokens.

    Args:
        shared: the fewest and the most tokens that both may have kept.
        sizes: tokens that each kept.
        pools: tokens of each one's pool.
        common: tokens of the documents that both pools have.
    """
    by_chance = sizes[0] * sizes[1] * common / (pools[0] * pools[1]) if all(pools) else 0.0
    smaller, both = min(sizes), sum(sizes)
    return {
        "overlap": _ratio(shared[1], smaller),
        "overlap_at_least": _ratio(shared[0], smaller),
        "random_overlap": _ratio(by_chance, smaller),
        "jaccard": _ratio(shared[1], both - shared[1]),
        "jaccard_at_least": _ratio(shared[0], both - shared[0]),
        "random_jaccard": _ratio(by_chance, both - by_chance),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _disagreement(row: Mapping[str, Any], first: str, second: str) -> dict[str, Any]:
    """A document with what each run says; `first` and `second` name their columns in the row."""
    shard, place = split_document_id(row["document_id"])
    facts = ("kept", "percentile", "weight", "reason")
    return {
        "document": f"{shard}:{place}",
        **{name: row[name] for name in ("document_id", "tokens", "value")},
        "first": {name: row[f"{first}_{name}"] for name in facts},
        "second": {name: row[f"{second}_{name}"] for name in facts},
    }


def _shares(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[_Run], grouping: Grouping
) -> dict[str, Any]:
    found = fetch_rows(connection, compare_sql.shares([run.log for run in runs], grouping))
    pool_tokens = runs[0].figures["pool_tokens"]
    rows = [
        {
            "value": row["value"],
            "pool_tokens": row["pool_tokens"],
            "share_of_pool_tokens": _ratio(row["pool_tokens"], pool_tokens),
            "kept_tokens": {run.name: row[f"kept_{n}"] for n, run in enumerate(runs)},
            "share_of_kept_tokens": {
                run.name: _ratio(row[f"kept_{n}"], row[f"total_{n}"]) for n, run in enumerate(runs)
            },
        }
        for row in found
    ]
    num_values = found[0]["num_values"] if found else 0
    return {"column": grouping.column, "values": num_values, "rows": rows}
