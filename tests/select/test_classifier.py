"""The classifier: logistic regression on n-grams, against its own gradient and planted pools."""

import numpy as np
import pytest
import torch
from word_pool import as_documents, in_pieces, make_word_pool, word_text

from curate.config.schema import ClassifierConfig
from curate.errors import NonFiniteLoss
from curate.pipeline.checkpoints import load_state, save_state
from curate.select.methods import classifier as module
from curate.select.methods.base import RoundStart
from curate.select.methods.classifier import ClassifierMethod, fit
from curate.select.ngrams import NgramHasher


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_word_pool(tmp_path_factory.mktemp("pool"))


def fitted(context):
    method = ClassifierMethod(context)
    method.warm_up()
    assert method.start_round(0) == RoundStart()
    return method


def auc(positive, negative):
    """Share of pairs that are in the right order."""
    return np.mean(np.asarray(positive)[:, None] > np.asarray(negative)[None, :])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_documents_like_the_target_rank_first(pool, seed):
    every = pool.every
    scores = fitted(pool.context(seed=seed)).score(every)
    planted = pool.planted(every)
    assert scores.score[planted].min() > scores.score[~planted].max()
    for unknown in (scores.proxy_loss, scores.reference_loss, scores.excess_loss):
        assert np.isnan(unknown).all()


def test_unseen_documents_rank_as_seen_ones_do(pool):
    method = fitted(pool.context())
    unseen = [word_text(kind, 20_000 + row) for kind in (0, 1) for row in range(100)]
    scores = method.score(as_documents(unseen)).score
    assert auc(scores[:100], scores[100:]) > 0.99


def test_word_order_alone_tells_target_from_pool(tmp_path):
    """Both hold the same words equally often; only pairs of neighbours differ."""
    random = np.random.default_rng(0)

    def text(rising):
        starts = random.integers(0, 10, 12)
        steps = [0, 1, 2] if rising else [2, 1, 0]
        return " . ".join(" ".join(f"w{(s + step) % 10}" for step in steps) for s in starts)

    pool = make_word_pool(tmp_path, [text(row % 10 == 0) for row in range(300)])
    target = [text(True) for _ in range(60)]
    scores = fitted(pool.context(target=target)).score(pool.every)
    rising = pool.every.ids % 10 == 0
    assert auc(scores.score[rising], scores.score[~rising]) > 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_do_not_depend_on_blocks_or_order(pool, seed):
    method = fitted(pool.context())
    every = pool.every
    whole = method.score(every).score
    pieces, order = in_pieces(every, seed)
    found = np.concatenate([method.score(piece).score for piece in pieces])
    np.testing.assert_array_equal(found, whole[order])


