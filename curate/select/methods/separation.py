"""Does the target stand out from the pool, and how far is a score to be trusted?

Documents of the target that nothing has learned from are scored like those of the pool, and stand
some spreads above them, the SEPARATION. A target that is like the pool has none, and what then
ranks highest is only odd: worse than a random sample (benchmarks/LOG.md). So scores are softened by
Gumbel noise, which is as large as their spread where the separation is 2.5 standard errors, falls
steeply beyond, and leaves a random sample soon below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from curate.noise import gumbel, make_key
from curate.read.documents import Int64
from curate.score.excess import Float64, spread

_CERTAIN = 2.5
"""Standard errors at which noise is as large as the scores' spread: chance, once in 160 times."""
_STEEPNESS = 6
"""Power with which noise falls: a third of the spread is left at 3 standard errors, a 60th at 5."""
_NOTHING = 0.1
"""At so many, and below, only noise is left."""


@dataclass(frozen=True, slots=True)
class Separation:
    """How far a target stands out.

    Attributes:
        spreads: (mean score of its documents - of the pool's) / spread of the pool's.
        spread: standard deviation of the scores of the pool's documents.
        target_documents: that the one mean is over, M.
        pool_documents: that the other is over, N.
    """

    spreads: float
    spread: float
    target_documents: int
    pool_documents: int

    @property
    def standard_errors(self) -> float:
        """`spreads` in units of what chance gives a target that is like the pool."""
        return self.spreads / math.sqrt(1 / self.target_documents + 1 / self.pool_documents)

    @property
    def temperature(self) -> float:
        """Factor of the Gumbel noise on the scores, in their spreads."""
        return (_CERTAIN / max(self.standard_errors, _NOTHING)) ** _STEEPNESS

    def noise(self, seed: int, ids: Int64) -> Float64:
        """What is added to the scores of documents, a function of the seed and their ids, [N]."""
        key = make_key(seed, "soft selection")
        return self.spread * self.temperature * gumbel(key, ids)

    @property
    def doubt(self) -> str | None:
        """A sentence for the user where noise decides at least as much as the scores do."""
        if self.temperature < 1:
            return None
        number = self.target_documents
        documents = "1 document" if number == 1 else f"{number:,} documents"
        side = "above" if self.spreads >= 0 else "below"
        return (
            f"The target does not stand out from the pool: {documents} of it, held out, scored "
            f"{abs(self.spreads):.2f} spreads {side} the pool's mean, which may be chance. "
            "Noise will decide at least as much as the scores do; a larger target, or one less "
            "like the pool, would give them a meaning."
        )


def measure_separation(target: Float64, pool: Float64) -> Separation:
    """How far a target stands out.

    Args:
        target: scores of documents of the target that nothing has learned from, [M].
        pool: scores of such documents of the pool, [N].
    """
    unit = spread(pool)
    difference = float(target.mean() - pool.mean())
    return Separation(difference / unit, unit, len(target), len(pool))
