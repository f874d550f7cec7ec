"""Perplexity bands: documents by the proxy's own loss, without a target.

The lowest band keeps what the proxy finds easiest (CCNet, arXiv 1911.00359, keeps the head of a
Wikipedia model's ranking); the middle band drops both the trivial and the noisy, the better choice
in pruning studies (arXiv 2309.04564).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from curate.config.schema import Config
from curate.read.cache import draw_blocks
from curate.read.documents import Documents
from curate.score.loss import Float64, document_losses, tokens_read
from curate.select.methods.base import (
    DOCUMENT,
    Context,
    RoundStart,
    Scores,
    check_finite,
)
from curate.select.methods.proxy import Proxy
from curate.select.schedule import Schedule, plan_scoring

_MEDIAN_TOKENS = 1_000_000
"""Pool tokens on which the middle of the losses is measured."""


class PerplexityMethod:
    """Score = - loss (lowest band), or - distance of the loss from the pool's median (middle)."""

    granularities: ClassVar[tuple[str, ...]] = (DOCUMENT,)
    has_proxy: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        self._context = context
        self._proxy = Proxy(context)
        self._center = 0.0

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """Warm-up, then one scoring of the whole pool."""
        warmup = int(config.blade.warmup_tokens or 0)
        return plan_scoring(
            expected_tokens=warmup + min(pool_tokens, _MEDIAN_TOKENS) + pool_tokens,
            description=f"warm-up {warmup:,} tokens; {config.perplexity.band} band of the proxy's "
            "loss",
        )

    def warm_up(self) -> None:
        """Train the proxy on unselected documents, and find the middle of its losses."""
        self._proxy.warm_up()
        if self._context.config.perplexity.band == "middle":
            self._center = self._median_loss()

    def start_round(self, round_index: int) -> RoundStart:
        """There is nothing to prepare."""
        return RoundStart(proxy_step=self._proxy.optimizer.steps)

    def score(self, block: Documents) -> Scores:
        """Nearness to the band."""
        losses = self._losses(block)
        self._context.on_tokens(block.num_tokens)
        middle = self._context.config.perplexity.band == "middle"
        score = -np.abs(losses - self._center) if middle else -losses
        read = tokens_read(self._proxy.model, block, self._context.config.score_tokens)
        return Scores.of(score, proxy_loss=losses, tokens_read=read)

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def check(self) -> None:
        """The proxy's losses must be finite."""
        self._proxy.check()

    def state_dict(self) -> dict[str, Any]:
        """The proxy and the center."""
        return {"proxy": self._proxy.state_dict(), "center": self._center}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._proxy.load_state_dict(state["proxy"])
        self._center = state["center"]

    def _losses(self, block: Documents) -> Float64:
        return document_losses(self._proxy.scored, block, self._context.config.score_tokens)

    def _median_loss(self) -> float:
        """Median of the documents' losses, each document counted by its tokens."""
        losses, sizes, left = [], [], _MEDIAN_TOKENS
        stream = self._context.cache.stream(self._context.config.seed, "median")
        for block in draw_blocks(stream, self._proxy.batch_tokens):
            losses.append(self._losses(block))
            check_finite("a loss", losses[-1], block)
            sizes.append(block.lengths)
            self._context.on_tokens(block.num_tokens)
            left -= block.num_tokens
            if left <= 0:
                break
        every, tokens = np.concatenate(losses), np.concatenate(sizes)
        order = np.argsort(every)
        half = np.searchsorted(np.cumsum(tokens[order]), tokens.sum() / 2)
        return float(every[order][half])
