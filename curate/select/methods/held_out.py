"""Documents of target and pool that nothing learns from, on which scores are then measured.

What a model has trained on it scores differently from what it has not: a pool document whose text
the proxy has seen has less excess loss, and one that the classifier of the target was shown as a
negative has lower odds. A target held out is to be compared with pool documents that are held out
as well, or it would stand out from any pool (benchmarks/LOG.md).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from curate.noise import Sample, make_key, shuffled_order
from curate.read.cache import TokenCache, draw_blocks
from curate.read.documents import Documents, concatenate
from curate.select.methods.base import Context

TARGET_TOKENS = 32_768
POOL_TOKENS = 131_072
POOL_DOCUMENTS = 512
"""Sampled at least, if they are no longer than books: means and spreads are over documents."""
_MOST_POOL_TOKENS = 8_000_000
"""Sampled at most, so that documents of a book's length fit into memory."""
_FEWEST_OF_POOL = 5
"""Held-out documents that a spread can be measured on."""
_FEWEST_OF_TARGET = 10
"""Documents, or half of a smaller target: a mean over fewer says little."""
_LARGEST_SHARE = 0.1
_SMALLEST_SHARE = 0.01
"""Of the pool's documents, so that finding them takes no pass over all of a large pool."""
_FEWEST_DOCUMENTS = 100
"""Of a pool from which some are held out."""

Bool = npt.NDArray[np.bool_]


class HeldOut:
    """A random tenth of the target's tokens and of the pool's documents, less of large ones, more
    of a target of a few documents.

    Args:
        context: with the whole target and pool.
        nothing: hold out nothing, for methods that do not ask.

    Attributes:
        rest: the context for everything that learns, without what is held out.
        target: the target's documents; none if it has only one.
    """

    def __init__(self, context: Context, *, nothing: bool = False) -> None:
        self._context = context
        self.rest, self.target = context, context.target.take(np.arange(0))
        self._sample = Sample(make_key(context.config.seed, "held-out pool"), 0.0)
        if not nothing:
            rest, self.target = _split_target(context)
            self._sample = dataclasses.replace(self._sample, cutoff=_pool_share(context.cache))
            cache = context.cache.without(self._sample.holds)
            self.rest = dataclasses.replace(context, target=rest, cache=cache)

    def holds(self, block: Documents) -> Bool:
        """Which pool documents are held out, [N]."""
        return self._sample.holds(block.ids)

    def pool(self) -> Documents:
        """Held-out pool documents, or any of a pool of a few; the same at every call."""
        unseen = self._context.cache.without(self._learned_from)
        found = _sample(unseen, self._context.config.seed)
        return found if len(found) >= _FEWEST_OF_POOL else pool_sample(self._context)

    def _learned_from(self, ids: npt.NDArray[np.int64]) -> Bool:
        return ~self._sample.holds(ids)


def pool_sample(context: Context) -> Documents:
    """Random documents of the pool, held-out or not; the same at every call."""
    return _sample(context.cache, context.config.seed)


def target_sample(context: Context) -> Documents:
    """Random documents of the target, until they have `TARGET_TOKENS` tokens."""
    target = context.target
    order = shuffled_order(make_key(context.config.seed, "target sample"), target.ids)
    enough = int(np.searchsorted(np.cumsum(target.lengths[order]), TARGET_TOKENS)) + 1
    return target.take(order[:enough])


def _split_target(context: Context) -> tuple[Documents, Documents]:
    """The target without a random tenth of its tokens, and that tenth.

    A document that would bring the tenth to more than half of all is passed over.
    """
    target = context.target.take(np.flatnonzero(context.target.lengths))
    goal = min(TARGET_TOKENS, round(_LARGEST_SHARE * target.num_tokens))
    fewest, most = min(_FEWEST_OF_TARGET, len(target) // 2), len(target) // 2
    chosen: list[int] = []
    tokens, lengths = 0, target.lengths
    for place in shuffled_order(make_key(context.config.seed, "target sample"), target.ids):
        if len(chosen) == most or (tokens >= goal and len(chosen) >= fewest):
            break
        if tokens + lengths[place] <= target.num_tokens / 2:
            chosen.append(int(place))
            tokens += int(lengths[place])
    held_out = np.array(chosen, dtype=np.int64)
    return target.take(np.setdiff1d(np.arange(len(target)), held_out)), target.take(held_out)


def _sample(cache: TokenCache, seed: int) -> Documents:
    """Random documents of a pool until there are enough of them and of their tokens."""
    drawn: list[Documents] = []
    documents = tokens = 0
    for block in draw_blocks(cache.stream(seed, "pool sample"), POOL_TOKENS):
        drawn.append(block)
        documents, tokens = documents + len(block), tokens + block.num_tokens
        if documents >= POOL_DOCUMENTS or tokens >= _MOST_POOL_TOKENS:
            break
    return concatenate(drawn)


def _pool_share(cache: TokenCache) -> float:
    """Share of the pool's documents that is held out."""
    if cache.documents < _FEWEST_DOCUMENTS:
        return 0.0
    enough = max(POOL_TOKENS / cache.tokens, POOL_DOCUMENTS / cache.documents)
    return min(_LARGEST_SHARE, max(_SMALLEST_SHARE, enough))
