"""`why` and `summary` as text for a terminal.

Both take the plain rows that `query.py` returns, so that a notebook can show the same facts in its
own way. A figure that the log does not have is left out, never invented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curate.clock import MODEL
from curate.log.cells import cell, number, text_table, visible

_Row = Mapping[str, Any]

_ROUNDS_SHOWN = 20


def render_why(rows: Sequence[_Row]) -> str:
    """The history of one document in sentences, oldest round first, the outcome last."""
    if not rows:
        return ""
    first = rows[0]
    head = (
        f"Document {first['document_id']} (shard {first['shard_id']}, row {first['row']}): "
        f"{_count(first['tokens'])} tokens, {_count(first['bytes'])} bytes."
    )
    return "\n".join([head, *(str(row["explanation"]) for row in rows)]) + "\n"


def render_summary(summary: Mapping[str, Any]) -> str:
    """The run at a glance: figures, reasons, keep rates, rounds and time."""
    parts = [
        _run(summary["run"]) + _damaged(summary["damaged_shards"]),
        _reasons(summary["reasons"]),
        _keep_rates(summary["keep_rates"]),
        _rounds(summary["rounds"]),
        _stages(summary["stage_seconds"], summary["activity_seconds"]),
        _rollbacks(summary["rollbacks"]),
    ]
    return "\n".join(part for part in parts if part)


def _run(run: _Row) -> str:
    granularity = f"{run['granularity']}s" if run.get("granularity") else None
    settings = ", ".join(str(setting) for setting in (run.get("method"), granularity) if setting)
    head = f"Run {cell(run.get('run_id'))}" + (f": {settings}" if settings else "")
    lines = [head]
    for label in ("pool", "target", "kept"):
        documents, tokens = run.get(f"{label}_documents"), run.get(f"{label}_tokens")
        if documents is not None or tokens is not None:
            lines.append(
                f"{label.capitalize():8}{_count(documents)} documents, {_count(tokens)} tokens"
            )
    kept, pool = run.get("kept_tokens"), run.get("pool_tokens")
    if kept is not None and pool:
        lines[-1] += f" ({_percent(kept / pool)} of the pool's tokens)"
    return "\n".join(lines) + "\n"


def _damaged(shards: int) -> str:
    if not shards:
        return ""
    files = "1 shard" if shards == 1 else f"{shards:,} shards"
    return f"Quarantined: {files} of the pool (FROM quarantined says why)\n"


def _reasons(rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    cells = [
        (
            row["reason"],
            "kept" if row["kept"] else "dropped",
            _count(row["documents"]),
            _count(row["tokens"]),
        )
        for row in rows
    ]
    names = ("Reason", "Outcome", "Documents", "Tokens")
    return text_table(names, cells, (False, False, True, True))


def _keep_rates(rates: _Row | None) -> str:
    if rates is None:
        return ""
    cells = [
        (
            row["value"],
            _count(row["documents"]),
            _count(row["tokens"]),
            _percent(row["token_keep_rate"]),
            _times(row["enrichment"]),
        )
        for row in rates["rows"]
    ]
    names = (cell(rates["column"]), "Documents", "Tokens", "Tokens kept", "Enrichment")
    table = text_table(names, cells, (False, True, True, True, True))
    hidden = rates["values"] - len(rates["rows"])
    return table + (f"and {hidden:,} more\n" if hidden else "")


def _rounds(rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    cells = [
        (
            row["round"],
            _count(row["documents_scored"]),
            _count(row["documents_kept"]),
            _figure(row["threshold"]),
            _figure(row["target_loss_proxy"]),
            _figure(row["target_loss_reference"]),
            _seconds(row["seconds"]),
        )
        for row in both_ends(rows, _ROUNDS_SHOWN)
    ]
    names = ("Round", "Scored", "Kept", "Cut-off", "Proxy loss", "Reference loss", "Time")
    hidden = len(rows) - len(cells)
    words = (
        f"{hidden:,} rounds between them are not shown (FROM round)." if hidden else "",
        "Losses are on the target, nats per token.",
        separation_in_words(rows),
    )
    notes = "".join(f"{line}\n" for line in words if line)
    return text_table(names, cells, (True,) * len(names)) + notes


def both_ends(rows: Sequence[_Row], most: int) -> list[_Row]:
    """The rows, or where there are more than `most` a quarter of them from the start and the rest
    from the end: a run over a large pool has thousands of rounds.
    """
    first = most // 4
    return list(rows) if len(rows) <= most else [*rows[:first], *rows[first - most :]]


def separation_in_words(rounds: Sequence[_Row]) -> str:
    """How far the target stands out from the pool, in a sentence; nothing if not measured."""
    measured = (row.get("target_separation") for row in rounds)  # logs of old have no such column
    spreads = next((one for one in measured if one is not None), None)
    if spreads is None:
        return ""
    side = "above" if spreads >= 0 else "below"
    spread = f"{abs(spreads):.2f} spreads {side} the pool's mean"
    return f"Held-out documents of the target score {spread}."


def _stages(stages: Mapping[str, float], activities: Mapping[str, float]) -> str:
    if not stages:
        return ""
    cells = [(name, _seconds(seconds)) for name, seconds in _with_rounds_together(stages).items()]
    words = activities_in_words(activities, visible)
    return text_table(("Stage", "Time"), cells, (False, True)) + (f"{words}\n" if words else "")


def _with_rounds_together(stages: Mapping[str, float]) -> dict[str, float]:
    """The stages, in which more rounds than are shown are one."""
    rounds = [name for name in stages if name.startswith("round-")]
    if len(rounds) <= _ROUNDS_SHOWN:
        return dict(stages)
    together = f"{rounds[0]} to {rounds[-1]}"
    found: dict[str, float] = {}
    for name, seconds in stages.items():
        label = together if name.startswith("round-") else name
        found[label] = found.get(label, 0.0) + seconds
    return found


def activities_in_words(seconds: Mapping[str, float], show: Callable[[str], str]) -> str:
    """Which share of the time was model work, and what else took a thousandth of it or more.

    Args:
        seconds: time by activity; nothing is said of none.
        show: makes text from a log safe for where it is shown.
    """
    total = sum(seconds.values())
    if not total > 0:
        return ""
    most_first = sorted(seconds, key=lambda name: -seconds[name])
    rest = [
        f"{show(name)} {_percent(seconds[name] / total)}"
        for name in most_first
        if name != MODEL and seconds[name] >= total / 1000
    ]
    beside = f"; beside it {', '.join(rest)}" if rest else ""
    return f"Model work took {_percent(seconds.get(MODEL, 0.0) / total)} of the time{beside}."


def _rollbacks(rollbacks: Sequence[_Row]) -> str:
    return rollbacks_in_words(rollbacks, visible) + "\n" if rollbacks else ""


def rollbacks_in_words(rollbacks: Sequence[_Row], show: Callable[[str], str]) -> str:
    """That stages started over, in a sentence; nothing where none did.

    Args:
        rollbacks: the stage of each, and why.
        show: makes text from a log safe for where it is shown.
    """
    if not rollbacks:
        return ""
    times = "once" if len(rollbacks) == 1 else f"{len(rollbacks)} times"
    stages = ", ".join(show(str(one["stage"])) for one in rollbacks)
    return (
        f"Learning rates were halved {times} after a loss or score that was not finite, "
        f"in {stages}."
    )


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 60:
        return f"{number(round(value, 1))} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
