import pytest
import torch
from tiny_models import (
    make_documents,
    make_model,
    one_thread,  # noqa: F401
    same_weights,
    weights_of,
)

from curate.config.schema import TrainConfig
from curate.score.loss import mean_loss
from curate.train.optimizer import Optimizer, Term, ramp_then_constant
from curate.train.reference import lookahead_terms, reference_terms, step_away

TARGET = [make_documents([9, 4], seed=seed) for seed in range(12)]
POOL = [make_documents([6, 11], seed=100 + seed) for seed in range(12)]


def away(proxy, steps, records=None, rate=1e-2, decay=False, tokens=None):
    return step_away(
        proxy,
        "reference",
        steps,
        learning_rate=rate,
        decay=decay,
        config=TrainConfig(),
        first_step=30,
        on_step=(records if records is not None else []).append,
        on_tokens=(tokens if tokens is not None else []).append,
    )


def test_the_proxy_is_left_alone_and_the_copy_moves_towards_the_target():
    proxy = make_model()
    before = weights_of(proxy)
    steps = reference_terms([TARGET[0]] * 10, [], 0.0)
    moved = away(proxy, steps)
    assert same_weights(weights_of(proxy), before)
    assert all(parameter.grad is None for parameter in proxy.network.parameters())
    assert all(parameter.requires_grad for parameter in proxy.network.parameters())
    assert not any(parameter.requires_grad for parameter in moved.network.parameters())
    assert mean_loss(moved, TARGET[0]) < mean_loss(proxy, TARGET[0]) - 0.1


def test_every_call_starts_from_the_proxy_with_fresh_moments():
    proxy = make_model()
    steps = reference_terms(TARGET[:3], POOL[:3], 0.5)
    first = weights_of(away(proxy, steps))
    away(proxy, lookahead_terms(POOL[5:8], 2.0))
    assert same_weights(weights_of(away(proxy, steps)), first)


def test_no_steps_give_a_frozen_copy():
    proxy = make_model()
    moved = away(proxy, lookahead_terms([], 1.0))
    assert moved.network is not proxy.network
    assert same_weights(weights_of(moved), weights_of(proxy))
    assert not any(parameter.requires_grad for parameter in moved.network.parameters())


def test_steps_are_numbered_on_and_ramp_up_over_a_tenth():
    records, tokens = [], []
    away(make_model(), reference_terms(TARGET * 2, [], 0.0)[:20], records, 1e-2, tokens=tokens)
    assert tokens == [13] * 20
    assert [record.step for record in records] == list(range(30, 50))
    assert {record.model for record in records} == {"reference"}
    assert [record.learning_rate for record in records[:3]] == pytest.approx([5e-3, 1e-2, 1e-2])
    records = []
    away(make_model(), reference_terms(TARGET[:5], [], 0.0), records, rate=1e-2)
    assert [record.learning_rate for record in records] == [1e-2] * 5


def test_the_rate_decays_towards_zero_when_asked():
    records = []
    steps = reference_terms(TARGET * 2, [], 0.0)[:20]
    away(make_model(), steps, records, rate=1e-2, decay=True)
    rates = [record.learning_rate for record in records]
    assert rates[0] == pytest.approx(0.5e-2)
    assert rates[1:] == pytest.approx([1e-2 * (1 - step / 20) for step in range(1, 20)])


def test_reference_loss_is_target_plus_lambda_pool_and_lookahead_lambda_pool():
    proxy, records = make_model(), []
    target, pool = mean_loss(proxy, TARGET[0]), mean_loss(proxy, POOL[0])
    assert abs(target - pool) > 0.01
    away(proxy, reference_terms(TARGET[:1], POOL[:1], 0.25), records)
    away(proxy, lookahead_terms(POOL[:1], 0.25), records)
    away(proxy, reference_terms(TARGET[:1], [], 0.25), records)
    expected = [target + 0.25 * pool, 0.25 * pool, target]
    assert [record.loss for record in records] == pytest.approx(expected, rel=1e-5)


def test_both_sides_take_the_same_pool_batches_in_step():
    """A reference whose target says nothing is the lookahead copy, bit for bit."""
    proxy = make_model()
    nothing = [make_documents([])] * 4
    reference = away(proxy, reference_terms(nothing, POOL[:4], 0.7))
    lookahead = away(proxy, lookahead_terms(POOL[:4], 0.7))
    assert same_weights(weights_of(reference), weights_of(lookahead))
    assert not same_weights(weights_of(reference), weights_of(proxy))


def test_target_and_pool_batches_must_pair_up():
    with pytest.raises(ValueError, match="shorter"):
        reference_terms(TARGET[:3], POOL[:2], 1.0)


def test_steps_are_those_of_a_fresh_optimizer():
    proxy = make_model()
    twin = proxy.trainable_copy()
    optimizer = Optimizer(twin, "x", TrainConfig(), ramp_then_constant(1e-2, 1))
    for target, pool in zip(TARGET[:3], POOL[:3], strict=True):
        optimizer.step([Term(target), Term(pool, 0.5)])
    moved = away(proxy, reference_terms(TARGET[:3], POOL[:3], 0.5))
    for ours, theirs in zip(weights_of(moved), weights_of(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
