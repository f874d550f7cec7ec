"""From the pool's tokens and the model's size to warm-up, T, K, rounds and lambda per round.

What the user leaves open follows from two habits of the paper (5,000 steps, T = 1,000, K = 300):
T : K = 10 : 3, and several syncs over a pass. A small pool gives fewer steps than that, so T is
at most a third of a pass and at most 1,000 steps, and K at least 120, or two epochs of the target.
Rounds before an ensemble draw a third of a pass, so a small pool then has one.
A model from scratch is warmed up towards 20 tokens per parameter but on no more than a third of the
pool, or a twentieth by token, where the rounds run all of the pool through it; pretrained weights
need only settle in.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from curate.config.schema import BladeConfig, Config
from curate.train.model import ModelShape
from curate.train.optimizer import default_ramp

_TOKENS_PER_PARAMETER = 20
_LONGEST_SYNC_INTERVAL = 1000
_ROUNDS_PER_PASS = 3
_PRETRAINED_WARMUP_BATCHES = 100
_REFERENCE_SHARE = 0.3
_PROXY_AVERAGE = 0.1
_ENSEMBLE_ROUND_SHARE = 1 / 3
"""Before an ensemble decides, as good as rounds over all of the pool (benchmarks/LOG.md)."""
_FEWEST_REFERENCE_STEPS = 120
"""Fewer gave worse selections, and so did many more (benchmarks/LOG.md)."""
_SCORE_TOKENS = 256
"""As good as all of a document, at a fraction of the time (benchmarks/LOG.md)."""
_SCORING_TOKENS, _SCORING_BATCHES = 65536, 4
"""Tokens, and batches' worth of tokens, that a pass that only scores takes at once at least: of
four batches' worth a model reads about one, which keeps a device busy that steps keep busy."""
ROLLBACK_FACTOR = 0.5
"""What a rollback multiplies learning rates by."""
_STATIC: dict[str, dict[str, Any]] = {
    "color": {"control": "lookahead", "final": "none"},
    "rho1": {"control": "proxy", "proxy_average": 0.0, "train_on": "kept"},
}
"""Methods whose reference is trained once, for one epoch of the target as CoLoR-Filter's is, and
what else is theirs and not the user's in section `blade`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the pool is drawn: `passes` times, each in `rounds_per_pass` rounds of blocks.

    A round takes `blocks_per_round` blocks' worth of tokens; the last of a pass takes the rest.

    Attributes:
        passes: times the pool is drawn for rounds; 0 for a method that scores once.
        pass_tokens: tokens that the rounds of a pass draw; None for all of the pool.
        rounds_per_pass: rounds in a pass.
        blocks_per_round: blocks in a round.
        block_tokens: tokens of a block.
        scoring_block_tokens: tokens scored at once in a last pass that only scores; many, so that
            batches hold documents of alike length, and a device is seldom waited for.
        scoring: whether a last pass only scores, and decides the pool as a whole.
        syncs: times that a reference is made.
        expected_tokens: estimate of the tokens trained on and scored, for progress.
        description: the plan in a few lines, for people.
    """

    passes: int = 1
    pass_tokens: int | None = None
    rounds_per_pass: int = 1
    blocks_per_round: int = 1
    block_tokens: int = 65536
    scoring_block_tokens: int = _SCORING_TOKENS
    scoring: bool = False
    syncs: int = 0
    expected_tokens: int = 0
    description: tuple[str, ...] = ()

    @property
    def round_tokens(self) -> int:
        """Tokens drawn in a round, but for whole documents and the pass's end."""
        return self.blocks_per_round * self.block_tokens

    @property
    def rounds(self) -> int:
        """Rounds in all, a last scoring not counted."""
        return self.passes * self.rounds_per_pass


