"""Scores of the whole pool by the last round's pair, less two votes.

The pair is the proxy as it was at the last sync, and the reference made from it then. The votes
only take away, and lift nothing that the pair does not want:

- an n-gram classifier, which knows words alone, from what does not read like the target;
- the proxy after the round, from what it has by then learned unusually much of. It was trained on
  picks of the pair, so that is what more of the same would add little to. What it has learned of
  the pool in general counts for nothing, and where the picks are not alike that is nearly all.

Excess losses and what was learned, per byte of text, and log-odds are in units of their spread over
a sample of the pool, so that none outvotes another by having moved further (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.read.documents import Documents
from curate.score.excess import excess_loss, per_byte, spread
from curate.score.loss import Float64, document_losses, losses_by_model, tokens_read
from curate.select.methods.base import Context, Scores, check_finite
from curate.select.methods.classifier import TargetOdds
from curate.train.model import LanguageModel

NGRAM_CAP = 1.0
"""Spreads above the pool's mean from which on the log-odds of the target take nothing away."""
LEARNED_FLOOR = 0.5
"""Spreads above the pool's mean up to which what the proxy has learned takes nothing away."""
LEAST_LEARNED = 0.3
"""Spreads of the excess loss that a spread of what was learned counts for at least: a round of a
few steps teaches little, and differences in that are mostly rounding."""


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

    def begin(self, documents: Documents) -> Callable[[], Float64]:
        """Have documents counted; returns what waits for what is added to their scores, [N]."""
        odds = self.odds.begin(documents)

        def wait() -> Float64:
            return self.weight * np.minimum((odds() - self.mean) / self.spread - NGRAM_CAP, 0.0)

        return wait

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
class RedundancyVote:
    """The part in the score, zero or less, of what the proxy has learned since the last sync.

    Attributes:
        proxy: its weights after the last round, frozen.
        weight: what a spread of learning counts against one of the pair's excess losses.
        mean: what it has learned of the pool's documents in the mean, nats per byte.
        spread: the standard deviation of that, or the least that it is taken for, nats per byte.
    """

    proxy: LanguageModel
    weight: float
    mean: float
    spread: float

    def of(self, documents: Documents, control: Float64, now: Float64) -> Float64:
        """What is added to the score of each document, [N].

        Args:
            documents: the documents.
            control: their losses under the proxy at the sync, or under u+ where lambda is above 0
                (it has then taken K steps of its own), nats per token, [N].
            now: their losses under the proxy after the round, likewise.
        """
        learned = _learned(documents, control, now)
        return self.weight * np.minimum(LEARNED_FLOOR - (learned - self.mean) / self.spread, 0.0)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What decides about the pool as a whole.

    Attributes:
        control: the proxy at the last sync, or what the sync made of it to compare with, frozen.
        reference: w of the last sync, frozen.
        spread: standard deviation of the documents' excess loss, nats per byte.
        ngram: the classifier's vote, of all of a document's tokens; None without one.
        redundancy: the vote of what was learned; None without one.
    """

    control: LanguageModel
    reference: LanguageModel
    spread: float
    ngram: NgramVote | None
    redundancy: RedundancyVote | None

    def scores(self, documents: Documents, most: int | None) -> Scores:
        """Excess loss per byte / spread, plus the votes, of N documents.

        Args:
            documents: the documents.
            most: tokens read of a document by the models; None for all.
        """
        voting = self.ngram.begin(documents) if self.ngram else None
        models = [self.control, self.reference]
        if self.redundancy is not None:
            models.append(self.redundancy.proxy)
        control, reference, *now = losses_by_model(models, documents, most)
        excess = excess_loss(control, reference)
        score = per_byte(excess, documents) / self.spread
        ngram = redundancy = None
        if self.redundancy is not None:
            redundancy = self.redundancy.of(documents, control, now[0])
        if voting is not None:
            ngram = voting()
            score += ngram
        if redundancy is not None:
            score += redundancy
        return Scores(
            control,
            reference,
            excess,
            score,
            tokens_read=tokens_read(self.reference, documents, most),
            ngram_vote=ngram,
            redundancy_vote=redundancy,
        )

    def state_dict(self) -> dict[str, Any]:
        """What was learned and measured, but for the models, readable with `weights_only`."""
        redundancy = self.redundancy
        return {
            "spread": self.spread,
            "ngram": None if self.ngram is None else self.ngram.state_dict(),
            "redundancy": None if redundancy is None else (redundancy.mean, redundancy.spread),
        }

    @staticmethod
    def restored(
        context: Context,
        state: Mapping[str, Any],
        *,
        control: LanguageModel,
        reference: LanguageModel,
        proxy: LanguageModel,
    ) -> Ensemble:
        """Inverse of `state_dict`."""
        ngram, redundancy = state["ngram"], state["redundancy"]
        weight = context.config.blade.redundancy_weight
        return Ensemble(
            control,
            reference,
            state["spread"],
            None if ngram is None else NgramVote.restored(context, ngram),
            None if redundancy is None else RedundancyVote(proxy, weight, *redundancy),
        )


def make_ensemble(
    context: Context,
    sample: Documents,
    *,
    control: LanguageModel,
    reference: LanguageModel,
    proxy: LanguageModel,
) -> Ensemble:
    """Train the classifier, and measure everything over a sample of the pool.

    Args:
        context: with the target and the pool that may be learned from.
        sample: pool documents.
        control: the proxy at the last sync, frozen.
        reference: what the sync made of it, frozen.
        proxy: the proxy now, frozen.

    Raises:
        NonFiniteLoss: a loss is NaN or infinite, or a log-odds could leave the range of float32.
    """
    blade, most = context.config.blade, context.config.score_tokens
    before, after = losses_by_model([control, reference], sample, most)
    excess = excess_loss(before, after)
    check_finite("an excess loss", excess, sample)
    unit, redundancy = spread(per_byte(excess, sample)), None
    if blade.redundancy_weight > 0:
        learned = _learned(sample, before, document_losses(proxy, sample, most))
        mean, least = float(learned.mean()), LEAST_LEARNED * unit
        found = max(float(learned.std()), least)
        redundancy = RedundancyVote(proxy, blade.redundancy_weight, mean, found)
    ngram = train_vote(context, sample) if blade.ngram_weight > 0 else None
    return Ensemble(control, reference, unit, ngram, redundancy)


def _learned(documents: Documents, control: Float64, now: Float64) -> Float64:
    """What the proxy has learned of each document since the sync, nats per byte, [N].

    An infinite loss would pass for having learned nothing, so it is an error here.
    """
    learned = per_byte(control - now, documents)
    check_finite("a loss", learned, documents)
    return learned