def test_same_seed_same_scores(pool):
    every = pool.every
    one, same, other = (fitted(pool.context(seed=seed)).score(every).score for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_saved_state_scores_the_same(pool, tmp_path):
    method = fitted(pool.context())
    save_state(method.state_dict(), tmp_path / "state")
    torch.load(tmp_path / "state", weights_only=True)
    other = ClassifierMethod(pool.context())
    assert other.score(pool.every).score.tolist() == [0] * len(pool.every)
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
    schedule = ClassifierMethod.plan(context.config, pool.cache.tokens)
    assert (schedule.passes, schedule.scoring) == (0, True)
    assert "65,536 buckets, 3 epochs" in schedule.description[0]
    fitted(context).score(pool.every)
    assert sum(pool.tokens) == schedule.expected_tokens == pool.cache.tokens


def test_what_it_can_keep():
    assert ClassifierMethod.granularities == ("document",)
    assert ClassifierMethod.has_proxy is False


@pytest.mark.parametrize(
    ("targets", "fewest", "most", "expected"),
    [
        (30, 100, 1000, (30, 100)),  # at least so many of the pool
        (30, 10, 1000, (30, 30)),  # as many as there are targets
        (30, 5000, 9000, (30, 240)),  # at most the pool
        (30, 10, 12, (12, 12)),  # at most the published number of either
    ],
)
def test_examples_of_each_class(pool, monkeypatch, targets, fewest, most, expected):
    seen = []

    def record(examples, labels, config, seed):
        seen.append((int(labels.sum()), int((1 - labels).sum()), len(examples)))
        return fit(examples, labels, config, seed)

    monkeypatch.setattr(module, "_FEWEST_NEGATIVES", fewest)
    monkeypatch.setattr(module, "_MOST_EXAMPLES", most)
    monkeypatch.setattr(module, "fit", record)
    fitted(pool.context(target=pool.target_texts[:targets]))
    assert seen == [(*expected, sum(expected))]


def test_long_documents_are_fewer(pool, monkeypatch):
    """Of either class as many as have so many tokens, so that books do not fill the memory."""
    seen = []

    def record(examples, labels, config, seed):
        seen.append(labels)
        return fit(examples, labels, config, seed)

    monkeypatch.setattr(module, "fit", record)
    monkeypatch.setattr(module, "_BLOCK_TOKENS", 50)
    tokens = as_documents(pool.target_texts[:30]).num_tokens
    for most, left in ((tokens // 2, (5, 25)), (tokens, (30, 30))):
        monkeypatch.setattr(module, "_MOST_TOKENS", most)
        fitted(pool.context(target=pool.target_texts[:30]))
        labels = seen.pop()
        assert left[0] <= labels.sum() <= left[1]
        assert (1 - labels).sum() < 240


def test_negatives_are_a_random_sample_of_the_pool(pool, monkeypatch):
    """Another seed draws other documents, long and short ones in their shares."""
    drawn = []

    def record(examples, labels, config, seed):
        drawn.append(tuple(examples.lengths[labels == 0].tolist()))
        return np.zeros(config.buckets), 0.0

    monkeypatch.setattr(module, "_FEWEST_NEGATIVES", 60)
    monkeypatch.setattr(module, "fit", record)
    for seed in range(20):
        fitted(pool.context(seed=seed))
    assert len(set(drawn)) == 20
    lengths = NgramHasher(10)(pool.texts).lengths
    assert np.mean(drawn) == pytest.approx(lengths.mean(), rel=0.05)


def test_a_score_is_the_mean_of_the_trained_numbers_plus_the_bias(pool, tmp_path):
    method = fitted(pool.context())
    save_state(method.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert state["bias"] != 0
    texts = ["", "rain of alpha, and", "beta"]
    buckets = [NgramHasher(65_536)([text]).buckets for text in texts]
    means = [state["values"].numpy()[one].mean() if len(one) else 0.0 for one in buckets]
    found = method.score(as_documents(texts)).score
    np.testing.assert_allclose(found, np.array(means) + state["bias"], atol=1e-12)


def plain_objective(values, bias, ngrams, labels):
    """Half the mean logistic loss of each class, in torch."""
    parts = [
        values[torch.from_numpy(one).long()]
        for one in np.split(ngrams.buckets, ngrams.offsets[1:-1])
    ]
    odds = torch.stack([part.sum() / max(1, len(part)) for part in parts]) + bias
    losses = torch.nn.functional.softplus(torch.where(labels == 1, -odds, odds))
    return (losses[labels == 1].mean() + losses[labels == 0].mean()) / 2


def test_a_step_is_that_of_adam_on_the_balanced_logistic_loss():
    """Small data make one batch an epoch: four steps against torch.optim.Adam and autograd."""
    texts = [word_text(row % 4 > 0, row) for row in range(31)] + [""]
    ngrams = NgramHasher(50)(texts)
    labels = np.array([float(row % 4 == 0) for row in range(32)])
    config = ClassifierConfig(buckets=50, epochs=4, learning_rate=0.3)
    found, found_bias = fit(ngrams, labels, config, 0)

    values = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([values], lr=1.0)
    gradient_steps = torch.optim.SGD([bias], lr=1.0)
    for step in range(4):
        for optimizer in (adam, gradient_steps):
            optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 4)
            optimizer.zero_grad()
        plain_objective(values, bias, ngrams, torch.from_numpy(labels)).backward()
        adam.step()
        gradient_steps.step()
    np.testing.assert_allclose(found, values.detach().numpy(), atol=1e-9)
    assert found_bias == pytest.approx(bias.item(), abs=1e-9)


def test_an_epoch_sees_every_example_once_in_a_new_order():
    batches = list(module._batches(100, 3, seed=5))
    assert [len(batch) for batch in batches] == [32, 32, 32, 4] * 3
    epochs = [np.concatenate(batches[first : first + 4]) for first in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_shares_of_the_classes_do_not_move_the_odds():
    """Twice the same negatives: the loss of a balanced problem does not change."""
    texts = [word_text(0, row) for row in range(10)] + [word_text(1, row) for row in range(10)]
    ngrams = NgramHasher(1000)(texts)
    one = np.arange(20)
    double = np.concatenate([one, one[10:]])
    config = ClassifierConfig(buckets=1000, epochs=30, learning_rate=0.1)
    scores = []
    for positions in (one, double):
        examples = ngrams.take(positions)
        values, bias = fit(examples, (positions < 10).astype(float), config, 0)
        scores.append(ngrams.means(values) + bias)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-9)


@pytest.mark.parametrize("target", [[], ["  "]])
def test_a_target_without_words_gives_finite_scores(pool, target):
    scores = fitted(pool.context(target=target)).score(as_documents(["", "of the", "new words"]))
    assert np.isfinite(scores.score).all()


def test_settings_have_limits():
    for wrong in ({"buckets": 0}, {"epochs": 0}, {"learning_rate": 0.0}):
        with pytest.raises(Exception, match=r"classifier\."):
            ClassifierConfig(**wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_numbers_that_scores_could_overflow_with_are_refused(pool, value):
    method = fitted(pool.context())
    method.check()
    method._odds._values[3] = value
    with pytest.raises(NonFiniteLoss) as caught:
        method.check()
    assert caught.value.problem == f"The classifier was trained to log-odds as large as {value:g}."
    assert caught.value.remedy == "Lower classifier.learning_rate."
