"""One round: score blocks, spend the budget, let the method learn, write decisions and masks.

The budget is spent block by block (the memoryless Frank-Wolfe vertex of BLADE's Algorithm 1, step
size 1). What a block's whole documents leave over or under is carried to the next block, so that a
round keeps its share of the tokens it drew within one document, or one token at token granularity.
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

from curate.errors import NonFiniteLoss
from curate.noise import make_key, random_uint64
from curate.read.documents import Documents
from curate.select.budget import keep_top, token_noise
from curate.select.decisions import Decided, DecisionWriter
from curate.select.methods.base import Method, RoundStart, Scores


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
    masks: Path | None = None,
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
        masks: where the token masks go, atomically; None at document granularity.
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
    with DecisionWriter(path, masks, round_index) as writer:
        for block in blocks:
            scores = method.score(block)
            _check_finite(scores, block)
            tally.owed += keep * block.num_tokens
            decided = decide(block, scores, tally.owed, ties)
            if learn:
                unit = decided.documents if decided.tokens is None else decided.tokens
                method.learn(block, unit)
            tally.add(block, scores.score, decided)
            writer.add(block, scores, decided)
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


def decide(block: Documents, scores: Scores, budget: float, key: int) -> Decided:
    """Spend a token budget on the highest scores of a block, by document or by token.

    Args:
        block: the candidates.
        scores: theirs; with `token_score` tokens are kept, otherwise documents.
        budget: tokens to keep.
        key: of the tie breaks.
    """
    lengths = block.lengths
    if scores.token_score is None:
        kept = keep_top(scores.score, lengths, budget, random_uint64(key, block.ids))
        threshold = float(scores.score[kept].min()) if kept.any() else math.nan
        return Decided(kept, np.where(kept, lengths, 0), threshold)
    one = np.ones(block.num_tokens, dtype=np.int64)
    tokens = keep_top(scores.token_score, one, budget, token_noise(key, block))
    threshold = float(scores.token_score[tokens].min()) if tokens.any() else math.nan
    ends = np.concatenate([[0], np.cumsum(tokens)])
    counts = np.diff(ends[block.offsets])
    return Decided(counts > 0, counts, threshold, tokens)


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
        decided: Decided,
    ) -> None:
        tokens_kept, threshold = int(decided.tokens_kept.sum()), decided.threshold
        self.owed -= tokens_kept
        self.documents += len(block)
        self.documents_kept += int(decided.documents.sum())
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


def _check_finite(scores: Scores, block: Documents) -> None:
    broken = np.flatnonzero(~np.isfinite(scores.score))
    if len(broken):
        raise NonFiniteLoss(
            f"Document {block.ids[broken[0]]} got a score that is not a finite number.",
            "Lower train.learning_rate, or run with --set compute.dtype=float32.",
        )
