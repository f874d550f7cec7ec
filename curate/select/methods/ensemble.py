"""Scores by several pairs at once: the first sync's and the one at hand.

A pair sees the pool as a model of its stage does. The first judges before the proxy has learned
what it picks, the last after; a document that both prefer is a safer choice than the favourite of
either (benchmarks/LOG.md). Excess losses are divided by their spread over a sample of the pool, so
that no pair outvotes another by having moved further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.read.documents import Documents
from curate.score.excess import excess_loss
from curate.score.loss import Float64, document_losses
from curate.select.methods.base import Scores
from curate.train.model import LanguageModel


@dataclass(frozen=True, slots=True)
class ScoringPair:
    """Two frozen models and the spread of the excess loss between them.

    Attributes:
        control: what the reference is compared with.
        reference: w.
        spread: standard deviation of the documents' excess loss, nats per token.
    """

    control: LanguageModel
    reference: LanguageModel
    spread: float = 1.0

    def losses(self, documents: Documents) -> tuple[Float64, Float64]:
        """Loss of each document under control and reference, nats per token, [N] each."""
        return document_losses(self.control, documents), document_losses(self.reference, documents)


def measure_spread(
    control: LanguageModel, reference: LanguageModel, sample: Documents
) -> ScoringPair:
    """The pair with its spread over a sample of the pool."""
    pair = ScoringPair(control, reference)
    spread = float(np.std(excess_loss(*pair.losses(sample))))
    return ScoringPair(control, reference, spread if spread > 0 else 1.0)


def ensemble_scores(pairs: list[ScoringPair], documents: Documents) -> Scores:
    """Mean over the pairs of excess loss / spread.

    Losses and excess loss are means over the pairs too, so that proxy loss - reference loss is the
    excess loss.
    """
    control, reference, score = (np.zeros(len(documents)) for _ in range(3))
    for pair in pairs:
        ours, theirs = pair.losses(documents)
        control += ours / len(pairs)
        reference += theirs / len(pairs)
        score += excess_loss(ours, theirs) / pair.spread / len(pairs)
    return Scores(control, reference, excess_loss(control, reference), score)
