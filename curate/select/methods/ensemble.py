"""Scores of the whole pool by the last round's pair and by an n-gram classifier.

The pair is the proxy as the rounds leave it, and the reference that guided the last of them: what
the proxy has learned of its picks since then no longer counts for them, and what it has lost does,
so that the kept set is not all of one kind (benchmarks/LOG.md). The classifier knows words alone,
and what it mistakes for the target no pair does, nor the other way round. So it only takes away,
from what does not read like the target, and lifts nothing that the pair does not want. Excess
losses, per byte of text, and log-odds are divided by their spread over a sample of the pool, so
that the vote weighs the same whatever the models.
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

VOTE_CAP = 1.0
"""Spreads above the pool's mean from which on the log-odds of the target take nothing away."""


@dataclass(frozen=True, slots=True)
class NgramVote:
    """A classifier's part in the score, zero or less.

    Attributes:
        odds: the trained classifier.
        weight: what a spread of its log-odds counts against one of the pair's excess losses.
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


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What decides about the pool as a whole.

    Attributes:
        control: the proxy after the last round, frozen.
        reference: w of the last round, frozen.
        spread: standard deviation of the documents' excess loss, nats per byte.
        vote: the classifier's part, of all of a document's tokens; None without one.
    """

    control: LanguageModel
    reference: LanguageModel
    spread: float
    vote: NgramVote | None

    def scores(self, documents: Documents, most: int | None) -> Scores:
        """Excess loss per byte / spread, plus the vote, of N documents.

        Args:
            documents: the documents.
            most: tokens read of a document by the models; None for all.
        """
        control = document_losses(self.control, documents, most)
        reference = document_losses(self.reference, documents, most)
        excess = excess_loss(control, reference)
        score = per_byte(excess, documents) / self.spread
        votes = None if self.vote is None else self.vote.of(documents)
        if votes is not None:
            score += votes
        read = tokens_read(self.reference, documents, most)
        return Scores(control, reference, excess, score, tokens_read=read, ngram_vote=votes)


def measure_spread(
    control: LanguageModel, reference: LanguageModel, sample: Documents, most: int | None
) -> float:
    """Spread of the excess loss over a sample of the pool, nats per byte, `most` tokens read.

    Raises:
        NonFiniteLoss: an excess loss is NaN or infinite.
    """
    excess = excess_loss(
        document_losses(control, sample, most), document_losses(reference, sample, most)
    )
    check_finite("an excess loss", excess, sample)
    return spread(per_byte(excess, sample))
