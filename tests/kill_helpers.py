"""Runs that are killed at random instants and at renames, and started again until they are done."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from run_helpers import run_tiny

from curate.pipeline.folder import RunFolder
from curate.pipeline.progress import Progress

_MODEL_CODE = "transformers.models.llama.modeling_llama"
"""Imported only as a model is built, and then most of a tiny run's time."""


def fork_server() -> ForkServerContext:
    """Processes that have imported everything when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["curate.pipeline", _MODEL_CODE])
    return context


@dataclass
class Kills:
    """What was killed.

    Attributes:
        stages: for each kill, the stage that was under way.
        renamed: for each kill at a rename, the file that was put into place, or was to be.
        work_again: work that was done more than once; see `Whole`.
    """

    stages: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    work_again: int = 0


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that nobody killed.

    Attributes:
        seconds: that it took.
        work: bytes tokenized, tokens passed through models and parts written, summed.
        stretch: the most work between one record in the manifest and the next.
        renames: files put into place.
    """

    seconds: float
    work: int
    stretch: int
    renames: int


class _Memory:
    """What a run counts where a kill cannot take it away."""

    def __init__(self, context: ForkServerContext) -> None:
        self.counts = context.RawArray(ctypes.c_int64, 4)
        self.file = context.RawArray(ctypes.c_char, 200)


_WORK, _RECORDED, _STRETCH, _RENAMES = range(4)


def timed_run(
    context: ForkServerContext, inputs: Path, out: Path, settings: Mapping[str, Any]
) -> Whole:
    """Run to the end."""
    memory = _Memory(context)
    process = context.Process(target=_counted_run, args=(inputs, out, memory, 0, dict(settings)))
    started = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    work, _, stretch, renames = memory.counts
    return Whole(time.monotonic() - started, work, stretch, renames)


def kill_until_done(
    context: ForkServerContext,
    inputs: Path,
    out: Path,
    settings: Mapping[str, Any],
    whole: Whole,
    chance: random.Random,
    most: int,
) -> Kills:
    """Start a run again and again, each start killed, until it is done.

    Half the kills come at a random instant within the time of a whole run; half just before or just
    after one of its renames. After `most` kills it is left alone. A kill may cost the work since
    the last record in the manifest, and no more.
    """
    kills, memory = Kills(), _Memory(context)
    while True:
        left_alone = len(kills.stages) >= most
        at_rename = not left_alone and chance.random() < 0.5
        fatal = chance.choice([-1, 1]) * chance.randint(1, whole.renames) if at_rename else 0
        arguments = (inputs, out, memory, fatal, dict(settings))
        process = context.Process(target=_counted_run, args=arguments)
        process.start()
        if not (left_alone or at_rename):
            process.join(chance.uniform(0, whole.seconds))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        kills.stages.append(_stage(out))
        if at_rename:
            kills.renamed.append(memory.file.value.decode())
    kills.work_again = memory.counts[_WORK] - whole.work
    assert kills.work_again <= len(kills.stages) * whole.stretch
    return kills


def _counted_run(
    inputs: Path, out: Path, memory: _Memory, fatal: int, settings: Mapping[str, Any]
) -> None:
    """A run that counts what it does, and ends itself at a rename: before or, below 0, after it."""
    counts = memory.counts
    advance, replace = Progress.advance, Path.replace
    counts[_RENAMES] = 0

    def counted(self: Progress, amount: int) -> None:
        counts[_WORK] += amount
        advance(self, amount)

    def recorded(record: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(record)
        def told(*arguments: Any) -> None:
            record(*arguments)
            counts[_STRETCH] = max(counts[_STRETCH], counts[_WORK] - counts[_RECORDED])
            counts[_RECORDED] = counts[_WORK]

        return told

    def replaced(self: Path, target: Path) -> Path:
        counts[_RENAMES] += 1
        if counts[_RENAMES] == abs(fatal):
            memory.file.value = target.name.encode()
            if fatal < 0:
                replace(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Progress.advance = counted  # type: ignore[method-assign]
    Path.replace = replaced  # type: ignore[method-assign,assignment]
    RunFolder.pause = recorded(RunFolder.pause)  # type: ignore[method-assign]
    RunFolder.finish = recorded(RunFolder.finish)  # type: ignore[method-assign]
    run_tiny(inputs, out, **settings)


def _stage(out: Path) -> str:
    """The stage after the last one that is done."""
    folder = RunFolder(out)
    if not folder.manifest_path.exists():
        return "nothing yet"
    done = list(folder._read_manifest()["stages"])
    return f"after {done[-1]}" if done else "tokenizer"
