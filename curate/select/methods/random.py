"""Uniformly random selection: the control that every other method must beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from curate.noise import make_key, uniform
from curate.read.documents import Documents
from curate.select.methods.base import Context, RoundStart, Scores


class RandomMethod:
    """Scores are uniform noise, a function of (seed, document id) alone."""

    def __init__(self, context: Context) -> None:
        self._key = make_key(context.config.seed, "random method")
        self._on_tokens = context.on_tokens

    def warm_up(self) -> None:
        """Nothing precedes the round."""

    def start_round(self, round_index: int) -> RoundStart:
        """There is one round and nothing to prepare."""
        return RoundStart()

    def score(self, block: Documents) -> Scores:
        """Noise in [0, 1); no losses."""
        self._on_tokens(block.num_tokens)
        unknown = np.full(len(block), np.nan)
        return Scores(unknown, unknown, unknown, uniform(self._key, block.ids))

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def save(self, path: Path) -> None:
        """There is no state: the file is empty."""
        path.write_bytes(b"")

    def load(self, path: Path) -> None:
        """There is no state."""
