"""Scores by two pairs at once, the first sync's and the last, and by an n-gram classifier.

A pair sees the pool as a model of its stage does. The first judges before the proxy has learned
what it picks, the last after; a document that both prefer is a safer choice than the favourite of
either. Each lets in noise of its own, the last more, so the first counts twice
(benchmarks/LOG.md). The classifier knows words alone, and what it mistakes for the target no pair
does, nor the other way round. So it only takes away, from what does not read like the target, and
lifts nothing that the pairs do not want. Excess losses, per byte of text, and log-odds are divided
by their spread over a sample of the pool, so that none outvotes another by having moved further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.read.documents import Documents
from curate.score.excess import excess_loss, per_byte, spread
from curate.score.loss import Float64, document_losses, tokens_read
from curate.select.methods.base import Context, Scores, check_finite
from curate.select.methods.classifier import TargetOdds
from curate.train.model import LanguageModel

FIRST_WEIGHT = 2 / 3
"""Share of the first pair in the mean."""
VOTE_CAP = 1.0
"""Spreads above the pool's mean from which on the log-odds of the target take nothing away."""


@dataclass(frozen=True, slots=True)
class ScoringPair:
    """Two frozen models and the spread of the excess loss between them.

    Attributes:
        control: what the reference is compared with.
        reference: w.
        spread: standard deviation of the documents' excess loss, nats per byte.
    """

    control: LanguageModel
    reference: LanguageModel
    spread: float = 1.0

    def losses(self, documents: Documents, most: int | None) -> tuple[Float64, Float64]:
        """Loss of each document under control and reference, nats per token, [N] each."""
        control = document_losses(self.control, documents, most)
        return control, document_losses(self.reference, documents, most)


@dataclass(frozen=True, slots=True)
class NgramVote:
    """A classifier's part in the score, zero or less.

    Attributes:
        odds: the trained classifier.
        weight: what a spread of its log-odds counts against one of the pairs' excess losses.
        mean: mean log-odds of the pool's documents, nats.
        spread: their standard deviation, nats.
    """

    odds: TargetOdds
    weight: float
    mean: float
    spread: float

    def of(self, documents: Documents) -> Float64:
        """What is added to the score of each document, [N]."""
        spreads = (self.odds.of(documents) - self.mean) / self.spread
        return self.weight * np.minimum(spreads - VOTE_CAP, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """What was learned and measured, readable with `weights_only`."""
        return {"odds": self.odds.state_dict(), "mean": self.mean, "spread": self.spread}

    @staticmethod
    def restored(context: Context, state: Mapping[str, Any]) -> NgramVote:
        """Inverse of `state_dict`."""
        odds = TargetOdds(context)
        odds.load_state_dict(state["odds"])
        return NgramVote(odds, context.config.blade.ngram_weight, state["mean"], state["spread"])


def train_vote(context: Context, sample: Documents) -> NgramVote:
    """Train a classifier of the target, and measure its log-odds over a sample of the pool.

    Args:
        context: with the target and the pool that it may learn from.
        sample: pool documents.

    Raises:
        NonFiniteLoss: a log-odds could leave the range of float32.
    """
    odds = TargetOdds(context)
    odds.train(context.target)
    odds.check()
    found = odds.of(sample)
    weight = context.config.blade.ngram_weight
    return NgramVote(odds, weight, float(found.mean()), spread(found))


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
    return ScoringPair(control, reference, spread(per_byte(excess, sample)))


def ensemble_scores(
    first: ScoringPair,
    last: ScoringPair,
    documents: Documents,
    most: int | None,
    vote: NgramVote | None = None,
) -> Scores:
    """Weighted mean over two pairs of excess loss per byte / spread, plus the vote.

    Args:
        first: the first sync's pair.
        last: the last sync's pair.
        documents: N documents.
        most: tokens read of a document by the pairs; None for all.
        vote: the classifier's part, of all their tokens.

    Losses and excess loss, nats per token, are weighted alike, so that proxy loss - reference loss
    is the excess loss.
    """
    control, reference, score = (np.zeros(len(documents)) for _ in range(3))
    for pair, weight in ((first, FIRST_WEIGHT), (last, 1 - FIRST_WEIGHT)):
        ours, theirs = pair.losses(documents, most)
        control += weight * ours
        reference += weight * theirs
        score += weight * per_byte(excess_loss(ours, theirs), documents) / pair.spread
    votes = None if vote is None else vote.of(documents)
    if votes is not None:
        score += votes
    excess = excess_loss(control, reference)
    read = tokens_read(last.reference, documents, most)
    return Scores(control, reference, excess, score, tokens_read=read, ngram_vote=votes)
