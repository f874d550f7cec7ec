"""A verification as text for a terminal, and as plain values."""

from __future__ import annotations

from typing import Any

from curate.log.cells import text_table, visible
from curate.verification.result import MOST_FINDINGS, Verification, plural


def render_verification(verification: Verification) -> str:
    """A line for each check, then what does not hold."""
    rows = [
        (
            check.name,
            check.checked or "nothing",
            check.result + (f": {check.skipped}" if check.skipped else ""),
        )
        for check in verification.checks
    ]
    table = text_table(("check", "checked", "result"), rows, (False, False, False))
    return "\n".join([table, *_findings(verification)])


def _findings(verification: Verification) -> list[str]:
    if verification.holds:
        left_out = [check.name for check in verification.checks if check.skipped]
        rest = f"; not checked: {', '.join(left_out)}" if left_out else ""
        return [f"Everything that was checked holds{rest}."]
    count = len(verification.findings) + verification.more
    lines = [f"{plural(count, 'finding')}:"]
    lines += [f"- {visible(finding.sentence)}" for finding in verification.findings]
    if verification.more:
        lines.append(f"- and {verification.more:,} more (the first {MOST_FINDINGS} are shown).")
    return lines


def verification_tree(verification: Verification) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "out": str(verification.out),
        "full": verification.full,
        "holds": verification.holds,
        "checks": [
            {
                "name": check.name,
                "promise": check.promise,
                "checked": check.checked,
                "result": check.result,
                "skipped": check.skipped,
                "findings": check.findings,
            }
            for check in verification.checks
        ],
        "findings": [
            {"check": finding.check, "sentence": finding.sentence}
            for finding in verification.findings
        ],
        "more": verification.more,
    }
