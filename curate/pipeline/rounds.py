"""Stages `warm-up`, `round-NNNN` and `scoring`: the method at work, in parts with checkpoints."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.clock import CHECKPOINT, doing
from curate.config import Config
from curate.errors import CurateError, NonFiniteLoss
from curate.files import atomic_path
from curate.pipeline.checkpoints import CheckpointWriter, load_state
from curate.pipeline.folder import START_AGAIN, RunFolder, check_state
from curate.pipeline.progress import Progress
from curate.read.cache import TokenCache
from curate.read.documents import Documents
from curate.read.locate import short_reason
from curate.records import ROUND, TRAINING
from curate.select.candidates import Candidates
from curate.select.final import RoundScale, mark_top
from curate.select.methods import Method, RoundStart
from curate.select.methods.base import TOKEN
from curate.select.rounds import RoundResult, run_round
from curate.select.schedule import Schedule, visit_coefficients
from curate.stop import Stop
from curate.train.compute import FreedMemory
from curate.train.optimizer import StepRecord

_NOT_TRAINED = "Run with --set compute.dtype=float32, or with another model."
"""What to do when no rate can be to blame."""


class StepLog:
    """Collects optimizer steps of a stage for the log's `training` table."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.sums: dict[str, list[float]] = {}
        """Sum of the losses and number of the stage's steps, by model."""

    def add(self, record: StepRecord) -> None:
        """Keep one step's record."""
        self.records.append(record)
        total, count = self.sums.get(record.model, [0.0, 0])
        self.sums[record.model] = [total + record.loss, count + 1]

    def write(self, path: Path) -> None:
        """Write the steps since the last write as records.TRAINING."""
        columns = [
            pa.array([getattr(one, field.name) for one in self.records], field.type)
            for field in TRAINING
        ]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_arrays(columns, schema=TRAINING), temporary)
        self.records = []

    def mean_loss(self, model: str) -> float | None:
        """Mean loss of one model's steps in the stage."""
        total, count = self.sums.get(model, [0.0, 0])
        return total / count if count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFiles:
    """What the rounds left behind for the selection and the log."""

    decisions: list[Path]
    masks: list[Path]
    training: list[Path]
    records: pa.Table
    scales: list[RoundScale]


