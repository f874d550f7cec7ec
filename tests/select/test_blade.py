import dataclasses
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import (
    make_bench,
    make_planted,
    one_thread,  # noqa: F401
    same_weights,
    weights_of,
)

from curate.noise import gumbel, make_key
from curate.pipeline.checkpoints import load_state, save_state
from curate.read.cache import draw_blocks
from curate.read.documents import concatenate
from curate.score.loss import document_losses, mean_loss
from curate.select.methods import METHODS
from curate.select.methods.blade import BladeMethod
from curate.select.methods.classifier import TargetOdds
from curate.select.methods.held_out import pool_sample
from curate.select.rounds import run_round
from curate.train.optimizer import Optimizer, Term, ramp_then_constant

VARIANTS = [
    {"control": control, "lambda_": lambda_}
    for control in ("proxy", "lookahead")
    for lambda_ in (0.0, 1.0)
] + [{"control": "lookahead", "lambda_": 0.0, "proxy_average": 0.1}]


def run(method, planted, path, index):
    return run_round(
        method,
        planted.blocks(index),
        path,
        round_index=index,
        method_name="blade",
        keep=0.3,
        seed=0,
    )


def steps_of(bench, model):
    return [one for one in bench.steps if one.model == model]


def plain(steps):
    """Step records without the clock."""
    return [(one.step, one.model, one.loss, one.learning_rate, one.gradient_norm) for one in steps]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_documents_like_the_target_score_higher(planted, variant, seed):
    bench = make_bench(planted, seed=seed, **variant)
    method = BladeMethod(bench.context)
    method.warm_up()
    start = method.start_round(0)
    assert start.target_loss_reference < start.target_loss_proxy
    assert start.lambda_ == variant["lambda_"]
    every = concatenate(list(planted.cache.stream(0)))
    scores = method.score(every)
    like, unlike = (scores.excess_loss[planted.kinds(every) == kind] for kind in (0, 1))
    assert like.mean() > unlike.mean() + 0.05
    assert np.mean(like[:, None] > unlike[None, :]) > 0.95
    np.testing.assert_array_equal(scores.excess_loss, scores.proxy_loss - scores.reference_loss)
    np.testing.assert_array_equal(np.argsort(scores.score), np.argsort(scores.excess_loss))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_round_keeps_documents_like_the_target(planted, tmp_path, variant):
    bench = make_bench(planted, **variant)
    method = BladeMethod(bench.context)
    method.warm_up()
    run(method, planted, tmp_path / "d", 0)
    rows = [row for row in pq.read_table(tmp_path / "d").to_pylist() if row["kept"]]
    like = sum(row["tokens"] for row in rows if row["document_id"] % 2 == 0)
    assert like > 0.8 * sum(row["tokens"] for row in rows)


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_lookahead_control_does_not_move_while_the_proxy_learns(planted, lambda_):
    bench = make_bench(planted, control="lookahead", lambda_=lambda_)
    method = BladeMethod(bench.context)
    method.warm_up()
    at_sync = bench.proxy.frozen_copy()
    method.start_round(0)
    block, other = planted.blocks()[:2]
    before = method.score(block)
    method.learn(other, np.ones(len(other), dtype=bool))
    after = method.score(block)
    np.testing.assert_array_equal(after.proxy_loss, before.proxy_loss)
    np.testing.assert_array_equal(after.reference_loss, before.reference_loss)
    proxy = document_losses(at_sync, block)
    assert not same_weights(weights_of(bench.proxy), weights_of(at_sync))
    assert np.array_equal(after.proxy_loss, proxy) == (lambda_ == 0)


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_proxy_control_is_the_live_proxy(planted, lambda_):
    bench = make_bench(planted, control="proxy", lambda_=lambda_)
    method = BladeMethod(bench.context)
    method.start_round(0)
    block, other = planted.blocks()[:2]
    before = method.score(block)
    np.testing.assert_array_equal(before.proxy_loss, document_losses(bench.proxy, block))
    method.learn(other, np.ones(len(other), dtype=bool))
    after = method.score(block)
    np.testing.assert_array_equal(after.proxy_loss, document_losses(bench.proxy, block))
    assert np.abs(after.proxy_loss - before.proxy_loss).min() > 0
    np.testing.assert_array_equal(after.reference_loss, before.reference_loss)
    assert not steps_of(bench, "lookahead")


