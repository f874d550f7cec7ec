"""What an evaluation will do, resolved to numbers: arms, tokens, steps, passes, held-out sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from curate.evaluation.prepare import Inputs
from curate.evaluation.settings import CURATED, POOL, RANDOM
from curate.evaluation.store import Store
from curate.evaluation.train import ModelSettings
from curate.noise import Sample
from curate.read.cache import TokenCache
from curate.read.documents import Documents
from curate.train.model import count_parameters
from curate.train.optimizer import default_ramp

LARGEST_GENERAL_TOKENS = 200_000
GENERAL_SHARE = 0.02
"""The general sample: this share of the pool's tokens, or so many where that is less."""

_MOST_PASSES = 4
_TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that training needs, and the sizes that people want to see first.

    Attributes:
        model: the model of every arm.
        parameters: its parameters.
        seeds: one a training of each arm, ascending.
        tokens: tokens that each arm trains on.
        budgets: tokens by multiple, ascending, for the whole pool.
        cache: the tokenized pool.
        held_out: pool documents that no arm trains on: the general sample.
        sample_tokens: tokens of a random sample.
        stores: curated datasets by arm.
        test_sets: `target` and `general`.
    """

    model: ModelSettings
    parameters: int
    seeds: tuple[int, ...]
    tokens: int
    budgets: dict[float, int]
    cache: TokenCache
    held_out: Sample
    sample_tokens: int
    stores: dict[str, Store]
    test_sets: dict[str, Documents]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all arms, in the order they are trained and shown."""
        others = [name for name in self.stores if name != CURATED]
        return (CURATED, RANDOM, *others, POOL)

    def arm_budgets(self, arm: str) -> list[int]:
        """Tokens at which an arm is measured."""
        return sorted(set(self.budgets.values())) if arm == POOL else [self.tokens]

    @property
    def pool_tokens(self) -> int:
        """Tokens of the pool that may be trained on."""
        return self.cache.tokens - self.test_sets["general"].num_tokens

    def epoch_tokens(self, arm: str) -> float:
        """Tokens of one pass over an arm's data, on average."""
        if arm in self.stores:
            return self.stores[arm].epoch_tokens
        return float(self.sample_tokens if arm == RANDOM else self.pool_tokens)


def general_tokens(pool_tokens: int) -> float:
    """Tokens of the general sample of a pool."""
    return min(LARGEST_GENERAL_TOKENS, GENERAL_SHARE * pool_tokens)


def model_settings(inputs: Inputs) -> ModelSettings:
    """The model of every arm, with what was not set taken from its shape."""
    settings, shape = inputs.settings, inputs.shape
    window = settings.window or shape.window
    return ModelSettings(
        name=settings.model,
        shape=shape,
        vocabulary_size=inputs.tokenizer.vocabulary_size,
        prefix_id=inputs.tokenizer.prefix_id,
        window=window,
        overlap=max(1, window // 8),
        batch_tokens=settings.batch_tokens or shape.batch_tokens,
        learning_rate=settings.learning_rate or shape.learning_rate,
        compute=inputs.compute,
    )


def make_plan(
    inputs: Inputs,
    cache: TokenCache,
    held_out: Sample,
    general: Documents,
    stores: dict[str, Store],
) -> Plan:
    """Resolve every size.

    Args:
        inputs: checked inputs.
        cache: the tokenized pool.
        held_out: the general sample.
        general: its documents.
        stores: curated datasets by arm.
    """
    settings, model = inputs.settings, model_settings(inputs)
    parameters = count_parameters(settings.model, inputs.shape, model.vocabulary_size)
    tokens = settings.tokens or default_tokens(stores, parameters)
    smallest = min(1.0, *settings.multiples) * tokens
    ramp = default_ramp(int(smallest / model.batch_tokens))
    model = replace(model, train=replace(model.train, ramp_steps=ramp))
    return Plan(
        model=model,
        parameters=parameters,
        seeds=tuple(range(settings.first_seed, settings.first_seed + settings.seeds)),
        tokens=tokens,
        budgets={one: max(1, round(one * tokens)) for one in sorted(set(settings.multiples))},
        cache=cache,
        held_out=held_out,
        sample_tokens=max(1, round(inputs.run.config.keep * (cache.tokens - general.num_tokens))),
        stores=stores,
        test_sets={"target": inputs.test.documents, "general": general},
    )


def default_tokens(stores: dict[str, Store], parameters: int) -> int:
    """min(4 x kept tokens, 20 x parameters); the smallest dataset decides."""
    kept = min(_kept_tokens(store) for store in stores.values())
    return max(1, int(min(_MOST_PASSES * kept, _TOKENS_PER_PARAMETER * parameters)))


def _kept_tokens(store: Store) -> float:
    """Tokens of an epoch that count as labels."""
    masked = store.documents.counted is not None
    return store.documents.num_counted if masked else store.epoch_tokens


def describe_plan(inputs: Inputs, plan: Plan) -> str:
    """The resolved sizes in a few lines, for people."""
    model, sets = plan.model, plan.test_sets
    multiples = ", ".join(f"{one:g}x" for one in plan.budgets)
    arms = [f"{POOL} ({multiples})" if arm == POOL else arm for arm in plan.arms]
    steps = max(1, -(-plan.tokens // model.batch_tokens))
    passes = ", ".join(
        f"{plan.arm_budgets(arm)[-1] / plan.epoch_tokens(arm):.2g} over {arm} "
        f"({plan.epoch_tokens(arm):,.0f})"
        for arm in plan.arms
    )
    return "\n".join(
        [
            f"evaluate {inputs.run.out}: {'; '.join(arms)}; seeds "
            f"{', '.join(map(str, plan.seeds))}",
            f"model {model.name}, {plan.parameters / 1e6:.1f} M parameters, window {model.window}, "
            f"batch {model.batch_tokens:,} tokens, learning rate {model.learning_rate:g}, "
            f"{model.compute.device}",
            f"{plan.tokens:,} tokens an arm = {steps:,} steps; passes: {passes}",
            f"held out: target test {sets['target'].num_tokens:,} tokens in "
            f"{len(sets['target']):,} documents, general sample {sets['general'].num_tokens:,} "
            f"tokens in {len(sets['general']):,} pool documents",
        ]
    )
