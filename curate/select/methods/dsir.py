"""DSIR: importance resampling by hashed n-grams (arXiv 2302.03169, section 3).

Target and pool are each a bag of n-grams with probabilities p over B buckets. A document's log
importance weight is the sum over its n-grams of log p_target - log p_pool; the top k of weight plus
Gumbel noise are a sample without replacement in proportion to the weights. It needs no language
model: two passes of counting words over the pool. As published, the sum grows with a document's
length, by hundreds of nats, so that the noise decides little and a long document somewhat like the
target outranks a short one just like it. The mean over n-grams does not, but is of the order of one
nat, where the noise decides nearly everything: it is meant to go without.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from curate.config.schema import Config
from curate.noise import gumbel, make_key
from curate.read.cache import draw_blocks
from curate.read.documents import Documents, Int64
from curate.select.methods.base import DOCUMENT, Context, Float64, RoundStart, Scores
from curate.select.ngrams import Ngrams
from curate.select.schedule import Schedule, plan_scoring

_SMOOTHING = 1e-8
_BLOCK_TOKENS = 262_144


class DsirMethod:
    """Log importance weights plus noise that is a function of (seed, document id)."""

    granularities: ClassVar[tuple[str, ...]] = (DOCUMENT,)
    has_proxy: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self._context, self._dsir = context, context.config.dsir
        self._counter = context.ngram_counter(self._dsir.buckets)
        self._noise_key = make_key(context.config.seed, "dsir noise")
        nothing = np.zeros(self._dsir.buckets, dtype=np.int64)
        self._set_counts(nothing, nothing)

    def _set_counts(self, target: Int64, pool: Int64) -> None:
        self._target_counts, self._pool_counts = target, pool
        reduce = Ngrams.means if self._dsir.score == "mean" else Ngrams.sums
        self._weigh = functools.partial(reduce, values=log_ratio(target, pool))

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """One pass that counts, one that scores."""
        dsir = config.dsir
        return plan_scoring(
            expected_tokens=2 * pool_tokens,
            description=f"word uni- and bigrams in {dsir.buckets:,} buckets, counted over target "
            f"and pool; score {dsir.score} of log ratios, noise {dsir.noise}",
        )

    def warm_up(self) -> None:
        """Count n-grams over the target and over the whole pool."""
        target = draw_blocks(iter([self._context.target]), _BLOCK_TOKENS)
        pool = draw_blocks(
            self._context.cache.stream(self._context.config.seed, "dsir"), _BLOCK_TOKENS
        )
        self._set_counts(self._count(target), self._count(self._told(pool)))

    def start_round(self, round_index: int) -> RoundStart:
        """There is nothing to bring in step."""
        return RoundStart()

    def score(self, block: Documents) -> Scores:
        """Log importance weight, nats, or its mean per n-gram, plus noise; no losses."""
        score = np.concatenate(self._counter.begin(block, self._weigh)())
        noise = gumbel(self._noise_key, block.ids) if self._dsir.noise == "gumbel" else None
        if noise is not None:
            score += noise
        self._context.on_tokens(block.num_tokens)
        return Scores.of(score, noise=noise)

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def check(self) -> None:
        """Scores are finite by construction."""

    def state_dict(self) -> dict[str, Any]:
        """The two counts, readable with `weights_only`."""
        counts = {"target": self._target_counts, "pool": self._pool_counts}
        return {name: torch.from_numpy(one) for name, one in counts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._set_counts(state["target"].numpy(), state["pool"].numpy())

    def _count(self, blocks: Iterator[Documents]) -> Int64:
        counts = np.zeros(self._dsir.buckets, dtype=np.int64)
        for block in blocks:
            counts += self._counter(block).counts(self._dsir.buckets)
        return counts

    def _told(self, blocks: Iterator[Documents]) -> Iterator[Documents]:
        """The same blocks, each reported as progress once it has been used."""
        for block in blocks:
            yield block
            self._context.on_tokens(block.num_tokens)


def log_ratio(target_counts: Int64, pool_counts: Int64) -> Float64:
    """log(p_target + 1e-8) - log(p_pool + 1e-8) of each bucket, nats, [B]; higher means keep.

    The smoothing is that of the authors' package.

    Args:
        target_counts: n-grams of the target in each bucket, [B].
        pool_counts: n-grams of the pool in each bucket, [B].
    """
    target, pool = (one / max(1, one.sum()) for one in (target_counts, pool_counts))
    ratio: Float64 = np.log(target + _SMOOTHING) - np.log(pool + _SMOOTHING)
    return ratio
