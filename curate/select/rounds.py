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
from typing import Any

import numpy as np
import numpy.typing as npt

from curate.clock import SELECT, WRITE, doing
from curate.errors import NonFiniteLoss
from curate.noise import make_key, random_uint64
from curate.read.documents import Documents
from curate.select.budget import keep_top, token_noise
from curate.select.decisions import Decided, DecisionWriter
from curate.select.methods.base import Method, RoundStart, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """The figures of a round so far: a row of the log's `round` table and what follows from it.

    Plain values, so that a round that was paused can be written down and taken up again.

    Attributes:
        record: a row of records.ROUND, `train_loss` filled in by the pipeline.
        score_mean: mean score over the round's documents.
        score_std: its standard deviation, for scores that compare across rounds.
        blocks: how many were scored.
        finished: whether there was no block left.
        tally: the sums behind the figures.
    """

    record: dict[str, Any]
    score_mean: float
    score_std: float
    blocks: int
    finished: bool
    tally: dict[str, Any]

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
    before: RoundResult | None = None,
    on_start: Callable[[RoundStart], None] = lambda start: None,
    pause: Callable[[], bool] = lambda: False,
) -> RoundResult:
    """Run a round over `blocks`, or a part of it, and write its decisions to `path`.

    Args:
        method: scores the blocks and learns from what is kept.
        blocks: the round's candidates, those of `before` left out.
        path: where these decisions go, a Parquet file, atomically.
        masks: where the token masks go, atomically; None at document granularity.
        round_index: 0-based, for the log.
        method_name: for the log.
        keep: share of each block's tokens to keep.
        seed: of the tie breaks.
        learn: whether the method is told what was kept.
        before: what an earlier part of the round came to; the method is as it was then.
        on_start: told how the round begins.
        pause: asked after every block; true ends this part of the round.

    Raises:
        NonFiniteLoss: a score, or a loss on the target, is NaN or infinite.
    """
    started = time.monotonic()
    if before is None:
        start = method.start_round(round_index)
        _check_start(start, round_index)
        on_start(start)
        begun: dict[str, Any] = {
            **dataclasses.asdict(start),
            "lambda": start.lambda_,
            "seconds": 0.0,
        }
        tally, count = _Tally(), 0
    else:
        begun, tally, count = before.record, _Tally(**before.tally), before.blocks
    ties = make_key(seed, "ties", round_index)
    finished = True
    with DecisionWriter(path, masks, round_index) as writer:
        for block in blocks:
            scores = method.score(block)
            with doing(SELECT):
                scores.check(block)
                tally.owed += keep * block.num_tokens
                decided = decide(block, scores, tally.owed, ties)
            if learn:
                unit = decided.documents if decided.tokens is None else decided.tokens
                method.learn(block, unit)
            with doing(WRITE):
                tally.add(block, scores.score, decided)
                writer.add(block, scores, decided)
            count += 1
            if pause():
                finished = False
                break
    names = (
        "lambda",
        "proxy_step",
        "reference_steps",
        "target_loss_proxy",
        "target_loss_reference",
        "target_separation",
    )
    record = {
        "round": round_index,
        "method": method_name,
        "keep_ratio": keep,
        **{name: begun[name] for name in names},
        "train_loss": None,
        **tally.figures(),
        "seconds": begun["seconds"] + time.monotonic() - started,
    }
    return RoundResult(
        record=record,
        score_mean=tally.mean,
        score_std=tally.std,
        blocks=count,
        finished=finished,
        tally=dataclasses.asdict(tally),
    )


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


@dataclass(slots=True)
class _Tally:
    """Running sums over the blocks of a round.

    Attributes:
        owed: tokens that the budget has to give, what whole documents left over or under included.
    """

    owed: float = 0.0
    documents: int = 0
    documents_kept: int = 0
    tokens: int = 0
    tokens_kept: int = 0
    scores: float = 0.0
    squares: float = 0.0
    thresholds: float = 0.0
    threshold_tokens: int = 0

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
        self.scores += float(scores.sum())
        self.squares += float(np.square(scores).sum())
        if not math.isnan(threshold):
            self.thresholds += threshold * block.num_tokens
            self.threshold_tokens += block.num_tokens

    @property
    def mean(self) -> float:
        return self.scores / max(1, self.documents)

    @property
    def std(self) -> float:
        variance = self.squares / max(1, self.documents) - self.mean**2
        return math.sqrt(max(0.0, variance))

    def figures(self) -> dict[str, object]:
        known = self.threshold_tokens > 0
        return {
            "threshold": self.thresholds / self.threshold_tokens if known else None,
            "documents_scored": self.documents,
            "documents_kept": self.documents_kept,
            "tokens_scored": self.tokens,
            "tokens_kept": self.tokens_kept,
        }


def _check_start(start: RoundStart, round_index: int) -> None:
    for model in ("proxy", "reference"):
        loss = getattr(start, f"target_loss_{model}")
        if loss is not None and not math.isfinite(loss):
            raise NonFiniteLoss(
                f"Round {round_index} began with a loss of {loss:g} of the {model} model on the "
                "target."
            )
