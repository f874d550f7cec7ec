"""Runs that are killed at random instants, by SIGKILL, and started again until they are done."""

from __future__ import annotations

import ctypes
import multiprocessing
import random
import time
from collections.abc import Mapping
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
        work: units of work done over all starts; see `Whole`.
    """

    stages: list[str] = field(default_factory=list)
    work: int = 0


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that nobody killed.

    Attributes:
        seconds: that it took.
        work: bytes tokenized, tokens passed through models and parts written, summed.
    """

    seconds: float
    work: int


def timed_run(
    context: ForkServerContext, inputs: Path, out: Path, settings: Mapping[str, Any]
) -> Whole:
    """Run to the end."""
    work = context.RawValue(ctypes.c_int64, 0)
    process = context.Process(target=_counted_run, args=(inputs, out, work, dict(settings)))
    started = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return Whole(time.monotonic() - started, work.value)


def kill_until_done(
    context: ForkServerContext,
    inputs: Path,
    out: Path,
    settings: Mapping[str, Any],
    span: float,
    chance: random.Random,
    most: int,
) -> Kills:
    """Start a run again and again, killed after up to `span` seconds each, until it is done.

    After `most` kills it is left alone.
    """
    kills = Kills()
    work = context.RawValue(ctypes.c_int64, 0)
    while True:
        process = context.Process(target=_counted_run, args=(inputs, out, work, dict(settings)))
        process.start()
        if len(kills.stages) < most:
            process.join(chance.uniform(0, span))
            process.kill()
        process.join()
        if process.exitcode == 0:
            kills.work = work.value
            return kills
        assert process.exitcode == -9, process.exitcode
        kills.stages.append(_stage(out))


def _counted_run(
    inputs: Path, out: Path, work: ctypes.c_int64, settings: Mapping[str, Any]
) -> None:
    """A run that counts what it does where a kill cannot take the count away."""
    advance = Progress.advance

    def counted(self: Progress, amount: int) -> None:
        work.value += amount
        advance(self, amount)

    Progress.advance = counted  # type: ignore[method-assign]
    run_tiny(inputs, out, **settings)


def _stage(out: Path) -> str:
    """The stage after the last one that is done."""
    folder = RunFolder(out)
    if not folder.manifest_path.exists():
        return "nothing yet"
    done = list(folder._read_manifest()["stages"])
    return f"after {done[-1]}" if done else "tokenizer"
