"""What a verification found: one line for each check, and one sentence for each finding."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MOST_FINDINGS = 20
"""Findings that are kept and shown; the rest are counted."""

CHECKS: dict[str, str] = {
    "manifest": "manifest.json is what curate wrote",
    "files": "every file has its SHA-256, none is missing and none was added",
    "settings": "config.yaml and the log hold the settings of the manifest",
    "log": "the tables of the log agree with each other and with the manifest's totals",
    "parts": "each part has as many rows as the log keeps of its shard",
    "outcome": "weights and other outcomes in the data are those of the log",
    "tokens": "input_ids are the tokens of the text; loss_mask marks as many as the log says",
    "source": "the pool is what it was, and every column of its rows is unchanged in the data",
}
"""Every check by name, in order, with what it makes sure of."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold.

    Attributes:
        check: the name of the check that found it.
        sentence: what is wrong.
    """

    check: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What became of one check.

    Attributes:
        name: one of `CHECKS`.
        promise: what it makes sure of.
        checked: what was looked at, in words, with sample sizes.
        findings: how many things do not hold.
        skipped: why some or all of it was not checked; None when it was.
    """

    name: str
    promise: str
    checked: str
    findings: int
    skipped: str | None

    @property
    def result(self) -> str:
        """`holds`, `fails` or `not checked`."""
        if self.findings:
            return "fails"
        return "holds" if self.skipped is None else "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A verification that went to its end.

    Attributes:
        out: the output folder.
        full: whether every row was read again, not a sample.
        checks: one for each of `CHECKS` that applies to the run.
        findings: what does not hold, at most `MOST_FINDINGS`.
        more: how many findings there are beyond these.
    """

    out: Path
    full: bool
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    more: int

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass(slots=True)
class Notes:
    """Collects findings and what was looked at; holds no more than is shown."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    checked: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def find(self, check: str, sentence: str) -> None:
        """Note something that does not hold."""
        self.counts[check] = self.counts.get(check, 0) + 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check, sentence))

    def skip(self, reason: str, *checks: str) -> None:
        """Note that checks were left out; the first reason stands."""
        for check in checks:
            self.skipped.setdefault(check, reason)

    def result(self, out: Path, *, full: bool) -> Verification:
        """All of it."""
        checks = tuple(
            Check(
                name=name,
                promise=promise,
                checked=self.checked.get(name, ""),
                findings=self.counts.get(name, 0),
                skipped=self.skipped.get(name),
            )
            for name, promise in CHECKS.items()
            if name in self.counts or name in self.checked or name in self.skipped
        )
        more = sum(self.counts.values()) - len(self.findings)
        return Verification(
            out=out, full=full, checks=checks, findings=tuple(self.findings), more=more
        )


def plural(count: int, one: str, several: str | None = None) -> str:
    """A count with its noun: 1 row, 2 rows."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
