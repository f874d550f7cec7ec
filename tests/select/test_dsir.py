"""DSIR against the paper's formula, written out with dictionaries."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from word_pool import as_documents, in_pieces, make_word_pool

from curate.config.schema import Config, DsirConfig
from curate.pipeline.checkpoints import load_state, save_state
from curate.select.methods.base import RoundStart
from curate.select.methods.dsir import DsirMethod, log_ratio
from curate.select.ngrams import NgramHasher

BARE = DsirConfig(noise="none")
COLLISION_FREE = DsirConfig(noise="none", buckets=2**20)

PUNCTUATED = [
    "The cat, the CAT!",
    "a dog... and; a cat",
    "dog",
    "  ",
    "Zeta_1 (zeta_1) -- the end.",
    "naïve café: the naïve one",
    "!!! ??? !!!",
    "the the the the the the the",
]
PUNCTUATED_TARGET = ["the cat and the naïve cat", "Cats, the; zeta_1?!", "a dog ... end."]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_word_pool(tmp_path_factory.mktemp("pool"))


def fitted(context):
    method = DsirMethod(context)
    method.warm_up()
    assert method.start_round(0) == RoundStart()
    return method


def plain_ngrams(text):
    """Words and pairs, cut character by character: letters, digits and _ against the rest."""
    words, last = [], None
    for character in text.lower():
        kind = None if character.isspace() else character.isalnum() or character == "_"
        if kind is None or kind != last:
            words.append("")
        words[-1] += "" if kind is None else character
        last = kind
    words = [word for word in words if word]
    return [(word,) for word in words] + list(itertools.pairwise(words))


def plain_weights(pool_texts, target_texts, name=lambda ngram: ngram):
    """Log importance weight of each pool text; `name` maps an n-gram to its feature."""

    def probabilities(texts):
        counts = Counter(name(ngram) for text in texts for ngram in plain_ngrams(text))
        total = sum(counts.values())
        return {feature: count / total for feature, count in counts.items()}

    target, raw = probabilities(target_texts), probabilities(pool_texts)
    weights = []
    for text in pool_texts:
        weight = 0.0
        for feature, count in Counter(map(name, plain_ngrams(text))).items():
            ratio = math.log(target.get(feature, 0.0) + 1e-8) - math.log(raw[feature] + 1e-8)
            weight += count * ratio
        weights.append(weight)
    return weights


def bucket_by_digest(buckets):
    """A second way to the tool's buckets of words: pairs are taken from the tool itself."""

    def name(ngram):
        if len(ngram) == 2:
            return int(NgramHasher(buckets)([" ".join(ngram)]).buckets[1])
        digest = hashlib.blake2b(ngram[0].encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % buckets

    return name


@pytest.fixture(scope="module")
def punctuated(tmp_path_factory):
    return make_word_pool(tmp_path_factory.mktemp("punctuated"), PUNCTUATED)


def test_weights_are_those_of_the_formula(punctuated, pool):
    """2^20 buckets hold no two of these n-grams, so the dictionaries need no hash at all."""
    for one, target in ((punctuated, PUNCTUATED_TARGET), (pool, pool.target_texts)):
        context = one.context(target=target, dsir=COLLISION_FREE)
        scores = fitted(context).score(one.every)
        expected = np.array(plain_weights(one.texts, target))
        np.testing.assert_allclose(scores.score, expected[one.every.ids], rtol=1e-9, atol=1e-9)
        for unknown in (scores.proxy_loss, scores.reference_loss, scores.excess_loss):
            assert np.isnan(unknown).all()


@pytest.mark.parametrize("buckets", [1, 2, 13])
def test_weights_are_those_of_the_formula_over_shared_buckets(punctuated, buckets):
    dsir = DsirConfig(noise="none", buckets=buckets)
    context = punctuated.context(target=PUNCTUATED_TARGET, dsir=dsir)
    name = bucket_by_digest(buckets)
    expected = np.array(plain_weights(PUNCTUATED, PUNCTUATED_TARGET, name))
    score = fitted(context).score(punctuated.every).score
    np.testing.assert_allclose(score, expected[punctuated.every.ids], rtol=1e-9, atol=1e-9)


def test_defaults_are_the_published_ones():
    assert DsirConfig() == DsirConfig(buckets=10_000, noise="gumbel", score="sum")


def test_mean_is_the_sum_over_the_number_of_ngrams(punctuated):
    every = punctuated.every
    sums, means = (
        fitted(
            punctuated.context(target=PUNCTUATED_TARGET, dsir=DsirConfig(noise="none", score=score))
        )
        .score(every)
        .score
        for score in ("sum", "mean")
    )
    lengths = np.array([len(plain_ngrams(PUNCTUATED[row])) for row in every.ids])
    assert 0 in lengths and means[lengths == 0].tolist() == [0]
    np.testing.assert_allclose(means * lengths, sums, atol=1e-9)


@pytest.mark.parametrize(("score", "noise"), [("sum", "gumbel"), ("sum", "none"), ("mean", "none")])
def test_documents_like_the_target_rank_first(pool, score, noise):
    every = pool.every
    dsir = DsirConfig(score=score, noise=noise)
    scores = fitted(pool.context(dsir=dsir)).score(every).score
    planted = pool.planted(every)
    assert scores[planted].min() > scores[~planted].max()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_do_not_depend_on_blocks_or_order(pool, seed):
    method = fitted(pool.context())
    every = pool.every
    whole = method.score(every).score
    pieces, order = in_pieces(every, seed)
    found = np.concatenate([method.score(piece).score for piece in pieces])
    np.testing.assert_array_equal(found, whole[order])


def test_same_seed_same_scores_and_another_seed_another_noise_only(pool):
    every = pool.every

    def score(seed, dsir):
        return fitted(pool.context(seed=seed, dsir=dsir)).score(every).score

    np.testing.assert_array_equal(score(3, DsirConfig()), score(3, DsirConfig()))
    np.testing.assert_array_equal(score(3, BARE), score(4, BARE))
    noise = [score(seed, DsirConfig()) - score(seed, BARE) for seed in (3, 4)]
    told = fitted(pool.context(seed=3)).score(every).noise
    np.testing.assert_allclose(told, noise[0], rtol=1e-6, atol=1e-6)
    assert fitted(pool.context(dsir=BARE)).score(every).noise is None
    assert np.abs(noise[0] - noise[1]).min() > 0
    assert abs(np.corrcoef(noise)[0, 1]) < 0.3


def test_a_saved_state_scores_the_same(pool, tmp_path):
    method = fitted(pool.context())
    save_state(method.state_dict(), tmp_path / "state")
    torch.load(tmp_path / "state", weights_only=True)
    other = DsirMethod(pool.context())
    assert not np.array_equal(other.score(pool.every).score, method.score(pool.every).score)
    other.load_state_dict(load_state(tmp_path / "state"))
    np.testing.assert_array_equal(other.score(pool.every).score, method.score(pool.every).score)
    (tmp_path / "again").mkdir()
    save_state(other.state_dict(), tmp_path / "again" / "state")
    assert (tmp_path / "again" / "state").read_bytes() == (tmp_path / "state").read_bytes()


def test_learning_changes_nothing(pool):
    method = fitted(pool.context())
    every = pool.every
    before = method.score(every).score
    method.learn(every, np.ones(len(every), dtype=bool))
    np.testing.assert_array_equal(method.score(every).score, before)


def test_the_plan_counts_the_tokens_that_are_reported(pool):
    context = pool.context()
    schedule = DsirMethod.plan(context.config, pool.cache.tokens)
    assert (schedule.passes, schedule.scoring) == (0, True)
    assert "10,000 buckets" in schedule.description[0]
    fitted(context).score(pool.every)
    assert sum(pool.tokens) == schedule.expected_tokens == 2 * pool.cache.tokens


def test_what_it_can_keep():
    assert DsirMethod.granularities == ("document",)
    assert DsirMethod.has_proxy is False


@pytest.mark.parametrize("target", [[], ["  "]])
def test_a_target_without_words_gives_finite_scores(pool, target):
    scores = fitted(pool.context(target=target)).score(as_documents(["", "of the", "new words"]))
    assert np.isfinite(scores.score).all()


def test_smoothing_in_numbers():
    found = log_ratio(np.array([3, 1, 0, 0]), np.array([1, 0, 1, 0]))
    expected = [math.log(0.75 + 1e-8) - math.log(0.5 + 1e-8), math.log((0.25 + 1e-8) / 1e-8)]
    assert found[:2].tolist() == pytest.approx(expected)
    assert found[2] == pytest.approx(math.log(1e-8 / (0.5 + 1e-8)))
    assert found[3] == 0


def test_reading_the_pool_in_other_blocks_counts_the_same(pool, monkeypatch):
    whole = fitted(pool.context(dsir=BARE)).score(pool.every).score
    monkeypatch.setattr("curate.select.methods.dsir._BLOCK_TOKENS", 500)
    again = fitted(pool.context(dsir=BARE)).score(pool.every).score
    np.testing.assert_array_equal(again, whole)


def test_settings_have_limits():
    config = Config(pool="p", target="t", out="o")
    assert config.dsir == DsirConfig()
    for wrong in ({"buckets": 0}, {"noise": "normal"}, {"score": "max"}):
        with pytest.raises(Exception, match=r"dsir\."):
            DsirConfig(**wrong)
