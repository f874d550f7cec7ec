"""SIGINT, SIGTERM, SIGHUP: finish the batch, write a checkpoint, then stop; a second stops at once.

Every file is written atomically, so outside the loops that checkpoint a signal may end the run
where it stands. Inside them it is noted and seen after the batch. A terminal that goes away sends
SIGHUP, and often twice (its own and the shell's), so no more than the first of those counts.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_AFTERWARDS = {signal.SIGHUP: signal.SIG_IGN}
"""What signals do once the run was asked to stop, if not what they do by default."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class Stop:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._deferred = False

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is only noted; who enters asks `asked` often, and leaves by `check`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, signals come here; the second one has its default effect again."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        heard = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, before[number])

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for one in _SIGNALS:
            if signal.getsignal(one) == self._hear:  # one that was ignored stays so
                signal.signal(one, _AFTERWARDS.get(one, signal.SIG_DFL))
        if not self._deferred:
            raise Interrupted(number)