def test_scores_do_not_depend_on_the_block(planted):
    bench = make_bench(planted, lambda_=1.0)
    method = BladeMethod(bench.context)
    method.start_round(0)
    every = concatenate(list(planted.cache.stream(0)))
    expected = dict(zip(every.ids.tolist(), method.score(every).score, strict=True))
    for block in planted.blocks(3, tokens=100):
        scores = method.score(block).score
        np.testing.assert_allclose(scores, [expected[one] for one in block.ids], atol=1e-5)


def test_a_sync_starts_from_the_proxy_as_it_is_and_leaves_it_alone(planted):
    """The first reference step's loss is the proxy's own loss on a target batch."""
    bench = make_bench(planted, lambda_=0.0, reference_steps=1, train_on="kept")
    method = BladeMethod(bench.context)
    method.warm_up()
    losses = []
    for index in range(2):
        before = weights_of(bench.proxy)
        moments = len(bench.steps)
        start = method.start_round(index)
        assert same_weights(weights_of(bench.proxy), before)
        assert start.proxy_step == len(steps_of(bench, "proxy"))
        assert start.target_loss_proxy == mean_loss(bench.proxy, planted.target)
        assert [one.model for one in bench.steps[moments:]] == ["reference"]
        losses.append(bench.steps[-1].loss)
        assert losses[-1] == pytest.approx(start.target_loss_proxy, rel=0.15)
        for block in planted.blocks():
            method.learn(block, planted.kinds(block) == 1)
    assert abs(losses[1] - losses[0]) > 0.1


@pytest.mark.parametrize(
    ("control", "lambda_", "lookahead"),
    [("proxy", 0.0, 0), ("proxy", 1.0, 0), ("lookahead", 0.0, 0), ("lookahead", 1.0, 5)],
)
def test_steps_of_a_sync(planted, control, lambda_, lookahead):
    bench = make_bench(planted, control=control, lambda_=lambda_)
    method = BladeMethod(bench.context)
    for index in range(2):
        assert method.start_round(index).reference_steps == 5
    assert [one.step for one in steps_of(bench, "reference")] == list(range(10))
    assert [one.step for one in steps_of(bench, "lookahead")] == list(range(2 * lookahead))
    assert not steps_of(bench, "proxy")


def test_pool_batches_of_a_sync_are_the_outgoing_pairs_choice_and_all_at_first(planted):
    bench = make_bench(planted, lambda_=1.0, control="lookahead", reference_steps=3)
    method = BladeMethod(bench.context)
    method.warm_up()
    first = next(draw_blocks(planted.cache.stream(0, "sync", 0, 0), 240))
    method.start_round(0)
    assert steps_of(bench, "lookahead")[0].loss == pytest.approx(mean_loss(bench.proxy, first))
    for block in planted.blocks():
        method.learn(block, np.ones(len(block), dtype=bool))
    second = next(draw_blocks(planted.cache.stream(0, "sync", 1, 0), 800))
    best = np.argsort(-method.score(second).score)
    sums = np.cumsum(second.lengths[best])
    count = 1 + int(np.abs(sums - 0.3 * sums[-1]).argmin())
    chosen = second.take(best[:count])
    target = steps_of(bench, "reference")
    method.start_round(1)
    loss = mean_loss(bench.proxy, chosen)
    assert steps_of(bench, "lookahead")[3].loss == pytest.approx(loss, rel=1e-4)
    assert abs(loss - mean_loss(bench.proxy, second)) > 0.01
    # The reference's first step holds the same pool batch beside its target batch.
    both = steps_of(bench, "reference")[len(target)].loss
    assert both - loss == pytest.approx(mean_loss(bench.proxy, planted.target), rel=0.15)


def test_lambda_follows_its_schedule_and_scales_the_score(planted):
    bench = make_bench(planted, lambda_=0.5, lambda_end=2.0, lambda_schedule="linear")
    method = BladeMethod(bench.context)
    block = planted.blocks()[0]
    for index, lambda_ in enumerate([0.5, 1.25, 2.0, 2.0]):
        assert method.start_round(index).lambda_ == lambda_
        scores = method.score(block)
        np.testing.assert_allclose(scores.score, lambda_ * scores.excess_loss)


