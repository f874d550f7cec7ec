"""What arms train on: weights as repetition, masks, samples, pieces, the held-out documents."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_models import Planted, make_documents, make_planted, tokens_of

from curate.evaluation.arms import (
    cut,
    draw_sample,
    gather,
    pass_over,
    read_sample,
    stream_pool,
)
from curate.evaluation.store import Store, has_store, open_store, write_store
from curate.noise import Sample, make_key
from curate.read.cache import Fragment, TokenCache
from curate.read.documents import Documents, concatenate

LONG = 1 << 20


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("planted"))


def make_store(folder: Path, documents: Documents, weights: Iterable[float] | None = None) -> Store:
    given = np.ones(len(documents)) if weights is None else np.array(list(weights), dtype=float)
    return write_store(folder, [(documents, given)], {})


def take_tokens(stream: Iterator[Documents], tokens: int) -> Documents:
    """At least so many tokens from the front of a stream."""
    parts: list[Documents] = []
    while sum(part.num_tokens for part in parts) < tokens:
        parts.append(next(stream))
    return concatenate(parts)


# Stores.


def test_a_store_gives_back_what_was_written(tmp_path: Path) -> None:
    first, second = make_documents([3, 0, 5], 1), make_documents([7], 2, first_id=3)
    facts = {"seen": 1}
    store = write_store(
        tmp_path / "s", [(first, np.array([1.0, 2.0, 0.5])), (second, np.array([1.25]))], facts
    )
    again = open_store(tmp_path / "s")
    for one in (store, again):
        assert tokens_of(one.documents) == [*tokens_of(first), *tokens_of(second)]
        assert one.documents.ids.tolist() == [0, 1, 2, 3]
        assert one.documents.bytes.tolist() == [12, 0, 20, 28]
        assert one.documents.counted is None
        assert one.weights.tolist() == [1.0, 2.0, 0.5, 1.25]
        assert one.epoch_tokens == 3 + 2.5 + 8.75
        assert one.facts == facts


def test_a_store_keeps_masks(tmp_path: Path) -> None:
    documents = make_documents([3, 5])
    counted = np.array([True, False, True, False, False, True, True, False])
    store = make_store(tmp_path / "s", documents.masked(counted))
    assert store.documents.counted is not None
    assert store.documents.counted.tolist() == counted.tolist()


def test_an_interrupted_store_is_none(tmp_path: Path) -> None:
    def blocks() -> Iterator[tuple[Documents, np.ndarray]]:
        yield make_documents([3]), np.ones(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s", blocks(), {})
    assert not has_store(tmp_path / "s")
    store = make_store(tmp_path / "s", make_documents([4, 2]))
    assert has_store(tmp_path / "s")
    assert store.documents.num_tokens == 6


def test_an_empty_store(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [], {})
    assert len(store.documents) == 0
    with pytest.raises(ValueError, match="no document of positive weight"):
        next(pass_over(store, 0, 8))


# Pieces.


def test_pieces_are_the_documents_in_order() -> None:
    documents = make_documents([3, 8, 17, 0, 9])
    owners, pieces = cut(documents, 8)
    assert owners.tolist() == [0, 1, 2, 2, 2, 4, 4]
    assert pieces.lengths.tolist() == [3, 8, 8, 8, 1, 8, 1]
    assert pieces.ids.tolist() == [0, 1, 2, 2, 2, 4, 4]
    assert pieces.bytes.tolist() == [12, 32, 32, 32, 4, 32, 4]
    flat = [token for piece in tokens_of(pieces) for token in piece]
    assert flat == documents.input_ids.tolist()
    assert cut(documents, LONG)[1].lengths.tolist() == [3, 8, 17, 9]


def test_pieces_of_nothing() -> None:
    assert len(cut(make_documents([]), 8)[1]) == 0


# Passing over a dataset.


def test_an_epoch_is_every_document_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    documents = make_documents([4] * 60)
    store = make_store(tmp_path / "s", documents)
    stream = pass_over(store, 0, LONG)
    epochs = [next(stream) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch.ids) == list(range(60))
        for number, tokens in zip(epoch.ids, tokens_of(epoch), strict=True):
            assert tokens == tokens_of(documents)[number]
    orders = {tuple(epoch.ids.tolist()) for epoch in [*epochs, next(pass_over(store, 1, LONG))]}
    assert len(orders) == 4
    assert tuple(next(pass_over(store, 0, LONG)).ids.tolist()) == tuple(epochs[0].ids.tolist())


def test_weights_are_expected_counts(tmp_path: Path) -> None:
    weights = [0.0, 0.3, 1.0, 1.7, 3.0] * 8
    store = make_store(tmp_path / "s", make_documents([2] * 40), weights)
    epochs = 400
    counts = Counter[int]()
    for epoch in itertools.islice(pass_over(store, 5, LONG), epochs):
        here = Counter(epoch.ids.tolist())
        for number, weight in enumerate(weights):
            assert here[number] in (int(weight), int(np.ceil(weight)))
        counts.update(here)
    seen = np.array([counts[number] / epochs for number in range(40)])
    assert seen == pytest.approx(np.array(weights), abs=0.11)
    assert seen.reshape(8, 5).mean(0) == pytest.approx(np.array(weights[:5]), abs=0.03)


def test_pieces_of_a_document_are_repeated_together(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", make_documents([20, 20, 20]), [0.5, 1.5, 1.0])
    for epoch in itertools.islice(pass_over(store, 0, 8), 30):
        counts = Counter(epoch.ids.tolist())
        assert all(count % 3 == 0 for count in counts.values())
        assert max(epoch.lengths) == 8


def test_masks_stay_with_their_tokens(tmp_path: Path) -> None:
    documents = make_documents([20, 7, 1], 3)
    counted = documents.input_ids % 3 == 0
    store = make_store(tmp_path / "s", documents.masked(counted))
    for epoch in itertools.islice(pass_over(store, 0, 8), 3):
        assert epoch.counted is not None
        assert epoch.counted.tolist() == (epoch.input_ids % 3 == 0).tolist()
        assert epoch.num_tokens == 28


# Samples of the pool.


def test_a_sample_has_the_tokens_that_were_asked_for(planted: Planted) -> None:
    total = planted.cache.tokens
    longest = 60
    for seed in range(5):
        for share in (0.02, 0.3, 0.9):
            sample = draw_sample(planted.cache, make_key(seed, "test"), share * total)
            found = read_sample(planted.cache, sample)
            assert abs(found.num_tokens - share * total) <= longest
            assert sorted(found.ids) == found.ids.tolist()


def test_a_sample_is_random_and_seeded(planted: Planted) -> None:
    def ids(seed: int) -> list[int]:
        key = make_key(seed, "test")
        sample = draw_sample(planted.cache, key, planted.cache.tokens / 2)
        return read_sample(planted.cache, sample).ids.tolist()

    assert ids(0) == ids(0)
    shared = len(set(ids(0)) & set(ids(1))) / len(ids(0))
    assert 0.3 < shared < 0.7


def test_a_sample_is_never_empty(planted: Planted) -> None:
    sample = draw_sample(planted.cache, make_key(0, "test"), 0.0)
    assert len(read_sample(planted.cache, sample)) >= 1


def test_a_sample_passes_over_what_is_excluded(planted: Planted) -> None:
    held = Sample(make_key(0, "held"), 0.4)
    free = planted.cache.tokens - read_sample(planted.cache, held).num_tokens
    sample = draw_sample(planted.cache, make_key(1, "test"), 0.5 * free, held)
    found = concatenate(list(gather(planted.cache, sample, held)))
    assert not held.holds(found.ids).any()
    assert abs(found.num_tokens - 0.5 * free) <= 60


def test_only_fragments_with_some_of_the_sample_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.read.cache.FRAGMENT_ROWS", 1)
    cache = make_planted(tmp_path, rows=2000).cache
    assert len(cache.fragments) == 8  # a batch each
    read = []
    whole = TokenCache._read

    def counting(self: TokenCache, fragment: Fragment, partition: int) -> Documents:
        read.append(fragment.name)
        return whole(self, fragment, partition)

    monkeypatch.setattr(TokenCache, "_read", counting)
    every = concatenate(list(cache.in_pool_order()))
    for share in (0.0005, 0.003, 0.5):
        sample = Sample(make_key(1, "sample"), share)
        chosen = every.take(np.flatnonzero(sample.holds(every.ids)))
        holding = {cache.fragments[row // 256].name for row in chosen.ids}
        read.clear()
        found = read_sample(cache, sample)
        assert set(read) == holding
        assert found.ids.tolist() == chosen.ids.tolist()
        assert tokens_of(found) == tokens_of(chosen)


def test_a_sample_is_the_same_whatever_the_partitions(tmp_path: Path) -> None:
    found = []
    for name, seed, partitions in (("a", 0, 1), ("b", 1, 3)):
        other = make_planted(tmp_path / name, seed=seed, partitions=partitions)
        parts = list(gather(other.cache, Sample(make_key(0, "held"), 0.4), None))
        found.append(concatenate(parts))
    assert found[0].ids.tolist() == sorted(found[1].ids)
    assert tokens_of(found[0]) == tokens_of(found[1])


def test_the_pool_is_not_repeated_while_it_lasts(planted: Planted) -> None:
    held = Sample(make_key(0, "held"), 0.2)
    free = planted.cache.tokens - read_sample(planted.cache, held).num_tokens
    two = take_tokens(stream_pool(planted.cache, 0, LONG, held), 2 * free)
    assert two.num_tokens == 2 * free
    half = len(two) // 2
    first, second = two.ids[:half].tolist(), two.ids[half:].tolist()
    assert sorted(first) == sorted(second)
    assert len(set(first)) == half
    assert first != second
    assert not held.holds(two.ids).any()


def test_the_pool_comes_in_pieces(planted: Planted) -> None:
    one = take_tokens(stream_pool(planted.cache, 0, 8), planted.cache.tokens)
    assert max(one.lengths) == 8
    assert one.num_tokens == planted.cache.tokens
