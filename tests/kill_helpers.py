"""Runs that are killed at random instants, by SIGKILL, and started again until they are done."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import random
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
        work_again: work that was done more than once; see `Whole`.
    """

    stages: list[str] = field(default_factory=list)
    work_again: int = 0


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that nobody killed.

    Attributes:
        seconds: that it took.
        work: bytes tokenized, tokens passed through models and parts written, summed.
        stretch: the most work between one record in the manifest and the next.
    """

    seconds: float
    work: int
    stretch: int


def timed_run(
    context: ForkServerContext, inputs: Path, out: Path, settings: Mapping[str, Any]
) -> Whole:
    """Run to the end."""
    counts = context.RawArray(ctypes.c_int64, 3)
    process = context.Process(target=_counted_run, args=(inputs, out, counts, dict(settings)))
    started = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return Whole(time.monotonic() - started, counts[_WORK], counts[_STRETCH])


def kill_until_done(
    context: ForkServerContext,
    inputs: Path,
    out: Path,
    settings: Mapping[str, Any],
    whole: Whole,
    chance: random.Random,
    most: int,
) -> Kills:
    """Start a run again and again, each start killed within the time of a whole run, until it is
    done; after `most` kills it is left alone.

    A kill may cost the work since the last record in the manifest, and no more.
    """
    kills = Kills()
    counts = context.RawArray(ctypes.c_int64, 3)
    while True:
        process = context.Process(target=_counted_run, args=(inputs, out, counts, dict(settings)))
        process.start()
        if len(kills.stages) < most:
            process.join(chance.uniform(0, whole.seconds))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, process.exitcode
        kills.stages.append(_stage(out))
    kills.work_again = counts[_WORK] - whole.work
    assert kills.work_again <= len(kills.stages) * whole.stretch
    return kills


_WORK, _RECORDED, _STRETCH = range(3)


def _counted_run(
    inputs: Path, out: Path, counts: ctypes.Array[ctypes.c_int64], settings: Mapping[str, Any]
) -> None:
    """A run that counts its work where a kill cannot take the count away."""
    advance = Progress.advance

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

    Progress.advance = counted  # type: ignore[method-assign]
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
