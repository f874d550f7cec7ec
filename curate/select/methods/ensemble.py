"""Scores by two pairs at once: the first sync's and the last.

A pair sees the pool as a model of its stage does. The first judges before the proxy has learned
what it picks, the last after; a document that both prefer is a safer choice than the favourite of
either. Each lets in noise of its own, the last more, so the first counts twice
(benchmarks/LOG.md). Excess losses are divided by their spread over a sample of the pool, so that
no pair outvotes the other by having moved further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.read.documents import Documents
from curate.score.excess import excess_loss
from curate.score.loss import Float64, document_losses, tokens_read
from curate.select.methods.base import Scores, check_finite
from curate.train.model import LanguageModel

FIRST_WEIGHT = 2 / 3
"""Share of the first pair in the mean."""


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

    def losses(self, documents: Documents, most: int | None) -> tuple[Float64, Float64]:
        """Loss of each document under control and reference, nats per token, [N] each."""
        control = document_losses(self.control, documents, most)
        return control, document_losses(self.reference, documents, most)


def measure_spread(
    control: LanguageModel, reference: LanguageModel, sample: Documents, most: int | None
) -> ScoringPair:
    """The pair with its spread over a sample of the pool, `most` tokens read of a document.

    Raises:
        NonFiniteLoss: an excess loss is NaN or infinite.
    """
    pair = ScoringPair(control, reference)
    excess = excess_loss(*pair.losses(sample, most))
    check_finite("an excess loss", excess, sample)
    spread = float(np.std(excess))
    return ScoringPair(control, reference, spread if spread > 0 else 1.0)


def ensemble_scores(
    first: ScoringPair, last: ScoringPair, documents: Documents, most: int | None
) -> Scores:
    """Weighted mean over two pairs of excess loss / spread, `most` tokens read of a document.

    Losses and excess loss are weighted alike, so that proxy loss - reference loss is the excess
    loss.
    """
    control, reference, score = (np.zeros(len(documents)) for _ in range(3))
    for pair, weight in ((first, FIRST_WEIGHT), (last, 1 - FIRST_WEIGHT)):
        ours, theirs = pair.losses(documents, most)
        control += weight * ours
        reference += weight * theirs
        score += weight * excess_loss(ours, theirs) / pair.spread
    excess = excess_loss(control, reference)
    read = tokens_read(documents.lengths, most)
    return Scores(control, reference, excess, score, tokens_read=read)
