import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SHAPE

from curate.config.schema import BladeConfig, Config, ModelConfig, TrainConfig
from curate.errors import InvalidInput
from curate.select.methods import METHODS
from curate.select.schedule import (
    at_lower_rates,
    describe_run,
    lambda_at,
    plan_rounds,
    resolve_config,
    visit_coefficients,
)
from curate.train.model import PRESETS

SMALL = dataclasses.replace(SHAPE, vocabulary_size=300)
TARGET_TOKENS = 10_000
PRETRAINED = dataclasses.replace(SHAPE, llama=None, vocabulary_size=None)


def resolve(
    pool_tokens,
    shape=PRESETS["tiny"],
    parameters=2_600_000,
    keep=0.2,
    target_tokens=TARGET_TOKENS,
    **sections,
):
    config = Config(pool="p", target="t", out="o", keep=keep, **sections)
    return resolve_config(
        config,
        shape,
        pool_tokens=pool_tokens,
        target_tokens=target_tokens,
        num_parameters=parameters,
    )


@pytest.mark.parametrize(
    ("average", "gamma"),
    [
        ("last", lambda visit: 1.0),
        ("uniform", lambda visit: 1 / (visit + 1)),
        ("linear", lambda visit: 2 / (visit + 2)),
    ],
)
@given(decisions=st.lists(st.integers(0, 1), min_size=1, max_size=12))
def test_coefficients_are_those_of_the_frank_wolfe_recursion(average, gamma, decisions):
    coefficients = visit_coefficients(average, len(decisions))
    assert sum(coefficients) == pytest.approx(1)
    assert min(coefficients) >= 0
    a = 0.0
    for visit, decision in enumerate(decisions):
        a = (1 - gamma(visit)) * a + gamma(visit) * decision
    weighted = sum(c * d for c, d in zip(coefficients, decisions, strict=True))
    assert weighted == pytest.approx(a)


