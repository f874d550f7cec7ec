"""Where the time of a run goes: seconds of its main thread, by what it was doing.

    with timing() as clock:
        with doing("model"):
            ...
            with doing("read"):      # these seconds are not the model's
                ...
    clock.take()                     # {"model": ..., "read": ..., "other": ...}

Outside `timing`, and in other threads, `doing` costs nothing and counts nothing; what happens in
the background while a model works is not waited for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

MODEL = "model"
"""Forward and backward passes, optimizer steps with the running average of weights that belongs to
them. Everything else is what a run costs beside."""
TOKENIZE, PACK, READ, COUNT = "tokenize", "pack", "read", "count words"
SELECT, WRITE, LOG, CHECKPOINT = "select", "write", "log", "checkpoint"
OTHER = "other"


class Clock:
    """Seconds by activity; each moment belongs to the innermost activity that is under way."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._under_way = [OTHER]
        self._since = time.monotonic()

    def begin(self, activity: str) -> None:
        """Start an activity within the one that is under way."""
        self._charge()
        self._under_way.append(activity)

    def end(self) -> None:
        """End the innermost activity."""
        self._charge()
        self._under_way.pop()

    def take(self) -> dict[str, float]:
        """The seconds so far, which start anew."""
        self._charge()
        taken, self._seconds = self._seconds, {}
        return taken

    def _charge(self) -> None:
        now = time.monotonic()
        activity = self._under_way[-1]
        self._seconds[activity] = self._seconds.get(activity, 0.0) + now - self._since
        self._since = now


_running: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextlib.contextmanager
def timing() -> Iterator[Clock]:
    """A clock that runs within, in place of one that ran outside."""
    clock = Clock()
    token = _running.set(clock)
    try:
        yield clock
    finally:
        _running.reset(token)


@contextlib.contextmanager
def doing(activity: str) -> Iterator[None]:
    """Say what is done within, to the clock that runs."""
    clock = _running.get()
    if clock is None:
        yield
        return
    clock.begin(activity)
    try:
        yield
    finally:
        clock.end()


def taken() -> dict[str, float]:
    """What the clock that runs has counted since it was last asked; nothing where none runs."""
    clock = _running.get()
    return clock.take() if clock else {}
