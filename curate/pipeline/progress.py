"""One progress bar for a whole run: tokens through models, documents, losses of the round."""

from __future__ import annotations

import contextlib
import io
import sys
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from curate.log.cells import visible_lines


class Progress:
    """A tqdm bar over all tokens a run will train on and score; silent off a terminal.

    What it is shown on may go away (a terminal that was closed, a full disk) and ends no run.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Show it on a stream, by default standard error; nowhere if the shell closed that."""
        self._stream: TextIO = stream or sys.stderr or io.StringIO()
        self._bar: tqdm[Any] | None = None
        self._postfix: dict[str, str] = {}

    @property
    def on_terminal(self) -> bool:
        """Whether there is a bar at all."""
        return self._stream.isatty()

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a bar of `total` units, replacing the one before."""
        self.close()
        self._postfix = {}
        self._bar = tqdm(
            total=total,
            desc=stage,
            unit=unit,
            unit_scale=True,
            file=self._stream,
            disable=not self.on_terminal,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def advance(self, amount: int) -> None:
        """Count units done."""
        if self._bar is not None:
            self._bar.update(amount)

    def stage(self, name: str) -> None:
        """Say what is being done."""
        if self._bar is not None:
            self._bar.set_description(name)

    def show(self, **figures: str) -> None:
        """Show figures behind the bar, keeping those shown before."""
        self._postfix.update(figures)
        if self._bar is not None:
            self._bar.set_postfix(self._postfix, refresh=False)

    def note(self, line: str) -> None:
        """Print a line that stays, above the bar where there is one."""
        with contextlib.suppress(OSError):
            tqdm.write(visible_lines(line), file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        """End the current bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
