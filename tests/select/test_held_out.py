"""What an ensemble holds out of target and pool, and the separation measured on it."""

import dataclasses

import numpy as np
import pytest
from tiny_models import (
    make_bench,
    make_documents,
    make_planted,
    one_thread,  # noqa: F401
)

from curate.noise import gumbel, make_key
from curate.read.cache import Fragment, TokenCache
from curate.read.documents import concatenate
from curate.select.methods.blade import BladeMethod
from curate.select.methods.classifier import TargetOdds
from curate.select.methods.held_out import HeldOut, _pool_share, pool_sample
from curate.select.methods.separation import measure_separation
from curate.train.optimizer import Optimizer

FIRST_TARGET_ID = 100_000


@pytest.fixture
def named(planted):
    """The planted pool, under a target whose ids are not those of pool documents."""
    target = dataclasses.replace(planted.target, ids=planted.target.ids + FIRST_TARGET_ID)
    return dataclasses.replace(planted, target=target)


def ids_of(stream):
    return set(concatenate(list(stream)).ids.tolist())


@pytest.mark.parametrize("train_on", ["kept", "mixture"])
def test_no_model_learns_from_what_is_held_out(named, monkeypatch, train_on):
    learned = set()
    step = Optimizer.step

    def spy(self, terms, first_step=0):
        learned.update(*(one.documents.ids.tolist() for one in terms))
        return step(self, terms, first_step)

    monkeypatch.setattr(Optimizer, "step", spy)
    settings = {"lambda_": 1.0, "train_on": train_on, "warmup_tokens": 9_000, "reference_steps": 9}
    bench = make_bench(named, final="ensemble", **settings)
    method = BladeMethod(bench.context)
    method.warm_up()
    rounds = bench.context.schedule.rounds
    for index in range(rounds):
        method.start_round(index)
        for block in named.blocks(index):
            method.score(block)
            method.learn(block, named.kinds(block) == 0)
    method.start_round(rounds)
    held_out = method._held_out
    not_learned = ids_of([held_out.pool(), held_out.target])
    assert min(not_learned) < FIRST_TARGET_ID <= max(not_learned)
    every = ids_of(named.cache.stream(0)) | set(named.target.ids.tolist())
    assert learned == every - not_learned


def test_nor_does_the_classifier(named):
    bench = make_bench(named, final="ensemble")
    read = []

    def decode(documents):
        read.append(documents)
        return bench.context.decode(documents)

    held_out = HeldOut(dataclasses.replace(bench.context, decode=decode))
    TargetOdds(held_out.rest).train(held_out.rest.target)
    every = ids_of(named.cache.stream(0)) | set(named.target.ids.tolist())
    assert ids_of(read) == every - ids_of([held_out.pool(), held_out.target])


def test_a_tenth_of_target_and_pool_is_held_out(planted):
    context = make_bench(planted).context
    held_out = HeldOut(context)
    target, rest = held_out.target, held_out.rest.target
    assert sorted([*rest.ids, *target.ids]) == list(planted.target.ids)
    assert len(target) == 10  # of 25: a tenth would be too few to tell anything by
    pool = held_out.pool()
    assert 5 < len(pool) < 30  # of 160
    assert held_out.holds(pool).all()
    assert pool.ids.tolist() == held_out.pool().ids.tolist()
    left = concatenate(list(held_out.rest.cache.stream(0, "any")))
    assert not held_out.holds(left).any()
    assert len(left) + len(pool) == planted.cache.documents
    other = HeldOut(make_bench(planted, seed=1).context)
    assert set(other.pool().ids) != set(pool.ids)


def test_a_tenth_of_a_larger_target_is_held_out(planted):
    many = concatenate([planted.target] * 12)
    many = dataclasses.replace(many, ids=np.arange(len(many)))
    held_out = HeldOut(make_bench(dataclasses.replace(planted, target=many)).context)
    over = held_out.target.num_tokens - 0.1 * many.num_tokens
    assert 0 <= over < many.lengths.max()
    assert len(held_out.rest.target) == len(many) - len(held_out.target)


def test_who_does_not_ask_learns_from_all(planted):
    context = make_bench(planted).context
    held_out = HeldOut(context, nothing=True)
    assert held_out.rest is context
    assert len(held_out.target) == 0
    assert not held_out.holds(concatenate(list(planted.cache.stream(0)))).any()
    for final in ("none", "rescore"):
        method = BladeMethod(make_bench(planted, final=final).context)
        assert method._held_out.rest is method._context


def test_a_pool_of_a_few_documents_gives_none_up(tmp_path):
    few = make_planted(tmp_path, rows=60)
    held_out = HeldOut(make_bench(few).context)
    assert ids_of(held_out.rest.cache.stream(0)) == set(range(60))
    assert ids_of([held_out.pool()]) == set(range(60))
    assert len(held_out.target) > 0


@pytest.mark.parametrize(
    ("documents", "tokens", "share"),
    [
        (8_000, 1_000_000, 0.1),
        (30_000, 4_194_304, 1 / 32),
        (10**9, 10**12, 0.01),
        (10_240, 10**9, 0.05),
        (100, 10**9, 0.1),
        (99, 10**9, 0.0),
    ],
)
def test_a_large_pool_gives_up_no_more_than_it_must(tmp_path, documents, tokens, share):
    fragment = Fragment("shard-00000-00000", 0, documents, documents, tokens, 4 * tokens)
    assert _pool_share(TokenCache(tmp_path, (fragment,), 1)) == pytest.approx(share)