@pytest.mark.parametrize(
    "variant",
    [
        {"control": "lookahead", "lambda_": 1.0, "train_on": "mixture"},
        {"control": "lookahead", "lambda_": 0.0, "train_on": "mixture"},
        {"control": "proxy", "lambda_": 1.0, "train_on": "kept"},
        {"control": "lookahead", "lambda_": 0.2, "lambda_end": 2.0, "lambda_schedule": "geometric"},
    ],
)
def test_a_restored_method_goes_on_bit_for_bit(planted, tmp_path, variant):
    bench = make_bench(planted, **variant)
    method = BladeMethod(bench.context)
    method.warm_up()
    run(method, planted, tmp_path / "first", 0)
    save_state(method.state_dict(), tmp_path / "checkpoint")
    done = len(bench.steps)
    going_on = [run(method, planted, tmp_path / f"on-{index}", index) for index in (1, 2)]

    other = make_bench(planted, **variant)
    restored = BladeMethod(other.context)
    restored.load_state_dict(load_state(tmp_path / "checkpoint"))
    again = [run(restored, planted, tmp_path / f"again-{index}", index) for index in (1, 2)]
    for index in (1, 2):
        ours = pq.read_table(tmp_path / f"on-{index}")
        assert ours.equals(pq.read_table(tmp_path / f"again-{index}"))
    for ours, theirs in zip(going_on, again, strict=True):
        assert {**ours.record, "seconds": 0} == {**theirs.record, "seconds": 0}
        assert (ours.score_mean, ours.score_std) == (theirs.score_mean, theirs.score_std)
    assert plain(other.steps) == plain(bench.steps[done:])
    assert same_weights(weights_of(bench.proxy), weights_of(other.proxy))


def test_a_checkpoint_of_the_warm_up_can_be_restored(planted, tmp_path):
    bench = make_bench(planted, lambda_=1.0)
    method = BladeMethod(bench.context)
    method.warm_up()
    save_state(method.state_dict(), tmp_path / "checkpoint")
    run(method, planted, tmp_path / "on", 0)
    restored = BladeMethod(make_bench(planted, lambda_=1.0).context)
    restored.load_state_dict(load_state(tmp_path / "checkpoint"))
    run(restored, planted, tmp_path / "again", 0)
    assert pq.read_table(tmp_path / "on").equals(pq.read_table(tmp_path / "again"))


def test_a_checkpoint_holds_the_pair_and_its_lambda(planted, tmp_path):
    settings = {"lambda_": 0.5, "lambda_end": 2.0, "lambda_schedule": "linear"}
    method = BladeMethod(make_bench(planted, **settings).context)
    run(method, planted, tmp_path / "d", 2)
    block = planted.blocks()[0]
    expected = method.score(block)
    save_state(method.state_dict(), tmp_path / "checkpoint")
    restored = BladeMethod(make_bench(planted, **settings).context)
    restored.load_state_dict(load_state(tmp_path / "checkpoint"))
    found = restored.score(block)
    np.testing.assert_array_equal(found.score, expected.score)
    np.testing.assert_array_equal(found.proxy_loss, expected.proxy_loss)
    np.testing.assert_allclose(found.score, 2 * found.excess_loss)
    restored.start_round(1)
    save_state(restored.state_dict(), tmp_path / "checkpoint")
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["start"] is None


def test_equal_seeds_give_equal_runs_and_other_seeds_others(planted, tmp_path):
    tables = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        method = BladeMethod(make_bench(planted, seed=seed).context)
        run(method, planted, tmp_path / name, 0)
        tables[name] = pq.read_table(tmp_path / name)
    assert tables["a"].equals(tables["b"])
    assert not tables["a"].equals(tables["c"])


