"""Every failure a user can meet, as one exception root with an exit code each.

An error is two sentences: what is wrong, and what to do about it. The command line prints both on
standard error and exits with the code; library callers catch `CurateError` or a child of it.
"""

from __future__ import annotations

import errno


class CurateError(Exception):
    """Root of all errors raised on purpose.

    Attributes:
        problem: one sentence, what is wrong.
        remedy: one sentence, what to do about it.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class InvalidInput(CurateError):
    """What the user gave cannot be used: a path, a column, a setting.

    Found before anything is written, but for what only the work itself shows, such as a pool
    without tokens or a shard that changed.
    """

    exit_code = 2


class DamagedShard(InvalidInput):
    """A file of a corpus that is there but is not what it claims to be; others may be sound."""


class TooMuchDamage(CurateError):
    """More of the pool cannot be read than `max_bad_fraction` allows."""

    exit_code = 3


class OutputConflict(InvalidInput):
    """The output folder holds something this run must not touch."""


class OutputFailed(CurateError):
    """The output cannot be written: no room, no permission, a folder that is gone.

    What was recorded before it stays whole, and the same command goes on from there. The exception
    of the system or of the library that was writing is its cause.
    """

    exit_code = 4


class DiskFull(OutputFailed):
    """There is no room for the output.

    Attributes:
        free: bytes that were free when a write failed; None where a quota is used up.
    """

    def __init__(self, place: object, free: int | None, need: str = "") -> None:
        """Name the disk by what it holds.

        Args:
            place: a file or folder on it.
            free: bytes that are free; None for a quota.
            need: what is known of the bytes that are missing, such as "the run needs about 2 GB
                more".
        """
        if free is None:
            state = f"The disk quota for {place} is used up"
        else:
            state = f"The disk that holds {place} is full: {size_text(free)} are free"
        problem = f"{state} and {need}." if need else f"{state}."
        super().__init__(problem, "Make room and run the same command again to go on.")
        self.free = free

    def needing(self, place: object, who: str, needed: int) -> DiskFull:
        """The same failure, said of all that a verb writes.

        Args:
            place: the verb's output folder.
            who: what needs the room, such as "run".
            needed: about how many bytes more.
        """
        return DiskFull(place, self.free, f"the {who} needs about {size_text(needed)} more")


class NonFiniteLoss(CurateError):
    """A loss or score is NaN or infinite; nothing that follows from its model can be trusted."""

    def __init__(
        self,
        problem: str,
        remedy: str = "Lower train.learning_rate, or run with --set compute.dtype=float32.",
    ) -> None:
        super().__init__(problem, remedy)


def is_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python, NumPy and Arrow share a class, others have their own."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    home, name = type(error).__module__.partition(".")[0], type(error).__name__
    if (home, name) in (("torch", "OutOfMemoryError"), ("_duckdb", "OutOfMemoryException")):
        return True
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def size_text(size: float) -> str:
    """A number of bytes for people: `999 bytes`, `1.2 GB`."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
