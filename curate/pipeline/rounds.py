"""Stages `warm-up`, `round-NNNN` and `scoring`: the method at work, one checkpoint a stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import Config
from curate.files import atomic_path
from curate.pipeline.folder import RunFolder
from curate.pipeline.progress import Progress
from curate.read.cache import TokenCache, draw_blocks
from curate.read.documents import Documents
from curate.records import ROUND, TRAINING
from curate.select.final import RoundScale, mark_top
from curate.select.methods import Method, RoundStart
from curate.select.methods.base import TOKEN
from curate.select.rounds import RoundResult, run_round
from curate.select.schedule import Schedule, visit_coefficients
from curate.train.compute import return_freed_memory
from curate.train.optimizer import StepRecord

_TOKENS_BETWEEN_RETURNS = 80_000
"""Pool tokens after which freed memory goes back to the system: seconds of a small model's work."""


class StepLog:
    """Collects optimizer steps of a stage for the log's `training` table."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def add(self, record: StepRecord) -> None:
        """Keep one step's record."""
        self.records.append(record)

    def write(self, path: Path) -> None:
        """Write the stage's steps as records.TRAINING and forget them."""
        columns = [
            pa.array([getattr(one, field.name) for one in self.records], field.type)
            for field in TRAINING
        ]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_arrays(columns, schema=TRAINING), temporary)
        self.records = []

    def mean_loss(self, model: str) -> float | None:
        """Mean loss of one model's steps since the last write."""
        losses = [one.loss for one in self.records if one.model == model]
        return sum(losses) / len(losses) if losses else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFiles:
    """What the rounds left behind for the selection and the log."""

    decisions: list[Path]
    masks: list[Path]
    training: list[Path]
    records: pa.Table
    scales: list[RoundScale]


class Rounds:
    """Runs the stages of a method over a pool; each is skipped when the manifest has it."""

    def __init__(
        self,
        config: Config,
        schedule: Schedule,
        cache: TokenCache,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        self.steps = StepLog()
        self._config, self._schedule, self._cache = config, schedule, cache
        self._folder, self._progress = folder, progress
        self._by_token = config.granularity == TOKEN
        self._place = folder.state / "rounds"

    def stages(self) -> list[str]:
        """Names of the stages in order."""
        rounds = [f"round-{index:04d}" for index in range(self._schedule.rounds)]
        return ["warm-up", *rounds, *(["scoring"] if self._schedule.scoring else [])]

    def finished(self) -> bool:
        """Whether every stage is done, so that no model is needed."""
        return all(self._folder.result(stage) is not None for stage in self.stages())

    def run(self, method: Method) -> None:
        """Run what is left, from the checkpoint of the last finished stage."""
        previous: str | None = None
        loaded = False
        for index, stage in enumerate(self.stages()):
            if self._folder.result(stage) is None:
                if previous is not None and not loaded:
                    method.load(self._checkpoint(previous))
                loaded = True
                self._progress.stage(stage.replace("-", " "))
                self._run_stage(method, stage, index - 1)
                if previous is not None:
                    self._checkpoint(previous).unlink(missing_ok=True)
            previous = stage

    def files(self) -> RoundFiles:
        """The fragments and figures of all finished stages."""
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
            decisions=[self._decisions(name) for name in rounds],
            masks=[self._masks(name) for name in rounds] if self._by_token else [],
            training=[self._training(name) for name in names],
            records=pa.Table.from_arrays(columns, schema=ROUND),
            scales=scales,
        )

    def _run_stage(self, method: Method, stage: str, index: int) -> None:
        started = time.monotonic()
        result: dict[str, Any] = {}
        if stage == "warm-up":
            method.warm_up()
        else:
            done = self._run_round(method, stage, index)
            record = {**done.record, "train_loss": self.steps.mean_loss("proxy")}
            result = {
                "record": record,
                "score_mean": done.score_mean,
                "score_std": done.score_std,
            }
        self.steps.write(self._training(stage))
        with atomic_path(self._checkpoint(stage)) as temporary:
            method.save(temporary)
        self._folder.finish(stage, result, [], started)

    def _run_round(self, method: Method, stage: str, index: int) -> RoundResult:
        config, schedule = self._config, self._schedule
        scoring = stage == "scoring"
        as_a_whole = scoring and not self._by_token
        path = self._decisions(stage)
        scored = path.with_suffix(".scored") if as_a_whole else path
        done = run_round(
            method,
            self._blocks(index),
            scored,
            masks=self._masks(stage) if self._by_token else None,
            round_index=index,
            method_name=config.method
            + (f" {config.blade.final}" if scoring and schedule.passes else ""),
            keep=config.keep,
            seed=config.seed,
            learn=not scoring,
            on_start=self._show,
        )
        if as_a_whole:
            marked = mark_top(path, scored, keep=config.keep, seed=config.seed)
            scored.unlink()
            done = done.decided_anew(marked)
        return done

    def _blocks(self, index: int) -> Iterator[Documents]:
        """The blocks of round `index`: its share of a pass, the last round taking the rest.

        Shares are counted in tokens, since blocks of whole documents are not all of one size.
        """
        schedule = self._schedule
        pass_index, part = divmod(index, schedule.rounds_per_pass)
        whole_pass = index >= schedule.rounds
        last = whole_pass or part == schedule.rounds_per_pass - 1
        first_token = 0 if whole_pass else part * schedule.round_tokens
        stream = self._cache.stream(self._config.seed, "pass", pass_index)
        tokens = documents = since = 0
        size = schedule.scoring_block_tokens if whole_pass else schedule.block_tokens
        for block in draw_blocks(stream, size):
            if not last and tokens >= first_token + schedule.round_tokens:
                return
            documents += len(block)
            if tokens >= first_token:
                self._progress.show(documents=f"{documents:,}")
                yield block
                since += block.num_tokens
                if since >= _TOKENS_BETWEEN_RETURNS:
                    return_freed_memory()
                    since = 0
            tokens += block.num_tokens

    def _show(self, start: RoundStart) -> None:
        for name, loss in (("u", start.target_loss_proxy), ("w", start.target_loss_reference)):
            if loss is not None:
                self._progress.show(**{f"target_{name}": f"{loss:.3f}"})

    def _decisions(self, stage: str) -> Path:
        return self._place / f"{stage}.decisions.parquet"

    def _masks(self, stage: str) -> Path:
        return self._place / f"{stage}.masks.parquet"

    def _training(self, stage: str) -> Path:
        return self._place / f"{stage}.training.parquet"

    def _checkpoint(self, stage: str) -> Path:
        return self._folder.state / "checkpoints" / f"{stage}.pt"