def resolve_config(
    config: Config,
    shape: ModelShape,
    *,
    pool_tokens: int,
    target_tokens: int,
    num_parameters: int,
) -> Config:
    """The config with every derived value of the model, training and method filled in.

    Args:
        config: as the user gave it.
        shape: what is known of the model before its weights are made.
        pool_tokens: tokens of the whole pool.
        target_tokens: tokens of the target.
        num_parameters: of the proxy.
    """
    config = _as_its_method(config)
    window = config.model.window or shape.window
    model = dataclasses.replace(
        config.model,
        window=window,
        window_overlap=config.model.window_overlap or max(1, window // 8),
        vocabulary_size=config.model.vocabulary_size or shape.vocabulary_size,
    )
    train = dataclasses.replace(
        config.train,
        batch_tokens=config.train.batch_tokens or shape.batch_tokens,
        learning_rate=config.train.learning_rate or shape.learning_rate,
    )
    config = dataclasses.replace(config, model=model, train=train)
    if config.score_tokens is None and config.granularity == "document":
        config = dataclasses.replace(config, score_tokens=_SCORE_TOKENS)
    blade = _resolve_blade(config, shape, pool_tokens, num_parameters)
    if train.ramp_steps is None:
        warmup = int(blade.warmup_tokens or 0) // int(train.batch_tokens or 1)
        steps = warmup + math.ceil(pool_tokens / _block_tokens(config))
        config = dataclasses.replace(
            config, train=dataclasses.replace(train, ramp_steps=default_ramp(steps))
        )
    if config.blade.reference_steps is None:
        epoch = max(1, math.ceil(target_tokens / int(train.batch_tokens or 1)))
        published = math.ceil(_REFERENCE_SHARE * int(blade.sync_every or 1))
        steps = max(published, min(_FEWEST_REFERENCE_STEPS, 2 * epoch))
        blade = dataclasses.replace(
            blade, reference_steps=epoch if config.method in _STATIC else steps
        )
    return dataclasses.replace(config, blade=blade)


def at_lower_rates(config: Config, rollbacks: int) -> Config:
    """A resolved config with the learning rates that hold after so many rollbacks."""
    factor = ROLLBACK_FACTOR**rollbacks
    train, blade = config.train, config.blade
    return dataclasses.replace(
        config,
        train=dataclasses.replace(train, learning_rate=_scaled(train.learning_rate, factor)),
        blade=dataclasses.replace(
            blade, reference_learning_rate=_scaled(blade.reference_learning_rate, factor)
        ),
    )


def plan_rounds(config: Config, *, pool_tokens: int, syncs: int | None = None) -> Schedule:
    """How the pool is drawn for a proxy that learns from what is kept.

    Args:
        config: resolved.
        pool_tokens: tokens of the whole pool.
        syncs: times the reference is made anew; by default once a round, and for `rescore`.
    """
    blade = config.blade
    block_tokens = _block_tokens(config)
    share = float(blade.round_share or 1)
    blocks = max(1, math.ceil(share * pool_tokens / block_tokens))
    sync_every = int(blade.sync_every or 1)
    batch = int(config.train.batch_tokens or 0)
    schedule = Schedule(
        passes=int(blade.passes or 1),
        pass_tokens=None if share == 1 else blocks * block_tokens,
        rounds_per_pass=max(1, round(blocks / sync_every)),
        blocks_per_round=sync_every,
        block_tokens=block_tokens,
        scoring=blade.final not in (None, "none"),
        scoring_block_tokens=max(_SCORING_TOKENS, _SCORING_BATCHES * batch),
    )
    syncs = schedule.rounds + (blade.final == "rescore") if syncs is None else syncs
    trained = schedule.passes * blocks * batch
    scored = round((share * schedule.passes + schedule.scoring) * pool_tokens)
    if config.granularity == "token":  # a token's budget is its block's
        schedule = dataclasses.replace(schedule, scoring_block_tokens=block_tokens)
    passes = "pass" if schedule.passes == 1 else "passes"
    over = "" if share == 1 else f" over {share:.2g} of the pool"
    rounds = "round" if schedule.rounds_per_pass == 1 else "rounds"
    line = (
        f"warm-up {blade.warmup_tokens:,} tokens; {schedule.passes} {passes}{over} x "
        f"{schedule.rounds_per_pass} {rounds}; T = {blade.sync_every} proxy steps, "
        f"K = {blade.reference_steps} reference steps; lambda {blade.lambda_:g} "
        f"({blade.lambda_schedule}), control {blade.control}, proxy trains on {blade.train_on}"
        + (f"; {blade.final} decides" if schedule.scoring else "")
    )
    return dataclasses.replace(
        schedule,
        syncs=syncs,
        expected_tokens=int(blade.warmup_tokens or 0)
        + trained
        + scored
        + syncs * sync_tokens(config),
        description=(line,),
    )


def plan_scoring(*, expected_tokens: int, description: str = "", syncs: int = 0) -> Schedule:
    """How the pool is drawn by a method that scores every document once, with nothing to learn."""
    return Schedule(
        passes=0,
        scoring=True,
        syncs=syncs,
        expected_tokens=expected_tokens,
        description=(description,) if description else (),
    )


def describe_run(
    config: Config, schedule: Schedule, pool_tokens: int, num_parameters: int | None
) -> str:
    """The resolved plan in a few lines, for people; parameters None for methods without a model."""
    lines = [
        f"pool {pool_tokens:,} tokens, keep {config.keep:g} = {config.keep * pool_tokens:,.0f}, "
        f"method {config.method}, granularity {config.granularity}, seed {config.seed}"
    ]
    if num_parameters is not None:
        lines.append(
            f"model {config.model.name}, {num_parameters / 1e6:.1f} M parameters, window "
            f"{config.model.window}, batch {config.train.batch_tokens:,} tokens, learning rate "
            f"{config.train.learning_rate:g}"
        )
    return "\n".join([*lines, *schedule.description])


def lambda_at(config: BladeConfig, round_index: int, rounds: int) -> float:
    """Lambda of the sync that begins round `round_index` of `rounds`."""
    if config.lambda_schedule == "constant" or config.lambda_end is None:
        return config.lambda_
    done = min(1.0, round_index / max(1, rounds - 1))
    if config.lambda_schedule == "linear":
        return config.lambda_ + (config.lambda_end - config.lambda_) * done
    return float(config.lambda_ * (config.lambda_end / config.lambda_) ** done)


def visit_coefficients(average: str, visits: int) -> list[float]:
    """Weight of each visit's decision in the Frank-Wolfe average; they sum to 1.

    a <- (1 - gamma_e) a + gamma_e a(e) with gamma_e = 1 (last), 1 / (e + 1) (uniform) or
    2 / (e + 2) (linear), e = 0 for a document's first visit (Jaggi, ICML 2013, Algorithm 1).
    """
    gammas = [
        {"last": 1.0, "uniform": 1 / (e + 1), "linear": 2 / (e + 2)}[average] for e in range(visits)
    ]
    coefficients: list[float] = []
    for gamma in gammas:
        coefficients = [(1 - gamma) * one for one in coefficients] + [gamma]
    return coefficients


def _as_its_method(config: Config) -> Config:
    """The config with what a method of a static reference does not leave to the user."""
    if config.method not in _STATIC:
        return config
    fixed = {"lambda_": 0.0, "lambda_schedule": "constant", "lambda_end": None}
    blade = dataclasses.replace(config.blade, **{**fixed, **_STATIC[config.method]})
    return dataclasses.replace(config, blade=blade)


def _scaled(rate: float | None, factor: float) -> float | None:
    return None if rate is None else rate * factor


def sync_tokens(config: Config) -> int:
    """Tokens trained on and scored to make one reference and its control."""
    blade = config.blade
    steps = int(blade.reference_steps or 0) * int(config.train.batch_tokens or 0)
    if max(blade.lambda_, blade.lambda_end or 0.0) == 0:
        return steps
    copies = 2 if blade.control == "lookahead" else 1
    return steps + copies * steps + round(steps / config.keep)


def _block_tokens(config: Config) -> int:
    """Candidates drawn for one proxy step, so that its batch has `batch_tokens` tokens."""
    batch = int(config.train.batch_tokens or 1)
    if config.granularity == "token":  # the forward pass that scores is the one that is trained on
        return batch
    share = config.blade.mixture_kept_share if config.blade.train_on == "mixture" else 1.0
    return max(batch, round(batch * share / config.keep))


def _resolve_blade(
    config: Config, shape: ModelShape, pool_tokens: int, num_parameters: int
) -> BladeConfig:
    blade = config.blade
    batch = int(config.train.batch_tokens or 1)
    by_token = config.granularity == "token"
    if shape.llama is None:
        warmup = min(pool_tokens // 20, _PRETRAINED_WARMUP_BATCHES * batch)
    else:
        goes_on = by_token and config.method != "color"  # whose proxy learns in the warm-up alone
        part = pool_tokens // (20 if goes_on else 3)
        warmup = min(part, _TOKENS_PER_PARAMETER * num_parameters)
    blocks = max(1, math.ceil(pool_tokens / _block_tokens(config)))
    sync_every = blade.sync_every or min(
        _LONGEST_SYNC_INTERVAL, math.ceil(blocks / _ROUNDS_PER_PASS)
    )
    control = blade.control or ("proxy" if by_token else "lookahead")
    span = _PROXY_AVERAGE if control == "lookahead" else 0.0
    final = config.final_pass
    share = blade.round_share or (_ENSEMBLE_ROUND_SHARE if final == "ensemble" else 1.0)
    return dataclasses.replace(
        blade,
        warmup_tokens=warmup if blade.warmup_tokens is None else blade.warmup_tokens,
        sync_every=sync_every,
        reference_learning_rate=blade.reference_learning_rate or config.train.learning_rate,
        control=control,
        passes=blade.passes or 1,
        round_share=share if final != "none" else 1.0,
        proxy_average=span if blade.proxy_average is None else blade.proxy_average,
        final=final,
        average=blade.average or ("last" if final == "ensemble" else "uniform"),
    )
