"""The report: one HTML file that shows what a run kept, and how it came to that.

Why: before training on a selection for days, somebody should look at it for a minute: where the cut
fell, which sources gained, whether the proxy and the reference stayed in step.

How: each section is a query on the selection log and a chart. The file needs nothing else: styles
are inline, there are no scripts, and the content security policy forbids all else. Text from data
is escaped. Sections whose numbers a run does not have (methods without models) are left out.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator
from pathlib import Path

import duckdb

from curate.files import write_text
from curate.log.explain import (
    activities_in_words,
    both_ends,
    rollbacks_in_words,
    separation_in_words,
)
from curate.log.query import connect_file
from curate.log.schema import DOCUMENT_REASONS
from curate.write import charts
from curate.write.card import Row, keep_rates, one_line, public_config, query

_POINTS = 300
_ROUNDS = 100
"""Rows of the table of rounds, at most."""
_VALUES = 30
_VIEWS = 3
_EDGE_DOCUMENTS = 12

_STYLE = """
:root{color-scheme:light dark;
--page:#f6f7f9;--card:#fff;--ink:#1b2230;--soft:#5d6778;--rule:#e1e5ec;
--a:#2563c9;--b:#c2590c;--c:#0f8a6a;--d:#8a4fc4;--pale:#c3ccda;--cut:#c02645}
@media(prefers-color-scheme:dark){:root{--page:#12151b;--card:#1b2029;--ink:#e6e9ef;--soft:#9aa5b6;
--rule:#2d3440;--a:#76a8ff;--b:#f2a25c;--c:#4cc9a5;--d:#c39bf0;--pale:#49546a;--cut:#ff7d95}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,sans-serif}
main{max-width:980px;margin:0 auto;padding:36px 20px 60px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px}h2{font-size:18px;margin:0 0 4px}
h3{font-size:15px;margin:20px 0 4px}
p{margin:0 0 12px;max-width:95ch}.note{color:var(--soft);font-size:14px}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:20px 22px;
margin-top:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;margin-top:18px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px}
.tile span,.tile small{display:block;color:var(--soft);font-size:13px}
.tile strong{display:block;font-size:26px;line-height:1.25}
pre{overflow-x:auto;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;margin:10px 0 0}
summary{cursor:pointer;font-weight:600}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Selection report</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def write_report(path: Path, log: Path) -> None:
    """Write the report of the run whose selection log is `log` to `path`, atomically."""
    with connect_file(log) as connection:
        run = query(connection, "SELECT * FROM run")[0]
        rounds = query(connection, "SELECT * FROM round ORDER BY round")
        body = [
            _headline(run, rounds),
            _scores(connection, run, rounds),
            *_keep_rates(connection, run),
            _target_loss(rounds),
            _rounds_table(rounds),
            _training(connection),
            _reasons(connection),
            _near_cut(connection, run, rounds),
            _stages(run),
            _config(run),
        ]
    text = "\n".join(part for part in body if part)
    write_text(path, _PAGE.format(style=_STYLE + charts.STYLE, body=text))


def _headline(run: Row, rounds: list[Row]) -> str:
    share = run["kept_tokens"] / run["pool_tokens"] if run["pool_tokens"] else 0.0
    seconds = sum(json.loads(run["stage_seconds"] or "{}").values())
    tiles = [
        (
            "Kept tokens",
            charts.compact(run["kept_tokens"]),
            f"{share:.1%} of {charts.compact(run['pool_tokens'])}",
        ),
        (
            "Kept documents",
            charts.compact(run["kept_documents"]),
            f"of {charts.compact(run['pool_documents'])}",
        ),
        (
            "Target",
            charts.compact(run["target_tokens"] or 0),
            f"tokens in {charts.compact(run['target_documents'] or 0)} documents",
        ),
        ("Rounds", str(len(rounds)), _model(run)),
        (
            "Time",
            _duration(seconds) if seconds else "–",
            f"on {one_line(run['device'])}, {one_line(run['dtype'])}",
        ),
    ]
    cells = "".join(
        f'<div class="tile"><span>{_text(name)}</span><strong>{_text(value)}</strong>'
        f"<small>{_text(note)}</small></div>"
        for name, value, note in tiles
    )
    rollbacks = rollbacks_in_words(json.loads(run["rollbacks"] or "[]"), one_line)
    return (
        "<h1>Selection report</h1>"
        f"<p>Method {_text(run['method'])}, seed {run['seed']}, "
        f"with curate {_text(run['curate_version'])}.</p>"
        + (f"<p>{_text(rollbacks)}</p>" if rollbacks else "")
        + '<p class="note">This page shows what was selected. Whether training on it helps is '
        "another question: train on both and compare.</p>"
        f'<div class="tiles">{cells}</div>'
    )


def _model(run: Row) -> str:
    parameters = run["model_parameters"]
    return f"proxy of {charts.compact(parameters)} parameters" if parameters else "no models"


def _scores(connection: duckdb.DuckDBPyConnection, run: Row, rounds: list[Row]) -> str:
    if not rounds:
        return ""
    last = rounds[-1]
    rows = query(
        connection,
        "SELECT * FROM score_histogram WHERE round = ? ORDER BY bin_low",
        last["round"],
    )
    bins = [
        charts.Bin(row["bin_low"], row["bin_high"], row["documents"], row["documents_kept"])
        for row in rows
    ]
    by_token = run["granularity"] == "token"  # the cut-off is then that of tokens
    cuts = query(
        connection,
        "SELECT DISTINCT threshold FROM decision WHERE round = ? LIMIT 2",
        last["round"],
    )
    threshold = None if by_token or len(cuts) > 1 else _finite(last["threshold"])
    chart = charts.histogram(bins, threshold=threshold, x_label="score")
    kind = "mean score of their tokens" if by_token else "score"
    note = f"Documents by {kind}, higher is better. Filled: kept in this round."
    return _section(f"Scores in round {last['round']}", note, chart)


def _keep_rates(connection: duckdb.DuckDBPyConnection, run: Row) -> Iterator[str]:
    overall = run["kept_tokens"] / run["pool_tokens"] if run["pool_tokens"] else 0.0
    for name, rows in keep_rates(connection, columns=_VIEWS, values=_VALUES).items():
        bars = [
            charts.Bar(
                _label(row["value"]),
                row["token_keep_rate"] or 0.0,
                (
                    f"{row['token_keep_rate'] or 0.0:.1%}",
                    "" if row["enrichment"] is None else f"{row['enrichment']:.2f}×",
                    charts.compact(row["tokens"]),
                    charts.compact(row["tokens_kept"]),
                ),
            )
            for row in rows
        ]
        head = ("value", "kept share of its tokens", "", "enrichment", "pool tokens", "kept")
        note = (
            f"The dashed line is the whole pool's keep rate, {overall:.1%}. Enrichment: how many "
            "times more frequent the value is among kept tokens than in the pool. "
            f"At most {_VALUES} values, those with the most tokens."
        )
        yield _section(
            f"Kept by {one_line(name)}", note, charts.bar_table(head, bars, mark=overall)
        )


def _target_loss(rounds: list[Row]) -> str:
    series = []
    for model in ("proxy", "reference"):
        pairs = [(row["round"], _finite(row[f"target_loss_{model}"])) for row in rounds]
        points = [(float(number), loss) for number, loss in pairs if loss is not None]
        if points:
            series.append(charts.Series(model, points))
    chart = charts.line_chart(series, x_label="round", y_label="nats per token")
    note = (
        "Both as a round begins. The reference is trained on the target at a sync, so it should "
        "lie below the proxy that it was made from: lines that meet mean scores that say little. "
        "Where a round has no sync, as an ensemble's scoring, the proxy has gone on and may meet "
        "it. "
    )
    return _section("Loss on the target", note + separation_in_words(rounds), chart)


def _rounds_table(rounds: list[Row]) -> str:
    counts = ("scored", "kept", "kept tokens")
    head = ("round", "proxy steps", "reference steps", "λ", "cut-off", *counts, "loss", "seconds")
    rows = [
        (
            str(row["round"]),
            _figure(row["proxy_step"], ",d"),
            _figure(row["reference_steps"], ",d"),
            _figure(row["lambda"], ".3g"),
            _figure(row["threshold"], ".4g"),
            _figure(row["documents_scored"], ",d"),
            _figure(row["documents_kept"], ",d"),
            _figure(row["tokens_kept"], ",d"),
            _figure(row["train_loss"], ".3f"),
            _figure(row["seconds"], ".1f"),
        )
        for row in both_ends(rounds, _ROUNDS)
    ]
    hidden = len(rounds) - len(rows)
    note = f"{hidden:,} rounds between them are not shown; the log has them all." if hidden else ""
    return _section("Rounds", note, charts.table(head, rows) if rows else "")


def _training(connection: duckdb.DuckDBPyConnection) -> str:
    rows = query(
        connection,
        "WITH placed AS (SELECT model, step, loss::DOUBLE AS loss, "
        "(row_number() OVER same - 1) * least(?, count(*) OVER same_all) "
        "// count(*) OVER same_all AS piece FROM training WHERE isfinite(loss) "
        "WINDOW same AS (PARTITION BY model ORDER BY step), same_all AS (PARTITION BY model)) "
        "SELECT model, avg(step) AS step, avg(loss) AS loss FROM placed "
        "GROUP BY model, piece ORDER BY model, step",
        _POINTS,
    )
    models = sorted({row["model"] for row in rows}, key=_model_order)
    series = [
        charts.Series(name, [(row["step"], row["loss"]) for row in rows if row["model"] == name])
        for name in models
    ]
    chart = charts.line_chart(series, x_label="step", y_label="nats per token")
    note = f"Training loss; each model counts its own steps. Means over at most {_POINTS} pieces."
    return _section("Training", note, chart)


def _reasons(connection: duckdb.DuckDBPyConnection) -> str:
    rows = query(
        connection,
        "SELECT reason, count(*) AS documents, sum(tokens)::BIGINT AS tokens FROM document "
        "GROUP BY reason ORDER BY documents DESC, reason",
    )
    bars = [
        charts.Bar(
            one_line(row["reason"]),
            row["documents"],
            (
                f"{row['documents']:,}",
                f"{row['tokens'] or 0:,}",
                DOCUMENT_REASONS.get(row["reason"], ""),
            ),
        )
        for row in rows
    ]
    head = ("reason", "documents", "", "tokens", "meaning")
    return _section("Reasons", "", charts.bar_table(head, bars, words=True) if bars else "")


def _near_cut(connection: duckdb.DuckDBPyConnection, run: Row, rounds: list[Row]) -> str:
    if not rounds or run["granularity"] == "token":  # no document is near the cut-off of tokens
        return ""
    number = rounds[-1]["round"]
    rows = query(
        connection,
        "SELECT * FROM (SELECT * FROM decision WHERE round = ? AND isfinite(score - threshold) "
        "ORDER BY abs(score - threshold), document_id LIMIT ?) ORDER BY score DESC, document_id",
        number,
        _EDGE_DOCUMENTS,
    )
    cells = [
        (
            str(row["document_id"]),
            f"{row['shard_id']}:{row['row']}",
            _figure(row["tokens"], ",d"),
            _figure(row["proxy_loss"], ".4f"),
            _figure(row["reference_loss"], ".4f"),
            _figure(row["score"], ".4g"),
            _figure(row["threshold"], ".4g"),
            "kept" if row["kept"] else "not kept",
        )
        for row in rows
    ]
    head = ("document_id", "shard:row", "tokens", "proxy", "reference", "score", "cut-off", "")
    note = f"The decisions of round {number} that were closest. Losses in nats per token."
    return _section("Near the cut-off", note, charts.table(head, cells) if cells else "")


def _stages(run: Row) -> str:
    stages = json.loads(run["stage_seconds"] or "{}")
    total = sum(stages.values()) or 1.0
    bars = [
        charts.Bar(one_line(name), seconds, (_duration(seconds), f"{seconds / total:.1%}"))
        for name, seconds in stages.items()
    ]
    head = ("stage", "time", "", "share")
    note = activities_in_words(json.loads(run.get("activity_seconds") or "{}"), one_line)
    return _section("Time by stage", note, charts.bar_table(head, bars) if bars else "")


def _config(run: Row) -> str:
    text = _text(public_config(run["config"] or "{}"))
    return f"<section><details><summary>Config</summary><pre>{text}</pre></details></section>"


def _section(title: str, note: str, content: str) -> str:
    if not content:
        return ""
    words = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section><h2>{_text(title)}</h2>{words}{content}</section>"


def _model_order(name: str) -> tuple[int, str]:
    """The proxy and the reference come first, so they have the same colours in every chart."""
    known = ("proxy", "reference")
    return (known.index(name) if name in known else len(known), name)


def _text(text: object) -> str:
    return html.escape(str(text))


def _label(value: object) -> str:
    return "(none)" if value is None else one_line(value) or "(empty)"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
