"""Uniformly random selection: the control that every other method must beat."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from curate.config.schema import Config
from curate.noise import make_key, uniform
from curate.read.documents import Documents
from curate.select.budget import token_noise
from curate.select.methods.base import DOCUMENT, TOKEN, Context, RoundStart, Scores
from curate.select.schedule import Schedule, plan_scoring


class RandomMethod:
    """Scores are uniform noise, a function of seed and document (and token) alone."""

    granularities: ClassVar[tuple[str, ...]] = (DOCUMENT, TOKEN)
    has_proxy: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self._key = make_key(context.config.seed, "random method")
        self._by_token = context.config.granularity == TOKEN
        self._on_tokens = context.on_tokens

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """Every document once."""
        return plan_scoring(expected_tokens=pool_tokens)

    def warm_up(self) -> None:
        """Nothing precedes the scoring."""

    def start_round(self, round_index: int) -> RoundStart:
        """There is nothing to prepare."""
        return RoundStart()

    def score(self, block: Documents) -> Scores:
        """Noise in [0, 1); no losses."""
        self._on_tokens(block.num_tokens)
        drawn = uniform(self._key, block.ids)
        scores = Scores.of(drawn, noise=None if self._by_token else drawn)
        if self._by_token:
            noise = token_noise(self._key, block).astype(np.float64)
            scores = scores.with_tokens(noise * 2.0**-64, block)
        return scores

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def check(self) -> None:
        """Scores are finite by construction."""

    def state_dict(self) -> dict[str, Any]:
        """There is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""
