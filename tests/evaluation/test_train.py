"""One arm's training: the schedule, budgets that share a trunk, masks, repeatability."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import (
    PREFIX,
    SHAPE,
    VOCABULARY,
    cpu,
    make_documents,
    one_thread,  # noqa: F401
    plain_token_losses,
    same_weights,
    tokens_of,
    weights_of,
)

from curate.config.schema import TrainConfig
from curate.errors import NonFiniteLoss
from curate.evaluation.train import (
    Measure,
    ModelSettings,
    measure_documents,
    train_and_measure,
    trained_tokens,
)
from curate.read.documents import Documents
from curate.train.model import LanguageModel
from curate.train.optimizer import Optimizer, Term

SETTINGS = ModelSettings(
    name="tiny",
    shape=SHAPE,
    vocabulary_size=VOCABULARY,
    prefix_id=PREFIX,
    window=8,
    overlap=3,
    batch_tokens=40,
    learning_rate=1e-2,
    compute=cpu(),
    train=TrainConfig(ramp_steps=3),
)
TESTS = {"target": make_documents([9, 4, 17], 91), "general": make_documents([5, 30], 92)}


def endless(seed: int = 0) -> Iterator[Documents]:
    for chunk in itertools.count():
        yield make_documents([8, 3, 8, 8, 5, 1], seed * 1000 + chunk)


def numbers(measures: list[Measure]) -> list[Measure]:
    """Measures without times."""
    return [replace(one, seconds=0.0) for one in measures]


def test_budgets_are_met_within_one_batch() -> None:
    for budget in (1, 39, 40, 41, 400, 777):
        (found,) = train_and_measure(SETTINGS, endless(), [budget], 0, TESTS)
        assert budget <= found.tokens < budget + SETTINGS.batch_tokens + 8
        assert found.budget == budget
        assert abs(found.steps - budget / SETTINGS.batch_tokens) <= 1


def test_a_seed_gives_the_same_numbers_twice() -> None:
    runs = [train_and_measure(SETTINGS, endless(), [400], 3, TESTS) for _ in range(2)]
    other = train_and_measure(SETTINGS, endless(), [400], 4, TESTS)
    assert numbers(runs[0]) == numbers(runs[1])
    assert numbers(runs[0]) != numbers(other)


def test_budgets_that_share_a_trunk_are_as_if_alone() -> None:
    budgets = [200, 220, 400, 1000]
    together = train_and_measure(SETTINGS, endless(), budgets, 0, TESTS)
    alone = [train_and_measure(SETTINGS, endless(), [one], 0, TESTS)[0] for one in budgets]
    assert numbers(together) == numbers(alone)


def test_measures_come_in_order_whatever_the_budgets_order() -> None:
    mixed = train_and_measure(SETTINGS, endless(), [400, 200, 400], 0, TESTS)
    assert [one.budget for one in mixed] == [200, 400]


def test_training_helps() -> None:
    def repeated() -> Iterator[Documents]:
        while True:
            yield TESTS["target"]

    few, many = train_and_measure(SETTINGS, repeated(), [80, 2000], 0, TESTS)
    assert many.loss["target"] < few.loss["target"] < math.log(VOCABULARY) + 0.2


def test_progress_counts_every_copy_of_the_model() -> None:
    told: list[int] = []
    budgets = [400, 800]
    train_and_measure(SETTINGS, endless(), budgets, 0, TESTS, on_tokens=told.append)
    assert sum(told) == pytest.approx(trained_tokens(budgets), abs=2 * SETTINGS.batch_tokens)
    assert trained_tokens([100, 200, 400]) == 460


def test_an_exactly_long_enough_stream_will_do() -> None:
    block = make_documents([8] * 5)
    (found,) = train_and_measure(SETTINGS, iter([block] * 3), [120], 0, TESTS)
    assert (found.tokens, found.steps) == (120, 3)


def test_a_stream_that_ends_early_is_an_error() -> None:
    with pytest.raises(ValueError, match="ended before the budget was spent"):
        train_and_measure(SETTINGS, iter([make_documents([8] * 5)]), [120], 0, TESTS)


@pytest.mark.parametrize("budgets", [[], [0, 100]])
def test_budgets_must_be_positive(budgets: list[int]) -> None:
    with pytest.raises(ValueError, match="budgets must be positive"):
        train_and_measure(SETTINGS, endless(), budgets, 0, TESTS)


def test_the_rate_ramps_stays_and_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = Optimizer.step

    def spy(self: Optimizer, terms: list[Term], first_step: int = 0) -> object:
        record = step(self, terms, first_step)
        rates.append(record.learning_rate)
        return record

    monkeypatch.setattr(Optimizer, "step", spy)
    blocks = iter([make_documents([8] * 5)] * 20)
    train_and_measure(SETTINGS, blocks, [800], 0, TESTS)
    peak = SETTINGS.learning_rate
    ramp = [peak / 3, peak * 2 / 3]
    fall = [peak * share for share in (1.0, 0.75, 0.5, 0.25)]
    assert rates == pytest.approx([*ramp, *[peak] * 14, *fall])


def test_bits_per_byte_by_hand() -> None:
    model = SETTINGS.build(0)
    documents = make_documents([9, 4], 5)
    nats = sum(
        float(loss.detach())
        for one in tokens_of(documents)
        for loss in plain_token_losses(model.network, one)
    )
    loss, bits = measure_documents(model, documents)
    assert loss == pytest.approx(nats / 13, rel=1e-5)
    assert bits == pytest.approx(nats / math.log(2) / (13 * 4), rel=1e-5)


def trained_on(documents: Documents, steps: int = 2) -> tuple[LanguageModel, Measure]:
    """The model after a few steps on the same documents, caught as it is measured."""
    models: list[LanguageModel] = []
    settings = replace(SETTINGS, batch_tokens=documents.num_tokens)
    build = ModelSettings.build

    def keep(self: ModelSettings, seed: int) -> LanguageModel:
        models.append(build(self, seed))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelSettings, "build", keep)
        budget = steps * documents.num_tokens
        (found,) = train_and_measure(settings, itertools.repeat(documents), [budget], 0, TESTS)
    return models[0], found


def plainly_masked(documents: Documents, counted: np.ndarray, steps: int = 2) -> list[torch.Tensor]:
    """Weights after AdamW steps on the mean loss of the counted tokens, by the definition."""
    model = SETTINGS.build(0)
    parameters = list(model.network.parameters())
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for step in range(steps):
        left = (steps - step) / (0.2 * steps)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 3) * min(1.0, left)
        losses = [
            loss for one in tokens_of(documents) for loss in plain_token_losses(model.network, one)
        ]
        chosen = [loss for loss, counts in zip(losses, counted, strict=True) if counts]
        adamw.zero_grad()
        torch.stack(chosen).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
    return weights_of(model)


def test_a_token_that_is_not_counted_gives_no_gradient() -> None:
    documents = make_documents([8, 6, 8, 3], 7)
    counted = np.random.default_rng(1).random(documents.num_tokens) < 0.5
    model, _ = trained_on(documents.masked(counted))
    for ours, theirs in zip(weights_of(model), plainly_masked(documents, counted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_an_uncounted_token_is_matters_as_context_only() -> None:
    """The last token of a document is nobody's context: another one there changes nothing."""
    documents = make_documents([8, 8], 7)
    counted = np.ones(16, dtype=bool)
    counted[[7, 15]] = False
    changed = documents.input_ids.copy()
    changed[[7, 15]] = (changed[[7, 15]] + 1) % VOCABULARY
    other = replace(documents, input_ids=changed)
    ours, _ = trained_on(documents.masked(counted))
    theirs, _ = trained_on(other.masked(counted))
    unmasked, _ = trained_on(other)
    assert same_weights(weights_of(ours), weights_of(theirs))
    assert not same_weights(weights_of(ours), weights_of(unmasked))


@pytest.mark.parametrize("rate", [1e6, 1e12, 1e30])
def test_what_the_last_step_broke_is_not_measured(rate: float) -> None:
    """A loss can come out finite of weights that no gradient can be taken of."""
    wild = replace(SETTINGS, learning_rate=rate)
    with pytest.raises(NonFiniteLoss) as raised:
        train_and_measure(wild, endless(), [1], 0, TESTS)
    assert raised.value.remedy == "Lower --learning-rate."


def test_a_diverging_training_says_what_to_do() -> None:
    wild = replace(SETTINGS, learning_rate=math.inf)
    with pytest.raises(NonFiniteLoss) as raised:
        train_and_measure(wild, endless(), [4000], 0, TESTS)
    assert raised.value.remedy == "Lower --learning-rate."
