"""Every failure a user can meet, as one exception root with an exit code each.

An error is two sentences: what is wrong, and what to do about it. The command line prints both on
standard error and exits with the code; library callers catch `CurateError` or a child of it.
"""

from __future__ import annotations


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
    """What the user gave cannot be used: a path, a column, a setting. Nothing was written."""

    exit_code = 2


class OutputConflict(InvalidInput):
    """The output folder holds something this run must not touch."""


class NonFiniteLoss(CurateError):
    """A loss or score is NaN or infinite; nothing that follows from its model can be trusted."""

    def __init__(
        self,
        problem: str,
        remedy: str = "Lower train.learning_rate, or run with --set compute.dtype=float32.",
    ) -> None:
        super().__init__(problem, remedy)
