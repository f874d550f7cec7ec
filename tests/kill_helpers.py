"""Runs that are killed at random instants, by SIGKILL, and started again until they are done."""

from __future__ import annotations

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
        seconds_done: of work, over all starts.
    """

    stages: list[str] = field(default_factory=list)
    seconds_done: float = 0.0


def timed_run(
    context: ForkServerContext, inputs: Path, out: Path, settings: Mapping[str, Any]
) -> float:
    """Run to the end; returns the seconds that took."""
    process = context.Process(target=run_tiny, args=(inputs, out), kwargs=settings)
    started = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


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
    while True:
        process = context.Process(target=run_tiny, args=(inputs, out), kwargs=settings)
        started = time.monotonic()
        process.start()
        if len(kills.stages) < most:
            process.join(chance.uniform(0, span))
            process.kill()
        process.join()
        kills.seconds_done += time.monotonic() - started
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -9, process.exitcode
        kills.stages.append(_stage(out))


def _stage(out: Path) -> str:
    """The stage after the last one that is done."""
    folder = RunFolder(out)
    if not folder.manifest_path.exists():
        return "nothing yet"
    done = list(folder._read_manifest()["stages"])
    return f"after {done[-1]}" if done else "tokenizer"
