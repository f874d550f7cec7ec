"""One progress bar for a whole run: tokens through models, documents, losses of the round."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from curate.log.cells import visible_lines


class Progress:
    """A tqdm bar over all tokens a run will train on and score; silent off a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._postfix: dict[str, str] = {}

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
            disable=not self._stream.isatty(),
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
        tqdm.write(visible_lines(line), file=self._stream)

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
