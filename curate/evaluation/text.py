"""The report of an evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.log.cells import text_table

Report = Mapping[str, Any]


def render_evaluation(report: Report) -> str:
    """A table of the arms, the comparisons, and last what they say."""
    return "\n".join(
        [
            "Held-out bits per byte, lower is better: mean over seeds and half its 95 % interval.",
            _table(report),
            *map(_comparison, report["comparisons"]),
            "",
            f"Verdict: {report['verdict']['words']}. {_sentence(report['verdict']['why'])}",
            f"Token multiplier: {_multiplier(report['token_multiplier'])}",
            _cost(report["cost"], report["device"]),
            *(f"Warning: {one}" for one in report["warnings"]),
        ]
    )


def _table(report: Report) -> str:
    names = ["arm", "tokens", "passes", "target", "general", "seconds"]
    rows = [
        [
            one["arm"] if one["multiple"] == 1 else f"{one['arm']} {one['multiple']:g}x",
            f"{one['tokens']:,}",
            f"{one['passes']:.2f}",
            _spread(one["target"]),
            _spread(one["general"]),
            f"{one['seconds']:.1f}",
        ]
        for one in report["arms"]
    ]
    return text_table(names, rows, [False, True, True, True, True, True])


def _spread(interval: Report) -> str:
    if interval["low"] is None:
        return f"{interval['mean']:.4f}"
    half = (interval["high"] - interval["low"]) / 2
    return f"{interval['mean']:.4f} ± {half:.4f}"


def _comparison(one: Report) -> str:
    return (
        f"{one['arm']} - {one['minus']}: target {_difference(one['target'])}, "
        f"general {_difference(one['general'])}"
    )


def _difference(interval: Report) -> str:
    if interval["low"] is None:
        return f"{interval['mean']:+.4f}"
    return f"{interval['mean']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"


def _multiplier(one: Report) -> str:
    if one["low"] is not None:
        spread = f"95 % interval {one['low']} to {one['high']}"
    else:
        spread = f"by seed: {', '.join(one['seeds'])}"
    return (
        f"{one['words']} the tokens from the whole pool reach the curated data's target loss "
        f"({spread})."
    )


def _cost(cost: Report, device: str) -> str:
    return (
        f"Cost: selection {cost['selection_seconds']:.1f} s ({cost['selection_device']}), training "
        f"on the curated data {cost['training_seconds']:.1f} s a seed ({device})."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