def test_samples_of_long_documents_are_of_many(tmp_path, monkeypatch):
    """Spreads are over documents: one that fills a sample on its own says nothing of them."""
    context = make_bench(make_planted(tmp_path, rows=400)).context
    whole = pool_sample(context)
    monkeypatch.setattr("curate.select.methods.held_out.POOL_TOKENS", 50)
    monkeypatch.setattr("curate.select.methods.held_out.POOL_DOCUMENTS", 60)
    sample = pool_sample(context)
    assert 60 <= len(sample) < 70
    assert sample.ids.tolist() == whole.ids[: len(sample)].tolist()
    assert len(HeldOut(context).pool()) > 20
    monkeypatch.setattr("curate.select.methods.held_out._MOST_POOL_TOKENS", 500)
    assert 500 <= pool_sample(context).num_tokens < 620


def test_a_spread_is_not_measured_on_a_few_documents(tmp_path, monkeypatch):
    context = make_bench(make_planted(tmp_path, rows=400)).context
    every = ids_of(context.cache.stream(0))
    monkeypatch.setattr("curate.select.methods.held_out._LARGEST_SHARE", 0.008)
    held_out = HeldOut(context)
    assert 0 < held_out.holds(concatenate(list(context.cache.stream(0)))).sum() < 5
    assert ids_of([held_out.pool()]) == every


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "lengths", [[2000, *[10] * 20], [5, 1000], [10, 900, 900], [300, 300], [1, 1, 50, 1]]
)
def test_one_long_document_is_not_the_tenth_of_the_target(planted, seed, lengths):
    target = make_documents(lengths, vocabulary=250)
    context = dataclasses.replace(make_bench(planted, seed=seed).context, target=target)
    held_out = HeldOut(context)
    assert 0 < held_out.target.num_tokens <= target.num_tokens / 2
    assert 0 < len(held_out.target) <= len(target) / 2
    both = [*held_out.target.ids, *held_out.rest.target.ids]
    assert sorted(both) == target.ids.tolist()


def test_documents_that_were_held_out_score_like_those_that_were_not_seen(tmp_path):
    """The pool's mean must not be that of documents a model was trained on."""
    pool = make_planted(tmp_path, rows=400)
    bench = make_bench(pool, final="ensemble", warmup_tokens=60_000, reference_steps=40)
    method = BladeMethod(bench.context)
    method.warm_up()
    method.start_round(0)
    start = method.start_round(bench.context.schedule.rounds)
    every = concatenate(list(pool.cache.stream(0)))
    scores = method._ensemble.scores(every, None).score
    seen = ~method._held_out.holds(every)
    like = pool.kinds(every) == 0
    own = method._ensemble.scores(pool.target, None).score
    held_out = np.isin(pool.target.ids, method._held_out.target.ids)
    unseen = scores[like & ~seen].mean()
    assert abs(own[held_out].mean() - unseen) < abs(own[held_out].mean() - own[~held_out].mean())
    assert start.target_separation > 0


def test_separation_and_noise():
    found = measure_separation(np.array([4.0, 6.0]), np.array([0.0, 2.0, 2.0, 0.0]))
    assert found.spreads == pytest.approx(4.0)
    assert found.spread == pytest.approx(1.0)
    assert found.standard_errors == pytest.approx(4.0 / np.sqrt(1 / 2 + 1 / 4))
    assert found.temperature == pytest.approx((2.5 / found.standard_errors) ** 6)
    ids = np.arange(50)
    expected = found.temperature * gumbel(make_key(7, "soft selection"), ids)
    np.testing.assert_allclose(found.noise(7, ids), expected)
    wider = measure_separation(np.array([40.0, 60.0]), np.array([0.0, 20.0, 20.0, 0.0]))
    np.testing.assert_allclose(wider.noise(7, ids), 10 * expected)
    flat = measure_separation(np.array([2.0]), np.array([1.0, 1.0]))
    assert flat.spreads == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("mean", "temperature"), [(2.5, 1.0), (5.0, 1 / 64), (1.25, 64.0), (0.0, 25.0**6)]
)
def test_the_noise_falls_steeply_with_the_separation(mean, temperature):
    many = np.tile([-1.0, 1.0], 10**7)
    found = measure_separation(np.array([mean]), many)
    assert found.temperature == pytest.approx(temperature, rel=1e-5)
    assert (found.doubt is None) == (temperature < 1)
    below = measure_separation(np.array([-mean - 1]), many)
    assert below.temperature == pytest.approx(25.0**6)
    assert "below the pool's mean" in below.doubt


def test_the_doubt_in_words():
    found = measure_separation(np.array([0.5]), np.array([-1.0, 1.0]))
    assert found.doubt == (
        "The target does not stand out from the pool: 1 document of it, held out, scored 0.50 "
        "spreads above the pool's mean, which may be chance. Noise will decide at least as much "
        "as the scores do; a larger target, or one less like the pool, would give them a meaning."
    )
