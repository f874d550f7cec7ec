"""The report of an evaluation as plain values: results, statistics, verdict, costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from curate.evaluation.plan import Plan
from curate.evaluation.prepare import Inputs
from curate.evaluation.record import FORMAT_VERSION
from curate.evaluation.settings import CURATED, POOL, RANDOM
from curate.evaluation.statistics import (
    BETTER,
    NO_BENEFIT,
    WORSE,
    Interval,
    mean_interval,
    paired_difference,
    token_multiplier,
    verdict,
)
from curate.evaluation.train import Measure
from curate.read.corpus import display_uri

SETS = ("target", "general")

Trained = Mapping[tuple[str, int], list[Measure]]
"""Measures by (arm, seed), in ascending order of budgets."""

_FEW_STEPS = 10
_LITTLE = 0.01
"""By which tokens trained on may differ from the multiple asked for and go by its name."""

_BitsBySeed = dict[str, dict[int, float]]


def make_report(inputs: Inputs, plan: Plan, trained: Trained, request: str) -> dict[str, Any]:
    """Everything an evaluation found, as plain values; only times differ between equal ones."""
    bits = {row: _bits_by_seed(plan, trained, *row) for row in _rows(plan)}
    against_random = _compare(bits, (RANDOM, 1.0))
    return {
        "format_version": FORMAT_VERSION,
        "request": request,
        "verdict": _verdict(against_random["target"], len(plan.seeds)),
        "settings": _settings(inputs, plan),
        "sizes": _sizes(inputs, plan),
        "arms": [_summary(plan, trained, bits[row], *row) for row in bits],
        "comparisons": [
            {"arm": CURATED, "minus": arm, **_compare(bits, (arm, multiple))}
            for arm, multiple in bits
            if arm != CURATED and multiple == 1
        ],
        "token_multiplier": _multiplier(plan, trained, bits),
        "cost": _cost(inputs, plan, trained),
        "warnings": [*inputs.warnings, *_warnings(plan)],
        "results": [
            {"arm": arm, "seed": seed, "multiple": multiple, **dataclasses.asdict(measure)}
            for arm, multiple in bits
            for seed in plan.seeds
            for measure in [_measure(plan, trained, arm, multiple, seed)]
        ],
        "versions": {"curate": version("curate"), "torch": str(torch.__version__)},
        "device": str(plan.model.compute.device),
        "dtype": str(plan.model.compute.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _rows(plan: Plan) -> list[tuple[str, float]]:
    """(arm, multiple of the tokens) of every row of the table."""
    return [
        (arm, multiple)
        for arm in plan.arms
        for multiple in (list(plan.budgets) if arm == POOL else [1.0])
    ]


def _measure(plan: Plan, trained: Trained, arm: str, multiple: float, seed: int) -> Measure:
    budget = plan.budgets[multiple] if arm == POOL else plan.tokens
    return next(one for one in trained[arm, seed] if one.budget == budget)


def _bits_by_seed(plan: Plan, trained: Trained, arm: str, multiple: float) -> _BitsBySeed:
    """Bits per byte by test set and seed."""
    found = {seed: _measure(plan, trained, arm, multiple, seed) for seed in plan.seeds}
    return {name: {seed: one.bits_per_byte[name] for seed, one in found.items()} for name in SETS}


def _summary(
    plan: Plan, trained: Trained, bits: _BitsBySeed, arm: str, multiple: float
) -> dict[str, Any]:
    measures = [_measure(plan, trained, arm, multiple, seed) for seed in plan.seeds]
    return {
        "arm": arm,
        "multiple": multiple,
        "tokens": round(_mean_tokens(measures)),
        "passes": _mean_tokens(measures) / plan.epoch_tokens(arm),
        **{name: _plain(mean_interval(list(bits[name].values()))) for name in SETS},
        "seconds": sum(one.seconds for one in measures) / len(measures),
    }


def _mean_tokens(measures: Sequence[Measure]) -> float:
    """Tokens trained on: those asked for, and what the last batch had beyond them."""
    return sum(one.tokens for one in measures) / len(measures)


def _compare(
    bits: Mapping[tuple[str, float], _BitsBySeed], other: tuple[str, float]
) -> dict[str, Any]:
    ours = bits[CURATED, 1.0]
    return {name: _plain(paired_difference(ours[name], bits[other][name])) for name in SETS}


def _verdict(target: Mapping[str, Any], seeds: int) -> dict[str, str]:
    difference = Interval(**target)
    words = verdict(difference)
    size = f"{abs(difference.mean):.4f} bits per byte"
    why = {
        BETTER: f"on the target test the curated data needs {size} less than random data, and "
        "the whole 95 % interval over seeds is below 0.",
        WORSE: f"on the target test the curated data needs {size} more than random data, and the "
        "whole 95 % interval over seeds is above 0.",
        NO_BENEFIT: "one seed cannot tell a gain from chance; give --seeds 3 or more."
        if seeds == 1
        else "the 95 % interval of curated - random on the target test contains 0.",
    }[words]
    return {"words": words, "why": why}


def _multiplier(
    plan: Plan, trained: Trained, bits: Mapping[tuple[str, float], _BitsBySeed]
) -> dict[str, Any]:
    """Read off the tokens that were trained on: steps are whole batches, budgets need not be."""

    def tokens(arm: str, multiple: float) -> float:
        return _mean_tokens([_measure(plan, trained, arm, multiple, one) for one in plan.seeds])

    curve = {}
    for (arm, multiple), one in bits.items():
        if arm == POOL:
            found = tokens(POOL, multiple) / tokens(CURATED, 1.0)
            as_asked = abs(found / multiple - 1) < _LITTLE
            curve[multiple if as_asked else found] = one["target"]
    multiplier = token_multiplier(bits[CURATED, 1.0]["target"], curve)
    return {
        "words": str(multiplier.reading),
        "value": None if multiplier.reading.bound else multiplier.reading.value,
        "low": str(multiplier.low) if multiplier.low else None,
        "high": str(multiplier.high) if multiplier.high else None,
        "seeds": [str(one) for one in multiplier.seeds],
    }


def _cost(inputs: Inputs, plan: Plan, trained: Trained) -> dict[str, Any]:
    curated = [trained[CURATED, seed][0].seconds for seed in plan.seeds]
    return {
        "selection_seconds": sum(inputs.run.record["stage_seconds"].values()),
        "selection_device": inputs.run.record["device"],
        "training_seconds": sum(curated) / len(curated),
    }


def _settings(inputs: Inputs, plan: Plan) -> dict[str, Any]:
    model = plan.model
    return {
        "test": display_uri(str(inputs.settings.test)),
        "against": [str(out) for out in inputs.settings.against],
        "seeds": list(plan.seeds),
        "tokens": plan.tokens,
        "multiples": list(plan.budgets),
        "model": model.name,
        "parameters": plan.parameters,
        "window": model.window,
        "window_overlap": model.overlap,
        "batch_tokens": model.batch_tokens,
        "learning_rate": model.learning_rate,
        "ramp_steps": model.train.ramp_steps,
    }


def _sizes(inputs: Inputs, plan: Plan) -> dict[str, Any]:
    sets = {
        name: {"documents": len(one), "tokens": one.num_tokens, "bytes": int(one.bytes.sum())}
        for name, one in plan.test_sets.items()
    }
    datasets = {
        arm: {
            "documents": len(store.documents),
            "tokens": store.documents.num_tokens,
            "label_tokens": store.documents.num_counted,
            "held_out_documents": store.facts["held_out"],
            "documents_in_test": store.facts["in_test"],
        }
        for arm, store in plan.stores.items()
    }
    return {
        "pool_tokens": plan.cache.tokens,
        "random_sample_tokens": plan.sample_tokens,
        "kept_tokens": inputs.run.kept_tokens,
        "test_sets": sets,
        "datasets": datasets,
    }


def _warnings(plan: Plan) -> list[str]:
    batch = plan.model.batch_tokens
    steps = -(-min(plan.tokens, *plan.budgets.values()) // batch)
    few = (
        f"The smallest budget is {steps} steps of {batch:,} tokens, after which a loss says "
        "little; give more --tokens or a smaller --batch-tokens."
    )
    seen = (
        f"{count} documents of {arm} have the very text of a test document: the test is not unseen."
        for arm, store in plan.stores.items()
        if (count := int(store.facts["in_test"]))
    )
    return [*([few] if steps < _FEW_STEPS else []), *seen]


def _plain(interval: Interval) -> dict[str, Any]:
    return dataclasses.asdict(interval)