def test_coefficients_in_numbers():
    assert visit_coefficients("last", 3) == [0, 0, 1]
    assert visit_coefficients("uniform", 4) == pytest.approx([1 / 4] * 4)
    assert visit_coefficients("linear", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_lambda_goes_from_one_end_to_the_other():
    linear = BladeConfig(lambda_=0.0, lambda_end=2.0, lambda_schedule="linear")
    assert [lambda_at(linear, index, 5) for index in range(5)] == [0, 0.5, 1, 1.5, 2]
    down = BladeConfig(lambda_=2.0, lambda_end=0.0, lambda_schedule="linear")
    assert [lambda_at(down, index, 3) for index in range(3)] == [2, 1, 0]
    geometric = BladeConfig(lambda_=0.01, lambda_end=10.0, lambda_schedule="geometric")
    found = [lambda_at(geometric, index, 4) for index in range(4)]
    assert found == pytest.approx([0.01, 0.1, 1, 10])
    constant = BladeConfig(lambda_=0.3, lambda_end=9.0)
    assert {lambda_at(constant, index, 4) for index in range(5)} == {0.3}


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_one_round_begins_at_the_start_and_a_rescore_stays_at_the_end(schedule):
    config = BladeConfig(lambda_=1.0, lambda_end=4.0, lambda_schedule=schedule)
    assert lambda_at(config, 0, 1) == 1
    assert lambda_at(config, 3, 3) == lambda_at(config, 2, 3) == 4


@pytest.mark.parametrize("sync_every", [*range(10, 1001, 10)])
def test_reference_steps_are_three_for_ten_proxy_steps(sync_every):
    """But two epochs of a small target, and 60 of any, are the least."""
    blade = BladeConfig(sync_every=sync_every)
    config = resolve(10**9, blade=blade)
    epoch = math.ceil(TARGET_TOKENS / config.train.batch_tokens)
    assert config.blade.reference_steps == max(3 * sync_every // 10, 2 * epoch)
    large = resolve(10**9, blade=blade, target_tokens=10**8)
    assert large.blade.reference_steps == max(3 * sync_every // 10, 120)


def test_a_large_pool_gets_the_papers_schedule():
    config = resolve(10**10)
    assert (config.blade.sync_every, config.blade.reference_steps) == (1000, 300)
    assert config.blade.passes == 1
    assert config.blade.reference_learning_rate == config.train.learning_rate
    assert config.blade.warmup_tokens == 20 * 2_600_000


def test_a_small_pool_gets_three_rounds_a_pass():
    config = resolve(3_000_000, blade=BladeConfig(round_share=1.0))
    schedule = plan_rounds(config, pool_tokens=3_000_000)
    assert schedule.rounds_per_pass == 3
    assert config.blade.warmup_tokens == 1_000_000
    blocks = math.ceil(3_000_000 / schedule.block_tokens)
    assert schedule.blocks_per_round * 3 >= blocks > schedule.blocks_per_round * 2


def test_pretrained_weights_are_warmed_up_little():
    assert resolve(10**5, PRETRAINED).blade.warmup_tokens == 5_000
    assert resolve(10**9, PRETRAINED).blade.warmup_tokens == 100 * SHAPE.batch_tokens
    assert resolve(10**6, PRETRAINED).model.vocabulary_size is None


@pytest.mark.parametrize(("control", "span"), [("lookahead", 0.1), ("proxy", 0.0)])
def test_the_proxy_is_averaged_unless_it_is_compared_as_it_is(control, span):
    assert resolve(10**6, blade=BladeConfig(control=control)).blade.proxy_average == span


@pytest.mark.parametrize(
    ("granularity", "control", "part"), [("document", "lookahead", 3), ("token", "proxy", 20)]
)
def test_by_token_the_warm_up_is_short_and_the_proxy_is_the_control(granularity, control, part):
    blade = resolve(10**6, granularity=granularity).blade
    assert (blade.control, blade.warmup_tokens) == (control, 10**6 // part)
    assert resolve(10**5, PRETRAINED, granularity=granularity).blade.warmup_tokens == 5_000
    color = resolve(10**6, granularity=granularity, method="color").blade
    assert color.warmup_tokens == 10**6 // 3, "its proxy learns from nothing else"
    asked = BladeConfig(control="lookahead", warmup_tokens=7)
    blade = resolve(10**6, granularity=granularity, blade=asked).blade
    assert (blade.control, blade.warmup_tokens, blade.proxy_average) == ("lookahead", 7, 0.1)


def test_the_learning_rate_ramps_up_over_a_tenth_of_the_steps():
    config = resolve(300_000, keep=0.5)
    steps = 100_000 // 2048 + math.ceil(300_000 / 2048)
    assert config.train.ramp_steps == steps // 10
    assert resolve(10**9).train.ramp_steps == 100
    assert resolve(10**9, train=TrainConfig(ramp_steps=0)).train.ramp_steps == 0


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ("ensemble", "last")),
        ({"granularity": "token"}, ("none", "uniform")),
        ({"method": "rho1"}, ("none", "uniform")),
        ({"blade": BladeConfig(final="rescore")}, ("rescore", "uniform")),
        ({"blade": BladeConfig(average="linear")}, ("ensemble", "linear")),
    ],
)
def test_an_ensemble_decides_alone_by_default(sections, expected):
    config = resolve(10**6, **sections)
    assert (config.blade.final, config.blade.average) == expected


def test_documents_are_sampled_and_tokens_are_not():
    assert resolve(10**6).score_tokens == 256
    assert resolve(10**6, score_tokens=10**9).score_tokens == 10**9
    assert resolve(10**6, granularity="token").score_tokens is None


def test_what_the_user_set_is_kept():
    blade = BladeConfig(
        control="proxy",
        warmup_tokens=0,
        sync_every=7,
        reference_steps=11,
        reference_learning_rate=0.5,
        passes=2,
        round_share=0.5,
        proxy_average=0.25,
        average="linear",
        final="rescore",
    )
    model = ModelConfig(window=100, window_overlap=9, vocabulary_size=300)
    train = TrainConfig(batch_tokens=50, learning_rate=0.25, ramp_steps=7)
    config = resolve(10**6, blade=blade, model=model, train=train)
    assert (config.blade, config.model, config.train) == (blade, model, train)
    again = resolve_config(config, SMALL, pool_tokens=5, target_tokens=1, num_parameters=1)
    assert again == config


def test_a_block_holds_what_one_step_trains_on():
    for train_on, share, keep, expected in (
        ("kept", 0.5, 0.2, 320),
        ("mixture", 0.5, 0.2, 160),
        ("mixture", 0.25, 0.2, 80),
        ("mixture", 0.1, 0.5, 64),
        ("kept", 0.5, 1.0, 64),
    ):
        blade = BladeConfig(train_on=train_on, mixture_kept_share=share)
        config = resolve(10**6, SMALL, keep=keep, blade=blade)
        assert plan_rounds(config, pool_tokens=10**6).block_tokens == expected


def test_rounds_before_an_ensemble_draw_a_third_of_a_pass():
    config = resolve(3_000_000)
    assert config.blade.round_share == pytest.approx(1 / 3)
    schedule = plan_rounds(config, pool_tokens=3_000_000)
    assert schedule.rounds == 1
    assert schedule.pass_tokens == pytest.approx(1_000_000, rel=0.02)
    assert "1 pass over 0.33 of the pool x 1 round; T = " in schedule.description[0]
    large = plan_rounds(resolve(10**9), pool_tokens=10**9)
    assert large.pass_tokens == pytest.approx(10**9 / 3, rel=0.01)
    every = plan_rounds(resolve(10**9, blade=BladeConfig(final="rescore")), pool_tokens=10**9)
    assert every.pass_tokens is None
    assert "; 1 pass x " in every.description[0]


@given(
    pool_tokens=st.integers(1, 50_000),
    keep=st.floats(0.001, 1),
    passes=st.integers(1, 3),
    sync_every=st.one_of(st.none(), st.integers(1, 50)),
    share=st.one_of(st.none(), st.floats(0.01, 1)),
)
def test_every_plan_is_valid_and_its_rounds_cover_their_share_of_a_pass(
    pool_tokens, keep, passes, sync_every, share
):
    blade = BladeConfig(passes=passes, sync_every=sync_every, round_share=share)
    config = resolve(pool_tokens, SMALL, keep=keep, blade=blade)
    schedule = plan_rounds(config, pool_tokens=pool_tokens)
    assert schedule.rounds == passes * schedule.rounds_per_pass >= passes
    assert min(schedule.blocks_per_round, schedule.block_tokens) >= 1
    assert config.blade.reference_steps >= 1
    assert 0 <= config.blade.warmup_tokens <= pool_tokens
    share = config.blade.round_share
    blocks = math.ceil(share * pool_tokens / schedule.block_tokens)
    assert (schedule.rounds_per_pass - 1) * schedule.blocks_per_round < blocks
    if share < 1:
        assert 0 <= schedule.pass_tokens - share * pool_tokens < schedule.block_tokens
    else:
        assert schedule.pass_tokens is None
    if sync_every is None:
        assert schedule.rounds_per_pass in (1, 2, 3)
    assert schedule.expected_tokens >= int((passes * share + 1) * pool_tokens)
    assert f"keep {keep:g}" in describe_run(config, schedule, pool_tokens, 1)


def test_a_pool_of_one_document():
    config = resolve(1)
    schedule = plan_rounds(config, pool_tokens=1)
    assert (schedule.rounds, schedule.blocks_per_round) == (1, 1)
    assert config.blade.warmup_tokens == 0


def test_methods_that_score_once_have_no_rounds():
    for name in ("random", "color", "perplexity"):
        config = resolve(10**6, method=name, blade=BladeConfig(passes=5, final="rescore"))
        schedule = METHODS[name].plan(config, 10**6)
        assert (schedule.rounds, schedule.scoring) == (0, True)
        warmup = config.blade.warmup_tokens if METHODS[name].has_proxy else 0
        assert schedule.expected_tokens >= 10**6 + warmup
    assert METHODS["random"].plan(config, 10**6).expected_tokens == 10**6


def test_a_static_reference_is_trained_for_one_epoch_of_the_target():
    for name in ("color", "rho1"):
        config = resolve(10**6, SMALL, method=name)
        assert config.blade.reference_steps == math.ceil(TARGET_TOKENS / SMALL.batch_tokens)
        set_by_user = resolve(10**6, SMALL, method=name, blade=BladeConfig(reference_steps=3))
        assert set_by_user.blade.reference_steps == 3


def test_rho1_makes_its_reference_once():
    published = BladeConfig(control="proxy", train_on="kept")
    config = resolve(3_000_000, method="rho1", blade=published)
    often, once = METHODS["blade"].plan(config, 3_000_000), METHODS["rho1"].plan(config, 3_000_000)
    assert once.rounds == often.rounds
    steps = config.blade.reference_steps * config.train.batch_tokens
    assert once.expected_tokens == often.expected_tokens - (often.rounds - 1) * steps


@pytest.mark.parametrize(
    ("preset", "expected"), [("tiny", 65536), ("small", 65536), ("base", 262144)]
)
def test_a_pass_that_only_scores_takes_as_much_at_once_as_keeps_a_device_busy(preset, expected):
    config = resolve(10**8, PRESETS[preset])
    assert plan_rounds(config, pool_tokens=10**8).scoring_block_tokens == expected


def test_at_token_granularity_a_block_is_one_training_batch():
    config = resolve(10**6, SMALL, keep=0.2, granularity="token")
    schedule = plan_rounds(config, pool_tokens=10**6)
    assert schedule.block_tokens == schedule.scoring_block_tokens == SMALL.batch_tokens


@pytest.mark.parametrize("rollbacks", [0, 1, 3])
def test_a_rollback_halves_the_rates_of_proxy_and_reference_and_changes_nothing_else(rollbacks):
    train, blade = TrainConfig(learning_rate=0.5), BladeConfig(reference_learning_rate=0.25)
    config = resolve(10**6, train=train, blade=blade)
    lower = at_lower_rates(config, rollbacks)
    assert lower.train.learning_rate == 0.5 / 2**rollbacks
    assert lower.blade.reference_learning_rate == 0.25 / 2**rollbacks
    back = dataclasses.replace(
        lower,
        train=dataclasses.replace(lower.train, learning_rate=0.5),
        blade=dataclasses.replace(lower.blade, reference_learning_rate=0.25),
    )
    assert back == config


def test_a_reference_without_a_rate_of_its_own_keeps_to_the_proxys():
    lower = at_lower_rates(Config(pool="p", target="t", out="o"), 2)
    assert lower.train.learning_rate is lower.blade.reference_learning_rate is None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_recipe_of_blade_serves_every_method(name):
    """What only an ensemble needs is left out, and the config says so."""
    blade = BladeConfig(final="ensemble", round_share=1 / 3)
    if name == "rho1":
        blade = BladeConfig(final="ensemble")
    config = resolve(3_000_000, method=name, blade=blade)
    METHODS[name].plan(config, 3_000_000)
    ours = ("ensemble", pytest.approx(1 / 3)) if name == "blade" else ("none", 1.0)
    assert (config.blade.final, config.blade.round_share) == ours
    METHODS[name].plan(resolve(10**6, method=name, blade=BladeConfig()), 10**6)


@pytest.mark.parametrize("granularity", ["document", "token"])
def test_the_config_says_what_a_static_method_runs_under(granularity):
    """Also where the user asked for something else; rounds follow from it."""
    blade = BladeConfig(
        lambda_=1.0, lambda_schedule="linear", lambda_end=2.0, train_on="mixture", final="none"
    )
    sizes = {"pool_tokens": 2_000_000, "keep": 0.1, "granularity": granularity, "blade": blade}
    rho1 = resolve(method="rho1", **sizes).blade
    assert (rho1.control, rho1.proxy_average, rho1.train_on) == ("proxy", 0.0, "kept")
    blocks = 2_000_000 / 2048 * (0.1 if granularity == "document" else 1)
    assert rho1.sync_every == math.ceil(math.ceil(blocks) / 3)
    color = resolve(method="color", **sizes).blade
    assert (color.control, color.proxy_average, color.final) == ("lookahead", 0.1, "none")
    for one in (rho1, color):
        assert (one.lambda_, one.lambda_schedule, one.lambda_end) == (0.0, "constant", None)


@pytest.mark.parametrize("name", ["color", "rho1", "random"])
def test_a_recipe_of_blade_by_document_serves_other_methods_by_token(name):
    one_visit = BladeConfig(passes=1 if name == "rho1" else 2, final="ensemble", average="linear")
    config = resolve(10**6, method=name, granularity="token", blade=one_visit)
    assert config.blade.final == "none"
    METHODS[name].plan(config, 10**6)


@pytest.mark.parametrize("final", [None, "none", "ensemble"])
def test_rounds_that_decide_draw_all_of_the_pool(final):
    with pytest.raises(InvalidInput) as caught:
        resolve(10**6, method="rho1", blade=BladeConfig(round_share=0.5, final=final))
    assert caught.value.remedy == "Set blade.final to rescore, or leave blade.round_share out."
