"""What an arm trains on: an endless stream of documents that follows from a seed.

Documents longer than a model's window are cut into pieces, each read from the document separator as
trainers do. Pieces are shuffled like documents, so that one long document does not fill a batch,
and arms of long and of short documents take steps of the same size.

Noise is keyed by (seed, purpose, document id) (`curate.noise`): the held-out sample and a random
sample are functions of that alone, tested document by document, and no list of ids is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from curate.evaluation.store import Store
from curate.noise import Sample, make_key, shuffled_order, uniform
from curate.read.cache import TokenCache
from curate.read.documents import Documents, concatenate, cut
from curate.write.repeat import repeat_counts

_BINS = 1 << 20
_CHUNK_PIECES = 1024
_SIZES = ("document_id", "tokens")
"""First of their names in a document file; the pool may have columns that are called so too."""


def draw_sample(
    cache: TokenCache, key: int, tokens: float, excluded: Sample | None = None
) -> Sample:
    """The random sample of the pool whose tokens are nearest to `tokens`; never an empty one.

    Exact to a millionth of the pool or one document, whichever is more. One pass over the
    documents' sizes, with memory that does not grow with the pool.

    Args:
        cache: the tokenized pool.
        key: which noise orders the documents.
        tokens: how many tokens to draw.
        excluded: documents that the sample passes over; they do not count.
    """
    held = np.zeros(_BINS)
    for path in cache.document_files():
        table = pq.ParquetFile(path).read(columns=list(_SIZES))
        ids, sizes = (table.column(table.schema.names.index(name)).to_numpy() for name in _SIZES)
        sizes = sizes.astype(np.float64)
        if excluded is not None:
            sizes[excluded.holds(ids)] = 0
        bins = (uniform(key, ids) * _BINS).astype(np.int64)
        held += np.bincount(bins, weights=sizes, minlength=_BINS)
    running = np.cumsum(held)
    edge = int(np.argmin(np.abs(np.concatenate([[0.0], running]) - tokens)))
    first = int(np.searchsorted(running, 0.0, side="right")) + 1
    return Sample(key, max(edge, first) / _BINS)


def gather(cache: TokenCache, sample: Sample, excluded: Sample | None) -> Iterator[Documents]:
    """The documents of a sample chunk by chunk, in pool order, those of `excluded` passed over."""

    def chosen(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        held = sample.holds(ids)
        return held if excluded is None else held & ~excluded.holds(ids)

    for chunk in cache.in_pool_order(chosen):
        yield chunk.take(np.flatnonzero(chosen(chunk.ids)))


def read_sample(cache: TokenCache, sample: Sample) -> Documents:
    """The documents of a small sample, in memory, in pool order."""
    return concatenate([part for part in gather(cache, sample, None) if len(part)])


def pass_over(store: Store, seed: int, piece_tokens: int) -> Iterator[Documents]:
    """Epoch after epoch of a dataset, endlessly: each in its own order, weights as repetition.

    A document of weight 1.3 comes once in an epoch, and with probability 0.3 twice, drawn anew for
    every epoch; its pieces come equally often.

    Args:
        store: the dataset; it must hold a document of positive weight.
        seed: of order and repetition.
        piece_tokens: longer documents are cut into pieces of this many tokens.

    Raises:
        ValueError: no document has both tokens and weight, so no epoch would hold anything.
    """
    if not store.epoch_tokens > 0:
        raise ValueError("the dataset has no document of positive weight")
    owners, pieces = cut(store.documents, piece_tokens)
    for epoch in itertools.count():
        key = make_key(seed, "evaluation epoch", epoch)
        copies = repeat_counts(store.weights, store.documents.ids, key)
        drawn = np.repeat(np.arange(len(pieces)), copies[owners])
        drawn = drawn[shuffled_order(key, np.arange(len(drawn)))]
        for first in range(0, len(drawn), _CHUNK_PIECES):
            yield pieces.take(drawn[first : first + _CHUNK_PIECES])


def stream_pool(
    cache: TokenCache, seed: int, piece_tokens: int, excluded: Sample | None = None
) -> Iterator[Documents]:
    """The whole pool in random order, endlessly; none is repeated before all were seen.

    Args:
        cache: the tokenized pool.
        seed: of the order.
        piece_tokens: longer documents are cut into pieces of this many tokens.
        excluded: documents that are left out.
    """
    for epoch in itertools.count():
        key = make_key(seed, "evaluation pool", epoch)
        for chunk in cache.stream(seed, "evaluation pool", epoch):
            kept = (
                np.ones(len(chunk), dtype=bool) if excluded is None else ~excluded.holds(chunk.ids)
            )
            _, pieces = cut(chunk.take(np.flatnonzero(kept)), piece_tokens)
            order = shuffled_order(key, np.arange(len(pieces)))
            for first in range(0, len(order), _CHUNK_PIECES):
                yield pieces.take(order[first : first + _CHUNK_PIECES])
