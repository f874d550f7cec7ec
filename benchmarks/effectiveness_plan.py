"""What the effectiveness benchmark runs: its variants, its sizes, and the order of its cells."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CUT_CHARACTERS = 600
"""Documents of the smaller stages are cut to this, so that two cores can afford them."""
TEST_CHARACTERS = 200_000
GENERAL_CHARACTERS = 200_000
MULTIPLES = (1, 2, 4)
"""Budgets of the unrepeated random text, for the token multiplier."""

METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "dsir": {"method": "dsir"},
    "classifier": {"method": "classifier"},
    "perplexity": {"method": "perplexity"},
    "color": {"method": "color"},
    "rho1": {"method": "rho1"},
    "blade": {},
}
"""Every method under its defaults."""
TARGETLESS = ("reserve", "random", "perplexity")
"""Variants that read no target: one cell stands for all targets."""
ALL = "all"

PUBLISHED: dict[str, Any] = {
    "blade.reference_schedule": "constant",
    "granularity": "token",
    "keep": 0.6,
    "blade.lambda": 1.0,
    "blade.control": "proxy",
    "blade.train_on": "kept",
    "blade.average": "last",
}
"""BLADE as published: pipelines/blade-published.yaml; it has a keep ratio of its own."""

VARIANTS: dict[str, dict[str, Any]] = {
    "blade-proxy": {"blade.control": "proxy"},
    "blade-kept": {"blade.train_on": "kept"},
    "blade-lambda-0.3": {"blade.lambda": 0.3},
    "blade-lambda-1": {"blade.lambda": 1.0},
    "blade-lambda-rising": {
        "blade.lambda": 0.0,
        "blade.lambda_end": 1.0,
        "blade.lambda_schedule": "linear",
    },
    "blade-rounds": {"blade.final": "none"},
    "blade-rescore": {"blade.final": "rescore", "blade.average": "last"},
    "blade-published-document": {
        "blade.reference_schedule": "constant",
        "blade.lambda": 1.0,
        "blade.control": "proxy",
        "blade.train_on": "kept",
        "blade.average": "last",
        "blade.final": "none",
    },
}
"""What is screened beside the default."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One selection and one model trained on it."""

    variant: str
    target: str
    keep: float
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique within a stage."""
        return f"{self.variant}-{self.target}-{self.keep:g}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a stage.

    Attributes:
        stage: its name.
        shards: of the pool, that selections draw from.
        cut: characters of a document; None for all.
        model: preset of the proxy and of the model that is trained on what was kept.
        targets: names of the targets.
        keeps: keep ratios.
        seeds: of selection and training.
        train_share: tokens trained on, as a share of the pool's: 0.4 is four passes over a tenth.
        first: number of the first shard that selections draw from.
        of_sources: whether the targets are sources of the pool, their documents from shards behind
            those that selections draw from, and not folders that are given.
    """

    stage: str
    shards: int
    cut: int | None
    model: str
    targets: list[str]
    keeps: list[float]
    seeds: list[int]
    train_share: float
    first: int = 0
    of_sources: bool = False

    @staticmethod
    def of(stage: str, model: str | None) -> Plan:
        """The plan of a stage, under another model than its own where one is named."""
        plan = _PLANS[stage]
        return dataclasses.replace(plan, model=model) if model else plan


_PLANS = {
    "screen": Plan(
        stage="screen",
        shards=2,
        cut=CUT_CHARACTERS,
        model="nano",
        targets=["math", "medical"],
        keeps=[0.1],
        seeds=[0],
        train_share=0.4,
    ),
    "confirm": Plan(
        stage="confirm",
        shards=2,
        cut=CUT_CHARACTERS,
        model="nano",
        targets=["math", "medical", "wiki"],
        keeps=[0.1, 0.3],
        seeds=[0, 1, 2],
        train_share=0.4,
    ),
    "fresh": Plan(
        stage="fresh",
        shards=2,
        cut=CUT_CHARACTERS,
        model="nano",
        targets=["code-python", "novels-eltec", "movie-reviews"],
        keeps=[0.1],
        seeds=[3, 4, 5],
        train_share=0.4,
        first=2,
        of_sources=True,
    ),
    "full": Plan(
        stage="full",
        shards=7,
        cut=None,
        model="tiny",
        targets=["math"],
        keeps=[0.1],
        seeds=[0],
        train_share=0.4,
    ),
}


def cells_of(plan: Plan, variants: list[str] | None = None) -> Iterator[Cell]:
    """The cells of a plan, in the order in which they tell most soonest.

    Args:
        plan: the stage.
        variants: only these; every one of the stage otherwise.
    """
    known = {**METHODS, **(VARIANTS if plan.stage == "screen" else {})}
    chosen = {name: one for name, one in known.items() if not variants or name in variants}
    if not variants or "reserve" in variants:
        for seed in plan.seeds:
            yield _cell("reserve", METHODS["random"], ALL, plan.keeps[0], seed)
    for seed, keep in itertools.product(plan.seeds, plan.keeps):
        for name in [one for one in chosen if one in TARGETLESS]:
            yield _cell(name, chosen[name], ALL, keep, seed)
        for target in plan.targets:
            for name in [one for one in chosen if one not in TARGETLESS]:
                yield _cell(name, chosen[name], target, keep, seed)
    if not variants or "blade-published" in variants:
        for seed, target in itertools.product(plan.seeds, plan.targets):
            yield _cell("blade-published", PUBLISHED, target, PUBLISHED["keep"], seed)


def _cell(variant: str, settings: dict[str, Any], target: str, keep: float, seed: int) -> Cell:
    return Cell(variant=variant, target=target, keep=keep, seed=seed, settings=settings)
