"""The running average of the proxy's weights."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import (
    make_bench,
    make_documents,
    one_thread,  # noqa: F401
    same_weights,
    weights_of,
)

from curate.config.schema import PerplexityConfig
from curate.errors import NonFiniteLoss
from curate.pipeline.checkpoints import load_state, save_state
from curate.read.documents import concatenate
from curate.score.loss import document_losses, mean_loss
from curate.select.methods import METHODS
from curate.select.methods.blade import BladeMethod
from curate.select.methods.ensemble import make_ensemble
from curate.select.methods.pair import Pair
from curate.select.methods.proxy import Proxy


@pytest.mark.parametrize("span", [0.1, 1.0])
def test_it_is_the_recurrence_over_the_live_weights(planted, span):
    proxy = Proxy(make_bench(planted, proxy_average=span).context)
    expected = None
    for step, block in enumerate(planted.blocks(tokens=240)[:6]):
        proxy.train(block)
        live = [one.double() for one in weights_of(proxy.model)]
        share = 1 / (1 + span * step)
        old = expected or live
        expected = [a + share * (b - a) for a, b in zip(old, live, strict=True)]
    for ours, theirs in zip(weights_of(proxy.scored), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)
    assert not same_weights(weights_of(proxy.scored), weights_of(proxy.model))


def test_without_a_span_the_live_weights_are_scored(planted):
    proxy = Proxy(make_bench(planted, proxy_average=0.0).context)
    assert proxy.average is None
    assert proxy.scored is proxy.model


def test_training_is_the_same_with_and_without_it(planted):
    with_it, without = (
        Proxy(make_bench(planted, proxy_average=span).context) for span in (0.1, 0.0)
    )
    for proxy in (with_it, without):
        proxy.warm_up()
    assert same_weights(weights_of(with_it.model), weights_of(without.model))


def test_a_sync_starts_from_it_and_documents_are_compared_with_it(planted):
    bench = make_bench(planted, proxy_average=0.3)
    method = BladeMethod(bench.context)
    method.warm_up()
    average = method._proxy.scored.frozen_copy()
    batch = next(Pair(bench.context, method._proxy)._draw_target(0))
    method.start_round(0)
    first = next(one for one in bench.steps if one.model == "reference")
    assert first.loss == pytest.approx(mean_loss(average, batch), rel=1e-5)
    assert first.loss != pytest.approx(mean_loss(bench.proxy, batch), rel=1e-3)
    block, other = planted.blocks()[:2]
    method.learn(other, np.ones(len(other), dtype=bool))
    scores = method.score(block)
    np.testing.assert_array_equal(scores.proxy_loss, document_losses(average, block))


def test_it_is_restored(planted, tmp_path):
    bench = make_bench(planted, proxy_average=0.3)
    method = BladeMethod(bench.context)
    method.warm_up()
    method.start_round(0)
    save_state(method.state_dict(), tmp_path / "state")
    restored = BladeMethod(make_bench(planted, proxy_average=0.3).context)
    restored.load_state_dict(load_state(tmp_path / "state"))
    block = planted.blocks()[0]
    for one in (method, restored):
        one.learn(block, np.ones(len(block), dtype=bool))
    ours, theirs = (weights_of(one._proxy.scored) for one in (method, restored))
    assert same_weights(ours, theirs)


def poison(model):
    """Let every loss of a model be NaN."""
    with torch.no_grad():
        model.network.model.norm.weight[0] = float("nan")


def sound_proxy(planted):
    """A proxy after a step, and what it was."""
    proxy = Proxy(make_bench(planted, proxy_average=0.1).context)
    proxy.train(planted.blocks(tokens=240)[0])
    before = weights_of(proxy.model)
    proxy.check()
    assert same_weights(weights_of(proxy.model), before)
    assert proxy.optimizer.steps == 1
    return proxy


def test_what_the_last_step_broke_is_seen_at_the_end_of_a_stage(planted):
    """The loss of a step is that before it, so the last step of a stage shows in none."""
    proxy = sound_proxy(planted)
    poison(proxy.model)
    with pytest.raises(NonFiniteLoss, match=r"^Step 1 of the proxy model gave a loss of nan"):
        proxy.check()


def test_weights_that_overflow_into_a_finite_loss_are_seen_too(planted):
    proxy = sound_proxy(planted)
    with torch.no_grad():
        for one in proxy.model.network.parameters():
            one.mul_(1e30)
    assert np.isfinite(mean_loss(proxy.model, planted.target))
    with pytest.raises(NonFiniteLoss, match="gradient norm of nan"):
        proxy.check()


def test_a_broken_average_is_seen(planted):
    proxy = sound_proxy(planted)
    poison(proxy.average)
    with pytest.raises(NonFiniteLoss) as caught:
        proxy.check()
    assert caught.value.problem == "The proxy model's average has a loss of nan after 1 steps."


@pytest.mark.parametrize("name", ["blade", "color", "rho1", "perplexity"])
def test_every_method_with_a_proxy_looks_at_it(planted, name):
    bench = make_bench(planted)
    method = METHODS[name](bench.context)
    method.check()
    poison(bench.proxy)
    with pytest.raises(NonFiniteLoss):
        method.check()


def test_what_would_be_kept_for_the_whole_run_is_looked_at_when_it_is_made(planted):
    """A pair's spread, and the middle of the pool's losses, are not made of NaN."""
    bench = make_bench(planted)
    sample = planted.blocks()[0]
    sound, broken = bench.context.make_model(), bench.context.make_model()
    poison(broken)
    with pytest.raises(NonFiniteLoss) as caught:
        make_ensemble(bench.context, sample, control=sound, reference=broken, proxy=sound)
    assert caught.value.problem == (
        f"Document {sample.ids[0]} got an excess loss that is not a finite number."
    )
    ensemble = make_ensemble(bench.context, sample, control=sound, reference=sound, proxy=sound)
    less_than_nothing = np.full(len(sample), -np.inf)
    with pytest.raises(NonFiniteLoss, match=r"^Document \d+ got a loss that is not"):
        ensemble.redundancy.of(sample, less_than_nothing, np.zeros(len(sample)))
    method = METHODS["perplexity"](make_bench(planted, warmup_tokens=0).context)
    poison(method._proxy.scored)
    with pytest.raises(NonFiniteLoss, match=r"^Document \d+ got a loss that is not"):
        method.warm_up()


def test_a_step_is_a_batch_however_long_documents_are(planted):
    """A long document takes as many steps as it holds batches, in the proxy and away from it."""
    long = make_documents([2300, 40, 90], vocabulary=250)
    planted = dataclasses.replace(planted, target=long)
    bench = make_bench(planted, lambda_=0.0, reference_steps=12)
    proxy = Proxy(bench.context)
    proxy.train(long)
    assert [one.model for one in bench.steps] == ["proxy"] * 10
    assert sum(bench.tokens) == long.num_tokens
    assert max(bench.tokens) < 2 * 240
    bench.tokens.clear()
    Pair(bench.context, proxy).sync(0, 0.0, lookahead=True, choose=lambda block: block)
    assert len(bench.tokens) == 12
    assert max(bench.tokens) < 2 * 240
    assert sum(bench.tokens) < 1.2 * 12 * 240


def test_nothing_is_trained_on_where_no_token_counts(planted):
    bench = make_bench(planted)
    proxy = Proxy(bench.context)
    long = make_documents([960], vocabulary=250)
    counted = np.zeros(960, dtype=bool)
    counted[500] = True
    proxy.train(long.masked(counted))
    assert len(bench.steps) == 1


@pytest.mark.parametrize("band", ["middle", "lowest"])
def test_perplexity_keeps_its_band(planted, band):
    bench = make_bench(planted)
    config = dataclasses.replace(bench.context.config, perplexity=PerplexityConfig(band=band))
    method = METHODS["perplexity"](dataclasses.replace(bench.context, config=config))
    method.warm_up()
    every = concatenate(list(planted.cache.stream(0)))
    losses = document_losses(method._proxy.scored, every)
    order = np.argsort(losses)
    half = np.searchsorted(np.cumsum(every.lengths[order]), every.num_tokens / 2)
    far = np.abs(losses - losses[order][half]) if band == "middle" else losses
    best = np.argsort(-method.score(every).score)
    np.testing.assert_array_equal(best[:40], np.argsort(far)[:40])
