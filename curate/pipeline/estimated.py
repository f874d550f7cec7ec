"""What a run would take, about, and how that is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curate.errors import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would take, about.

    Attributes:
        out: its output folder.
        begun: whether that holds a part of the run already.
        plan: how the pool would be drawn, in a few lines.
        pool_documents: rows of the pool.
        pool_bytes: UTF-8 bytes of their text.
        pool_tokens: their tokens.
        seconds: by what is done: tokenize, start (what comes once), warm-up, rounds, scoring,
            write. Of the whole run, begun or not.
        memory_bytes: of the process at its largest.
        device_memory_bytes: of the GPU at its largest; None on a CPU.
        disk_bytes: still needed in `out` at most, checkpoints included.
        free_bytes: free where `out` is.
        compute: device and precision of the models.
        threads: of the CPU that they use.
        trial_seconds: which the estimate took.
    """

    out: Path
    begun: bool
    plan: str
    pool_documents: int
    pool_bytes: int
    pool_tokens: int
    seconds: dict[str, float]
    memory_bytes: int
    device_memory_bytes: int | None
    disk_bytes: int
    free_bytes: int
    compute: dict[str, str]
    threads: int
    trial_seconds: float

    @property
    def text(self) -> str:
        """All of it for people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        where = f"{self.compute['device']}, {self.compute['dtype']}, {threads}"
        parts = [f"{name} {_span(seconds)}" for name, seconds in self.seconds.items()]
        enough = self.free_bytes >= self.disk_bytes
        free = f"{'' if enough else 'only '}{size_text(self.free_bytes)} free there"
        device = self.device_memory_bytes
        lines = [
            self.plan,
            f"About, by a trial of {_span(self.trial_seconds)} on a sample of the pool ({where}):",
            f"  time    {_span(sum(self.seconds.values()))}: {', '.join(parts)}",
            f"  memory  {size_text(self.memory_bytes)}"
            + (f", and {size_text(device)} on the GPU" if device is not None else "")
            + ", however large the pool",
            f"  disk    {size_text(self.disk_bytes)} at most in {self.out}, {free}",
        ]
        if self.begun:
            lines.append(
                f"{self.out} holds this run, finished or not: the time is that of all of it, the "
                "disk what is left."
            )
        return "\n".join([*lines, "Nothing was written."])


def _span(seconds: float) -> str:
    """Seconds for people, to two digits."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"
