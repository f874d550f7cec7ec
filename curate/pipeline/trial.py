"""A method at work on a sample of a pool for some seconds: what a token of each stage costs.

It is the code of a run that works: steps of the warm-up, a sync, blocks of a round, blocks of the
last scoring. What comes once, such as a GPU's compiling, is told from what comes with every token,
so that it is not multiplied by the pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from curate.read.cache import draw_blocks
from curate.read.documents import Documents
from curate.select.methods import Context, Method
from curate.select.methods.base import TOKEN, RoundStart
from curate.select.rounds import run_round
from curate.select.schedule import sync_tokens
from curate.train.compute import FreedMemory
from curate.train.optimizer import StepRecord

SECONDS = 5.0
"""For which each stage is watched at least, as far as the sample goes."""
_FEWEST = 3
"""Steps and blocks that are watched, if the sample has as many."""
_REFERENCE_STEPS = 3
"""Of a sync, K in a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a method takes, in seconds.

    Attributes:
        once: of what comes once: models made, first batches, what is measured before a scoring.
        step: of a token in an optimizer step.
        count: of a token that a method without a proxy goes through before it scores.
        sync: of the beginning of a round, steps of its reference apart.
        draw: of a token drawn in a round: scored, decided, learned from.
        score: of a token of the pool in a last pass that only scores.
    """

    once: float = 0.0
    step: float = 0.0
    count: float = 0.0
    sync: float = 0.0
    draw: float = 0.0
    score: float = 0.0


class _Enough(Exception):
    """Enough of the warm-up has been seen."""


class _Watch:
    """Times the blocks of a round."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._made = seconds, time.monotonic()
        self._times: list[float] = []
        self._tokens: list[int] = []

    def blocks(self, blocks: Iterable[Documents]) -> Iterator[Documents]:
        """The blocks, counted."""
        for block in blocks:
            self._tokens.append(block.num_tokens)
            yield block

    def begun(self, start: RoundStart) -> None:
        """Told that the first block comes next."""
        self._times.append(time.monotonic())

    def enough(self) -> bool:
        """Told that a block is done; whether that was the last to be watched."""
        self._times.append(time.monotonic())
        watched = self._times[-1] - self._times[0]
        return len(self._tokens) >= _FEWEST and watched >= self._seconds

    @property
    def before(self) -> float:
        """Seconds until the first block."""
        return self._times[0] - self._made

    @property
    def rate(self) -> float:
        """Seconds a token, the first block left out where there is another."""
        first = min(1, len(self._tokens) - 1)
        return (self._times[-1] - self._times[first]) / sum(self._tokens[first:])

    @property
    def excess(self) -> float:
        """Seconds that the first block took beyond its tokens'."""
        return max(0.0, self._times[1] - self._times[0] - self.rate * self._tokens[0])


class _Steps:
    """Seconds a token of the optimizer's steps, and when there have been enough in the warm-up."""

    def __init__(self, seconds: float) -> None:
        self.of_each: list[float] = []
        self.tokens_told = 0
        self._memory = FreedMemory()
        self._until = time.monotonic() + seconds
        self._warming = True

    def on_step(self, record: StepRecord) -> None:
        self.of_each.append(1 / record.tokens_per_second)
        if self._warming and len(self.of_each) >= _FEWEST and time.monotonic() >= self._until:
            raise _Enough

    def on_tokens(self, tokens: int) -> None:
        self.tokens_told += tokens
        self._memory.when_grown()

    def warmed_up(self) -> None:
        self._warming = False

    @property
    def typical(self) -> float:
        """The mean, without the first where there is another."""
        return fmean(self.of_each[min(1, len(self.of_each) - 1) :]) if self.of_each else 0.0


def try_method(
    kind: type[Method], context: Context, scratch: Path, seconds: float = SECONDS
) -> Costs:
    """Let a method work on a sample of its pool.

    Args:
        kind: the method.
        context: of the run that is asked about, its schedule included, but over the sample.
        scratch: a folder for what would be written.
        seconds: for which each stage is watched at least.

    Raises:
        NonFiniteLoss: training diverged in its first steps.
    """
    config, schedule = context.config, context.schedule
    few = min(int(config.blade.reference_steps or 0), _REFERENCE_STEPS)
    config = dataclasses.replace(
        config, blade=dataclasses.replace(config.blade, reference_steps=few)
    )
    steps, began = _Steps(seconds), time.monotonic()
    method = kind(
        dataclasses.replace(
            context, config=config, on_step=steps.on_step, on_tokens=steps.on_tokens
        )
    )
    with contextlib.suppress(_Enough):
        method.warm_up()
    steps.warmed_up()
    once, count, batch = time.monotonic() - began, 0.0, int(config.train.batch_tokens or 0)
    once -= len(steps.of_each) * batch * steps.typical
    if not kind.has_proxy and steps.tokens_told:
        steps.tokens_told, began = 0, time.monotonic()
        method.warm_up()  # once more, now that whatever counts has been started
        count = (time.monotonic() - began) / steps.tokens_told
        once = 0.0
    sync = draw = score = 0.0
    if schedule.rounds:
        watch = _watch_round(method, context, scratch, seconds, 0)
        once, draw = once + watch.excess, watch.rate
        sync = max(0.0, watch.before - sync_tokens(config) * steps.typical)
    if schedule.scoring:
        watch = _watch_round(method, context, scratch, seconds, schedule.rounds)
        once, score = once + watch.excess + watch.before, watch.rate
    return Costs(
        once=max(0.0, once), step=steps.typical, count=count, sync=sync, draw=draw, score=score
    )


def _watch_round(
    method: Method, context: Context, scratch: Path, seconds: float, round_index: int
) -> _Watch:
    """Blocks of a round, or of the last scoring, until enough of them have been seen."""
    config, schedule, watch = context.config, context.schedule, _Watch(seconds)
    learn = round_index < schedule.rounds
    size = schedule.block_tokens if learn else schedule.scoring_block_tokens
    stream = context.cache.stream(config.seed, "trial", round_index)
    by_token = config.granularity == TOKEN
    run_round(
        method,
        watch.blocks(draw_blocks(stream, size)),
        scratch / f"{round_index}.decisions.parquet",
        masks=scratch / f"{round_index}.masks.parquet" if by_token else None,
        round_index=round_index,
        method_name=config.method,
        keep=config.keep,
        seed=config.seed,
        learn=learn,
        on_start=watch.begun,
        pause=watch.enough,
    )
    return watch