def test_warm_up_trains_on_the_whole_pool_alike_until_its_tokens_are_spent(planted):
    for warmup_tokens, passes in ((0, 0), (1, 0), (2400, 0), (planted.cache.tokens * 2, 2)):
        bench = make_bench(planted, warmup_tokens=warmup_tokens)
        method = BladeMethod(bench.context)
        method.warm_up()
        trained = sum(bench.tokens)
        assert warmup_tokens <= trained < warmup_tokens + 240 + 60
        if warmup_tokens == 0:
            assert not bench.steps
        assert {one.model for one in bench.steps} <= {"proxy"}
        assert len(bench.steps) <= max(1, -(-warmup_tokens // 240) + passes)
        every = concatenate(list(planted.cache.stream(0)))
        losses = document_losses(bench.proxy, every)
        means = [losses[planted.kinds(every) == kind].mean() for kind in (0, 1)]
        assert abs(means[0] - means[1]) < 0.3
        if warmup_tokens >= 2400:
            assert max(means) < 5.2


def test_training_on_kept_documents_is_one_step_on_them(planted):
    bench = make_bench(planted, train_on="kept")
    method = BladeMethod(bench.context)
    twin = bench.proxy.trainable_copy()
    train = bench.context.config.train
    optimizer = Optimizer(twin, "proxy", train, ramp_then_constant(5e-3, 3))
    method.start_round(0)
    for block in planted.blocks()[:3]:
        kept = np.arange(len(block)) % 3 == 1
        method.learn(block, kept)
        optimizer.step([Term(block.take(np.flatnonzero(kept)))])
    assert same_weights(weights_of(bench.proxy), weights_of(twin))


@pytest.mark.parametrize("name", ["rho1", "color"])
def test_static_references_prefer_documents_like_the_target(planted, name):
    bench = make_bench(planted)
    method = METHODS[name](bench.context)
    method.warm_up()
    method.start_round(0)
    every = concatenate(list(planted.cache.stream(0)))
    like = planted.kinds(every) == 0
    scores = method.score(every).score
    assert scores[like].mean() - scores[~like].mean() > scores.std()


@pytest.mark.parametrize("train_on", ["kept", "mixture"])
def test_nothing_kept_is_no_step(planted, train_on):
    bench = make_bench(planted, train_on=train_on)
    method = BladeMethod(bench.context)
    method.start_round(0)
    before = len(bench.steps)
    block = planted.blocks()[0]
    method.learn(block, np.zeros(len(block), dtype=bool))
    assert len(bench.steps) == before


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_a_mixture_has_its_share_of_kept_tokens(planted, share):
    bench = make_bench(planted, train_on="mixture", mixture_kept_share=share)
    method = BladeMethod(bench.context)
    method.start_round(0)
    for block in planted.blocks():
        kept = np.zeros(len(block), dtype=bool)
        kept[:4] = True
        bench.tokens.clear()
        method.learn(block, kept)
        trained = sum(bench.tokens)
        wanted = min(block.lengths[kept].sum() / share, block.num_tokens)
        assert abs(trained - wanted) < block.lengths.max()


def test_a_mixture_is_the_kept_documents_and_random_others_of_the_block(planted):
    """Found from the outside: the only set of documents with the step's tokens and loss."""
    bench = make_bench(planted, train_on="mixture", mixture_kept_share=0.5)
    method = BladeMethod(bench.context)
    method.start_round(0)
    places = []
    for block in planted.blocks(tokens=300)[:5]:
        losses = document_losses(bench.proxy, block)
        kept = np.zeros(len(block), dtype=bool)
        kept[[1, 2]] = True
        bench.tokens.clear()
        method.learn(block, kept)
        found = [
            chosen
            for size in range(1, len(block) + 1)
            for chosen in itertools.combinations(range(len(block)), size)
            if block.lengths[list(chosen)].sum() == bench.tokens[0]
            and np.average(losses[list(chosen)], weights=block.lengths[list(chosen)])
            == pytest.approx(bench.steps[-1].loss, rel=1e-6)
        ]
        assert len(found) == 1
        assert {1, 2} < set(found[0])
        places.append(tuple(set(found[0]) - {1, 2}))
    assert len(set(places)) > 1


@pytest.mark.parametrize(
    ("control", "ngram_weight", "redundancy_weight", "much_learned"),
    [
        ("lookahead", 0.0, 0.0, False),
        ("lookahead", 0.25, 0.75, True),
        ("lookahead", 0.25, 0.75, False),
        ("proxy", 0.0, 0.4, True),
    ],
)
def test_an_ensemble_is_the_last_rounds_pair_less_two_votes(
    planted, tmp_path, control, ngram_weight, redundancy_weight, much_learned
):
    settings = {
        "final": "ensemble",
        "lambda_": 0.0,
        "control": control,
        "ngram_weight": ngram_weight,
        "redundancy_weight": redundancy_weight,
    }
    bench = make_bench(planted, **settings)
    method = BladeMethod(bench.context)
    method.warm_up()
    every = concatenate(list(planted.cache.stream(0)))
    rounds = bench.context.schedule.rounds
    for index in range(rounds):
        method.start_round(index)
        before = document_losses(method._proxy.scored, every)
        excess = before - document_losses(method._pair.reference, every)
        np.testing.assert_allclose(method.score(every).score, excess)
        for block in planted.blocks(index) * (6 if much_learned else 1):
            method.learn(block, planted.kinds(block) == 0)
        save_state(method.state_dict(), tmp_path / "checkpoint")
        method = BladeMethod(make_bench(planted, **settings).context)
        method.load_state_dict(load_state(tmp_path / "checkpoint"))
    steps = len(bench.steps)
    start = method.start_round(rounds)
    assert (len(bench.steps), start.reference_steps) == (steps, 0)
    found = method.score(every)
    save_state(method.state_dict(), tmp_path / "scoring")
    again = BladeMethod(make_bench(planted, **settings).context)
    again.load_state_dict(load_state(tmp_path / "scoring"))
    np.testing.assert_array_equal(again.score(every).score, found.score)
    chosen = np.isin(every.ids, pool_sample(bench.context).ids)
    per_byte = every.lengths / every.bytes
    odds = TargetOdds(method._held_out.rest)
    odds.train(method._held_out.rest.target)
    log_odds = odds.of(every)
    log_odds = (log_odds - log_odds[chosen].mean()) / log_odds[chosen].std()
    learned = (before - document_losses(method._proxy.scored, every)) * per_byte
    units = learned[chosen].std(), 0.3 * (excess * per_byte)[chosen].std()
    assert (units[0] > units[1]) == much_learned
    learned = (learned - learned[chosen].mean()) / max(units)
    votes = {
        "ngram_vote": ngram_weight * np.minimum(log_odds - 1.0, 0.0),
        "redundancy_vote": redundancy_weight * np.minimum(0.5 - learned, 0.0),
    }
    for (name, vote), weight in zip(votes.items(), (ngram_weight, redundancy_weight), strict=True):
        if weight:
            assert vote.min() < -0.05
            np.testing.assert_allclose(getattr(found, name), vote, rtol=1e-3, atol=1e-3)
        else:
            assert getattr(found, name) is None
    expected = excess * per_byte / (excess * per_byte)[chosen].std() + sum(votes.values())
    on_target = method._ensemble.scores(method._held_out.target, None).score
    on_pool = expected[method._held_out.holds(every)]
    assert 0 < len(on_pool) < 40
    separation = (on_target.mean() - on_pool.mean()) / on_pool.std()
    assert start.target_separation == pytest.approx(separation, rel=1e-3)
    assert start.target_separation > 0.5
    variance = 1 / len(on_target) + 1 / len(on_pool)
    temperature = (2.5 * variance**0.5 / separation) ** 6
    noise = temperature * on_pool.std() * gumbel(make_key(0, "soft selection"), every.ids)
    np.testing.assert_allclose(found.score, expected + noise, rtol=1e-3, atol=1e-4)
    assert (found.noise is None) == (temperature < 0.001)
    np.testing.assert_allclose(found.excess_loss, excess, atol=1e-6)
    np.testing.assert_array_equal(found.excess_loss, found.proxy_loss - found.reference_loss)


@pytest.mark.parametrize("documents", [1, 2])
def test_a_target_of_one_document_is_not_held_out(planted, documents):
    few = dataclasses.replace(planted, target=planted.target.take(np.arange(documents)))
    method = BladeMethod(make_bench(few, final="ensemble").context)
    method.warm_up()
    method.start_round(0)
    start = method.start_round(method._context.schedule.rounds)
    assert len(method._held_out.target) == documents - 1
    assert len(method._held_out.rest.target) == 1
    assert (start.target_separation is None) == (documents == 1)
    every = concatenate(list(planted.cache.stream(0)))
    assert np.isfinite(method.score(every).score).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_target_that_is_like_the_pool_leaves_a_random_sample(tmp_path, seed):
    """Both kinds of document in the target, as in the pool: no order of theirs survives."""
    every = make_planted(tmp_path, rows=600)
    texts = concatenate(list(every.cache.stream(0)))
    apart = texts.take(np.flatnonzero(texts.ids >= 400))
    pool = every.cache.without(lambda ids: ids >= 400)
    alike = dataclasses.replace(every, cache=pool, target=apart)
    method = BladeMethod(make_bench(alike, seed=seed, final="ensemble").context)
    method.warm_up()
    method.start_round(0)
    start = method.start_round(method._context.schedule.rounds)
    assert "does not stand out" in start.note
    left = concatenate(list(pool.stream(0)))
    plain, soft = method._ensemble.scores(left, None).score, method.score(left)
    assert abs(np.corrcoef(plain, soft.score)[0, 1]) < 0.5
    np.testing.assert_allclose(soft.score - soft.noise, plain, rtol=1e-6, atol=1e-6)
