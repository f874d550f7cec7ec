"""One round: draw blocks, score them, spend the budget, let the method learn, write decisions.

The budget is spent block by block (the memoryless Frank-Wolfe vertex of BLADE's Algorithm 1, step
size 1). What a block's whole documents leave over or under is carried to the next block, so that a
round keeps its share of the tokens it drew within one document.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import NonFiniteLoss
from curate.files import atomic_path
from curate.noise import make_key, random_uint64
from curate.read.documents import Documents
from curate.records import DECISION
from curate.select.budget import keep_top
from curate.select.methods.base import Method, RoundStart, Scores

_ROWS_PER_WRITE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """The figures of a finished round: a row of the log's `round` table and what follows from it.

    Attributes:
        record: a row of records.ROUND, `train_loss` filled in by the pipeline.
        score_mean: mean score over the round's documents.
        score_std: its standard deviation, for scores that compare across rounds.
    """

    record: dict[str, object]
    score_mean: float
    score_std: float

    def decided_anew(self, figures: Mapping[str, float]) -> RoundResult:
        """The same scores under other decisions, whose figures replace those of the record."""
        return dataclasses.replace(self, record={**self.record, **figures})


def run_round(
    method: Method,
    blocks: Iterable[Documents],
    path: Path,
    *,
    round_index: int,
    method_name: str,
    keep: float,
    seed: int,
    learn: bool = True,
    on_start: Callable[[RoundStart], None] = lambda start: None,
) -> RoundResult:
    """Run one round over `blocks` and write its decisions to the Parquet file `path`.

    Args:
        method: scores the blocks and learns from what is kept.
        blocks: the round's candidates.
        path: where the decisions go, atomically.
        round_index: 0-based, for the log.
        method_name: for the log.
        keep: share of each block's tokens to keep.
        seed: of the tie breaks.
        learn: whether the method is told what was kept.
        on_start: told how the round begins.

    Raises:
        NonFiniteLoss: a score is NaN or infinite.
    """
    started = time.monotonic()
    start = method.start_round(round_index)
    on_start(start)
    ties = make_key(seed, "ties", round_index)
    tally = _Tally()
    with atomic_path(path) as temporary, _DecisionWriter(temporary, round_index) as writer:
        for block in blocks:
            scores = method.score(block)
            _check_finite(scores, block)
            tally.owed += keep * block.num_tokens
            noise = random_uint64(ties, block.ids)
            kept = keep_top(scores.score, block.lengths, tally.owed, noise)
            threshold = float(scores.score[kept].min()) if kept.any() else math.nan
            if learn:
                method.learn(block, kept)
            tally.add(block, scores.score, kept, threshold)
            writer.add(block, scores, threshold, kept)
    record = {
        "round": round_index,
        "method": method_name,
        "lambda": start.lambda_,
        "keep_ratio": keep,
        "proxy_step": start.proxy_step,
        "reference_steps": start.reference_steps,
        "target_loss_proxy": start.target_loss_proxy,
        "target_loss_reference": start.target_loss_reference,
        "train_loss": None,
        **tally.figures(),
        "seconds": time.monotonic() - started,
    }
    return RoundResult(record=record, score_mean=tally.mean, score_std=tally.std)


class _Tally:
    """Running sums over the blocks of a round."""

    def __init__(self) -> None:
        self.owed = 0.0
        self.documents = self.documents_kept = self.tokens = self.tokens_kept = 0
        self._sum = self._sum_of_squares = 0.0
        self._threshold_sum, self._threshold_tokens = 0.0, 0

    def add(
        self,
        block: Documents,
        scores: npt.NDArray[np.float64],
        kept: npt.NDArray[np.bool_],
        threshold: float,
    ) -> None:
        tokens_kept = int(block.lengths[kept].sum())
        self.owed -= tokens_kept
        self.documents += len(block)
        self.documents_kept += int(kept.sum())
        self.tokens += block.num_tokens
        self.tokens_kept += tokens_kept
        self._sum += float(scores.sum())
        self._sum_of_squares += float(np.square(scores).sum())
        if not math.isnan(threshold):
            self._threshold_sum += threshold * block.num_tokens
            self._threshold_tokens += block.num_tokens

    @property
    def mean(self) -> float:
        return self._sum / max(1, self.documents)

    @property
    def std(self) -> float:
        variance = self._sum_of_squares / max(1, self.documents) - self.mean**2
        return math.sqrt(max(0.0, variance))

    def figures(self) -> dict[str, object]:
        known = self._threshold_tokens > 0
        return {
            "threshold": self._threshold_sum / self._threshold_tokens if known else None,
            "documents_scored": self.documents,
            "documents_kept": self.documents_kept,
            "tokens_scored": self.tokens,
            "tokens_kept": self.tokens_kept,
        }


class _DecisionWriter:
    """Buffers decisions and writes them as row groups of one Parquet file."""

    def __init__(self, path: Path, round_index: int) -> None:
        self._writer = pq.ParquetWriter(path, DECISION, compression="zstd")
        self._round = round_index
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def __enter__(self) -> _DecisionWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
        self._writer.close()

    def add(
        self, block: Documents, scores: Scores, threshold: float, kept: npt.NDArray[np.bool_]
    ) -> None:
        rows = len(block)
        columns = [
            pa.array(block.ids),
            pa.array(np.full(rows, self._round, np.int32)),
            pa.array(block.lengths),
            pa.array(block.bytes),
            _nullable(scores.proxy_loss),
            _nullable(scores.reference_loss),
            _nullable(scores.excess_loss),
            _nullable(scores.score),
            _nullable(np.full(rows, threshold)),
            pa.array(kept),
        ]
        self._held.append(pa.RecordBatch.from_arrays(columns, schema=DECISION))
        self._rows += rows
        if self._rows >= _ROWS_PER_WRITE:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held))
        self._held, self._rows = [], 0


def _nullable(values: npt.NDArray[np.float64]) -> pa.Array:
    """float32 with NaN as null."""
    return pa.array(values.astype(np.float32), from_pandas=True)


def _check_finite(scores: Scores, block: Documents) -> None:
    broken = np.flatnonzero(~np.isfinite(scores.score))
    if len(broken):
        raise NonFiniteLoss(
            f"Document {block.ids[broken[0]]} got a score that is not a finite number.",
            "Lower train.learning_rate, or run with --set compute.dtype=float32.",
        )