class Rounds:
    """Runs the stages of a method over a pool; each is skipped when the manifest has it.

    A stage is written in PARTS: whenever `compute.checkpoint_minutes` have passed, or a signal asks
    to stop, what it has decided, the steps it has logged and the method's state are put on disk,
    and then the manifest is told. A run that was killed goes on from there.

    A stage that meets a loss or a score that is not finite starts over, from the end of the stage
    before, at lower learning rates. It does not go on from a part, because where parts end depends
    on the clock and on signals, and what comes of a run must not.
    """

    def __init__(
        self,
        config: Config,
        schedule: Schedule,
        cache: TokenCache,
        folder: RunFolder,
        *,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._config, self._schedule = config, schedule
        self._candidates = Candidates(schedule, cache, config.seed)
        self._folder, self._progress, self._stop = folder, progress, stop
        self._by_token = config.granularity == TOKEN
        self._place = folder.state / "rounds"
        self._steps = StepLog()
        self._method: Method | None = None
        self._before: str | None = None
        self._stage, self._part, self._part_started = "", 0, 0.0
        self._memory, self._writer = FreedMemory(), CheckpointWriter()

    def stages(self) -> list[str]:
        """Names of the stages in order."""
        rounds = [f"round-{index:04d}" for index in range(self._schedule.rounds)]
        return ["warm-up", *rounds, *(["scoring"] if self._schedule.scoring else [])]

    def finished(self) -> bool:
        """Whether every stage is done, so that no model is needed."""
        return all(self._folder.result(stage) is not None for stage in self.stages())

    @property
    def begun(self) -> bool:
        """Whether anything of any stage is recorded."""
        states = (self._folder.result, self._folder.partial)
        return any(state(stage) is not None for stage in self.stages() for state in states)

    def on_step(self, record: StepRecord) -> None:
        """Log an optimizer step; during the warm-up it may end a part."""
        self._steps.add(record)
        if self._stage == "warm-up" and self._due():
            self._pause({})

    def on_tokens(self, tokens: int) -> None:
        """Show progress, and give memory back; what a warm-up does besides steps can stop here."""
        self._progress.advance(tokens)
        self._memory.when_grown()
        self._writer.look()
        if self._stage == "warm-up":
            self._stop.check()

    def run(self, make: Callable[[int], Method]) -> None:
        """Run what is left, from the last checkpoint.

        Args:
            make: builds the method with the learning rates that hold after so many rollbacks.

        Raises:
            NonFiniteLoss: going back would not help, or has been tried often enough.
        """
        with self._writer:
            while not self.finished():
                try:
                    self._run_stages(make(len(self._folder.rollbacks)))
                except NonFiniteLoss as error:
                    self._writer.finish()
                    self._roll_back(error)
                self._method = None
                gc.collect()  # a method holds itself in a cycle, and two would not fit into memory

    def _run_stages(self, method: Method) -> None:
        self._method, self._before = method, None
        loaded = False
        for index, stage in enumerate(self.stages()):
            if self._folder.result(stage) is None:
                partial = self._folder.partial(stage)
                checkpoint = self._checkpoint(stage, partial["part"]) if partial else self._origin
                if checkpoint is not None and not loaded:
                    _load(method, checkpoint)
                loaded = True
                self._progress.stage(stage.replace("-", " "))
                self._run_stage(stage, index - 1, partial)
            self._before = stage

    def _roll_back(self, error: NonFiniteLoss) -> None:
        """Let the stage that failed start over, unless that is in vain.

        A stage that has taken no step would come to the same point again whatever the rates.

        Raises:
            NonFiniteLoss: it is, or has been tried often enough.
        """
        times, most = len(self._folder.rollbacks), self._config.train.max_rollbacks
        if most == 0 or not self._running().has_proxy:
            raise error
        problem = error.problem.removesuffix(".")
        before = _in_words(self._before) if self._before else None
        if times >= most:
            often = "once" if times == 1 else f"{times} times"
            each = "" if times == 1 else ", each time"
            raise NonFiniteLoss(
                f"{problem}, after the run had gone back {often}{each} with learning rates halved.",
                error.remedy,
            ) from error
        if not self._steps.sums:
            steps = f"since the end of {before}" if before else "yet"
            raise NonFiniteLoss(
                f"{problem}; no step has been taken {steps}, so going back would change nothing.",
                error.remedy if before else _NOT_TRAINED,
            ) from error
        self._folder.roll_back(self._stage, error.problem, self._part_started)
        way = f"going on from the end of {before}" if before else "starting again"
        halved = f"with learning rates halved ({times + 1} of {most})"
        self._progress.note(f"{problem}; {way} {halved}.")
        self._stop.check()

    def tidy(self, stage: str) -> None:
        """Remove what is not needed once a stage is done."""
        self._keep_checkpoints(self._checkpoint(stage))
        for scored in self._place.glob(f"{stage}.*.scored.parquet"):
            scored.unlink()

    def files(self) -> RoundFiles:
        """The fragments and figures of all finished stages.

        Raises:
            OutputFailed: a fragment is gone or damaged.
        """
        names = self.stages()
        rounds = names[1:]
        results = [self._folder.result(name) for name in rounds]
        coefficients = visit_coefficients(
            self._config.blade.average or "last", self._schedule.passes + self._schedule.scoring
        )
        scales = [
            RoundScale(
                index,
                coefficients[index // self._schedule.rounds_per_pass],
                result["score_mean"],
                result["score_std"],
            )
            for index, result in enumerate(results)
        ]
        columns = [
            pa.array([result["record"][field.name] for result in results], field.type)
            for field in ROUND
        ]
        return RoundFiles(
            decisions=self._fragments(rounds, "decisions"),
            masks=self._fragments(rounds, "masks") if self._by_token else [],
            training=self._fragments(names, "training"),
            records=pa.Table.from_arrays(columns, schema=ROUND),
            scales=scales,
        )

    def _run_stage(self, stage: str, index: int, partial: Mapping[str, Any] | None) -> None:
        method = self._running()
        self._stage, self._part = stage, partial["part"] + 1 if partial else 0
        self._memory.give_back()  # a stage begins with a peak of its own
        self._discard(stage, self._part)
        self._steps = StepLog()
        self._steps.sums = dict(partial["losses"]) if partial else {}
        self._part_started = time.monotonic()
        result: dict[str, Any] = {}
        if stage == "warm-up":
            steps = self._stop.deferred() if method.has_proxy else contextlib.nullcontext()
            with steps:
                method.warm_up()
        else:
            done = self._run_round(stage, index, partial)
            result = {
                "record": {**done.record, "train_loss": self._steps.mean_loss("proxy")},
                "score_mean": done.score_mean,
                "score_std": done.score_std,
            }
        if stage != "scoring":
            method.check()
        result["parts"] = self._part + 1
        started = self._part_started

        def record() -> None:
            self._folder.finish(stage, result, [], started, self._end_of_part(started))
            self.tidy(stage)

        self._save(self._checkpoint(stage) if stage != self.stages()[-1] else None, record)
        self._stop.check()

    def _run_round(self, stage: str, index: int, partial: Mapping[str, Any] | None) -> RoundResult:
        """Go through the round part by part; the last is left for the caller to record."""
        config, schedule = self._config, self._schedule
        scoring = stage == "scoring"
        as_a_whole = self._decided_as_a_whole(stage)
        done = RoundResult(**partial["round"]) if partial else None
        with contextlib.ExitStack() as later:
            if done is not None:
                later.enter_context(self._stop.deferred())

            def begun(start: RoundStart) -> None:
                later.enter_context(self._stop.deferred())
                self._show(start)

            while True:
                done = run_round(
                    self._running(),
                    self._blocks(index, done.blocks if done else 0),
                    self._file(stage, "scored" if as_a_whole else "decisions", self._part),
                    masks=self._file(stage, "masks", self._part) if self._by_token else None,
                    round_index=index,
                    method_name=config.method
                    + (f" {config.blade.final}" if scoring and schedule.passes else ""),
                    keep=config.keep,
                    seed=config.seed,
                    learn=not scoring,
                    before=done,
                    on_start=begun,
                    pause=self._due,
                )
                if done.finished:
                    break
                self._pause({"round": dataclasses.asdict(done)})
        if as_a_whole:
            scored = self._parts(stage, "scored", self._part + 1)
            path = self._file(stage, "decisions", 0)
            done = done.decided_anew(mark_top(path, scored, keep=config.keep, seed=config.seed))
        return done

    def _due(self) -> bool:
        """Whether it is time for a checkpoint."""
        waited = time.monotonic() - self._part_started
        return self._stop.asked or waited >= 60 * self._config.compute.checkpoint_minutes

    def _pause(self, result: Mapping[str, Any]) -> None:
        """End a part: write it down, and go on with the next unless a signal asks to stop."""
        stage, part = self._stage, self._part
        learned = stage != "scoring" or part == 0
        left = {"part": part, "losses": copy.deepcopy(self._steps.sums), **result}
        kept = self._checkpoint(stage, part), self._origin
        started = self._part_started

        def record() -> None:
            self._folder.pause(stage, left, started, self._end_of_part(started))
            self._keep_checkpoints(*kept)

        self._save(self._checkpoint(stage, part) if learned else None, record)
        self._part, self._part_started = part + 1, time.monotonic()
        self._stop.check()

    @doing(CHECKPOINT)
    def _save(self, checkpoint: Path | None, record: Callable[[], None]) -> None:
        """Put the steps of a part, and the method's state where one is to be kept, on disk.

        Then, which on a GPU is later, the part is recorded.
        """
        self._steps.write(self._file(self._stage, "training", self._part))
        if checkpoint is None:
            self._writer.finish()
            record()
        else:
            self._writer.write(self._running().state_dict(), checkpoint, record)

    def _end_of_part(self, started: float) -> float:
        """When the part that began at `started` ended: when the next one began, or now."""
        return self._part_started if self._part_started > started else time.monotonic()

    def _running(self) -> Method:
        if self._method is None:
            raise RuntimeError("stages run within `run`")
        return self._method

    def _blocks(self, index: int, done: int) -> Iterator[Documents]:
        """The blocks of round `index` without the first `done`; progress shows how far it is."""
        for block in self._candidates.blocks(index, done):
            self._progress.show(documents=f"{self._candidates.documents:,}")
            yield block

    def _show(self, start: RoundStart) -> None:
        if start.note is not None:
            self._progress.note(start.note)
        for name, loss in (("u", start.target_loss_proxy), ("w", start.target_loss_reference)):
            if loss is not None:
                self._progress.show(**{f"target_{name}": f"{loss:.3f}"})

    def _file(self, stage: str, kind: str, part: int) -> Path:
        return self._place / f"{stage}.{part:04d}.{kind}.parquet"

    def _decided_as_a_whole(self, stage: str) -> bool:
        """Whether a stage's decisions are made, and written in one file, when all is scored."""
        return stage == "scoring" and not self._by_token

    def _fragments(self, stages: Sequence[str], kind: str) -> list[Path]:
        """The files of finished stages in order."""
        found: list[Path] = []
        for stage in stages:
            one = kind == "decisions" and self._decided_as_a_whole(stage)
            parts = 1 if one else (self._folder.result(stage) or {})["parts"]
            found += self._parts(stage, kind, parts)
        return found

    def _parts(self, stage: str, kind: str, number: int) -> list[Path]:
        """The files of a stage's parts in order.

        Raises:
            OutputFailed: one is gone or damaged.
        """
        found = [self._file(stage, kind, part) for part in range(number)]
        check_state(found)
        return found

    def _discard(self, stage: str, part: int) -> None:
        """Remove what is left of a stage from a part on, by a killed run or before a rollback."""
        for path in self._place.glob(f"{stage}.*.parquet"):
            if int(path.name.split(".")[1]) >= part:
                path.unlink()

    def _checkpoint(self, stage: str, part: int | None = None) -> Path:
        """The method's state at the end of a stage, or of one of its parts.

        That of the first part of the scoring is that of all: once begun, it teaches nothing.
        """
        if part is not None and stage == "scoring":
            part = 0
        name = stage if part is None else f"{stage}.{part:04d}"
        return self._folder.state / "checkpoints" / f"{name}.pt"

    @property
    def _origin(self) -> Path | None:
        """The checkpoint of the stage before, which a rollback starts from; None at the first."""
        return self._checkpoint(self._before) if self._before else None

    def _keep_checkpoints(self, *kept: Path | None) -> None:
        """Remove all checkpoints but these."""
        for path in (self._folder.state / "checkpoints").iterdir():
            if path not in kept:
                path.unlink()


def _in_words(stage: str) -> str:
    """A stage as the log numbers it."""
    name, _, number = stage.partition("-")
    return f"round {int(number)}" if name == "round" else stage


def _load(method: Method, checkpoint: Path) -> None:
    """Set a method back; checkpoints hold tensors and plain values, and nothing else is read.

    Raises:
        CurateError: the file is gone, or is not one that this run wrote.
    """
    try:
        method.load_state_dict(load_state(checkpoint))
    except Exception as error:  # a file that somebody changed can fail in any way
        raise CurateError(
            f"The checkpoint {checkpoint} cannot be read ({short_reason(error)}).", START_AGAIN
        ) from error
