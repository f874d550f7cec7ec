"""Classifier: how surely a document is of the target and not of the pool (DCLM, arXiv 2406.11794).

The recipe of DCLM's fastText filter (section 4.4): a bigram classifier is trained on the target
against as many random pool documents (at least 2,000), and the pool is ranked by its log-odds. A
fastText model averages the vectors of a document's n-grams and maps them to one log-odds; with two
classes that is a mean of one number per n-gram, whatever the vectors' dimension, so one number per
bucket is trained here: balanced logistic regression, minibatches, Adam with a rate that falls to
zero. On three development targets its top tenth held at least as large a share of related documents
as that of the factored model. It is plain NumPy, whose sums do not depend on threads.

A pool document that served as a negative has been seen, and scores a little lower for it. Few
epochs keep that small; in a pool of a few thousand documents it touches all of them alike.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from curate.clock import COUNT, doing
from curate.config.schema import ClassifierConfig, Config
from curate.errors import NonFiniteLoss
from curate.noise import make_key, shuffled_order
from curate.read.cache import draw_blocks
from curate.read.documents import Documents, concatenate
from curate.select.methods.base import DOCUMENT, Context, Float64, RoundStart, Scores
from curate.select.ngrams import Ngrams, concatenate_ngrams
from curate.select.schedule import Schedule, plan_scoring

_FEWEST_NEGATIVES = 2_000
_MOST_EXAMPLES = 200_000
"""Of either class, as published."""
_MOST_TOKENS = 16_000_000
"""Of the examples of either class, so that long documents fit into memory; as of a target."""
_BATCH = 32
_BLOCK_TOKENS = 262_144
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class TargetOdds:
    """Log-odds of target against pool under a linear bag-of-n-grams model."""

    def __init__(self, context: Context) -> None:
        self._context, self._config = context, context.config.classifier
        self._counter = context.ngram_counter(self._config.buckets)
        self._set(np.zeros(self._config.buckets), 0.0)

    def _set(self, values: Float64, bias: float) -> None:
        self._values, self._bias = values, bias
        self._means = functools.partial(Ngrams.means, values=values)

    def train(self, target: Documents) -> None:
        """Train on documents of the target against a random sample of the pool."""
        seed = self._context.config.seed
        order = shuffled_order(make_key(seed, "classifier target"), target.ids)
        stream = self._context.cache.stream(seed, "classifier")
        examples = self._ngrams(iter([target.take(order[:_MOST_EXAMPLES])]), len(order))
        positives = sum(map(len, examples))
        wanted = min(max(positives, _FEWEST_NEGATIVES), _MOST_EXAMPLES)
        examples += self._ngrams(stream, wanted)
        together = concatenate_ngrams(examples)
        del examples
        labels = np.repeat([1.0, 0.0], [positives, len(together) - positives])
        self._set(*fit(together, labels, self._config, seed))

    def check(self) -> None:
        """No log-odds, a mean of values plus the bias, may leave the range of float32.

        Raises:
            NonFiniteLoss: one could.
        """
        largest = float(np.abs(self._values).max()) + abs(self._bias)
        if not largest <= float(np.finfo(np.float32).max):
            raise NonFiniteLoss(
                f"The classifier was trained to log-odds as large as {largest:g}.",
                "Lower classifier.learning_rate.",
            )

    def of(self, block: Documents) -> Float64:
        """Log-odds of each document, nats, at equal shares of both classes, [N]."""
        return self.begin(block)()

    def begin(self, block: Documents) -> Callable[[], Float64]:
        """`of`, counted in the background where it can be; returns what waits for it."""
        counted = self._counter.begin(block, self._means)
        return lambda: np.concatenate(counted()) + self._bias

    def state_dict(self) -> dict[str, Any]:
        """The trained numbers, readable with `weights_only`."""
        return {"values": torch.from_numpy(self._values), "bias": self._bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._set(state["values"].cpu().numpy(), state["bias"])

    def _ngrams(self, stream: Iterator[Documents], wanted: int) -> list[Ngrams]:
        """The n-grams of the first `wanted` documents of a stream, or of its first 16 M tokens."""
        parts = [self._counter(concatenate([]))]
        tokens = 0
        for block in draw_blocks(stream, _BLOCK_TOKENS):
            first = block.take(np.arange(min(wanted, len(block))))
            parts.append(self._counter(first))
            wanted -= len(first)
            tokens += first.num_tokens
            if wanted == 0 or tokens >= _MOST_TOKENS:
                break
        return parts


class ClassifierMethod:
    """Documents by their log-odds of being of the target."""

    granularities: ClassVar[tuple[str, ...]] = (DOCUMENT,)
    has_proxy: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self._context = context
        self._odds = TargetOdds(context)

    @staticmethod
    def plan(config: Config, pool_tokens: int) -> Schedule:
        """One pass that scores; training sees a sample."""
        classifier = config.classifier
        return plan_scoring(
            expected_tokens=pool_tokens,
            description=f"logistic regression of target against pool over word uni- and bigrams "
            f"in {classifier.buckets:,} buckets, {classifier.epochs} epochs",
        )

    def warm_up(self) -> None:
        """Train the classifier."""
        self._odds.train(self._context.target)

    def start_round(self, round_index: int) -> RoundStart:
        """There is nothing to bring in step."""
        return RoundStart()

    def score(self, block: Documents) -> Scores:
        """Log-odds of each document; no losses."""
        self._context.on_tokens(block.num_tokens)
        return Scores.of(self._odds.of(block))

    def learn(self, block: Documents, kept: npt.NDArray[np.bool_]) -> None:
        """Nothing is learned from what is kept."""

    def check(self) -> None:
        """No score may leave the range of float32."""
        self._odds.check()

    def state_dict(self) -> dict[str, Any]:
        """The trained numbers, readable with `weights_only`."""
        return self._odds.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._odds.load_state_dict(state)


@doing(COUNT)
def fit(
    examples: Ngrams, labels: Float64, config: ClassifierConfig, seed: int
) -> tuple[Float64, float]:
    """Logistic regression on the mean over a document's n-grams of one number per bucket.

    Each class has half of the total weight, however many examples it has.

    Args:
        examples: N documents.
        labels: 1 for target, 0 for pool, [N].
        config: buckets, epochs and the learning rate at the start.
        seed: of the order of examples.

    Returns:
        The number of each bucket, float64 [B], and the bias: log-odds = mean + bias, nats.
    """
    share = np.where(labels == 1, labels.mean(), 1 - labels.mean())
    values, bias = np.zeros(config.buckets), 0.0
    first, second = np.zeros(config.buckets), np.zeros(config.buckets)
    batches = list(_batches(len(labels), config.epochs, seed))
    for step, batch in enumerate(batches):
        ngrams = examples.take(batch)
        probability = 0.5 + 0.5 * np.tanh(0.5 * (ngrams.means(values) + bias))
        slope = (probability - labels[batch]) / (2 * share[batch] * len(batch))
        each = np.repeat(slope / np.maximum(ngrams.lengths, 1), ngrams.lengths)
        gradient = np.bincount(ngrams.buckets, weights=each, minlength=config.buckets)
        first = _BETA_1 * first + (1 - _BETA_1) * gradient
        second = _BETA_2 * second + (1 - _BETA_2) * gradient**2
        rate = config.learning_rate * (1 - step / len(batches))
        scale = np.sqrt(second / (1 - _BETA_2 ** (step + 1))) + _EPSILON
        values -= rate * first / (1 - _BETA_1 ** (step + 1)) / scale
        bias -= rate * float(slope.sum())
    return values, bias


def _batches(examples: int, epochs: int, seed: int) -> Iterator[npt.NDArray[np.intp]]:
    """Positions of each minibatch, shuffled anew each epoch."""
    for epoch, first in itertools.product(range(epochs), range(0, examples, _BATCH)):
        if first == 0:
            order = shuffled_order(make_key(seed, "classifier order", epoch), np.arange(examples))
        yield order[first : first + _BATCH]
