"""What a handful of seeds can and cannot show: means, intervals, a verdict, a token multiplier.

Pure functions of numbers, so that every sentence the evaluation prints can be checked by hand.
Losses and bits per byte are better when lower: a difference ours - theirs below 0 is a gain.

Intervals are 95 % intervals of the mean by Student's t over seeds, differences paired by seed. With
the few seeds that anybody can afford they are wide, and that is the point: a gain that three seeds
do not show is reported as none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95

BETTER, WORSE, NO_BENEFIT = "better", "worse", "no measurable benefit"
"""The verdicts."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `count` seeds and its 95 % interval; one seed has no interval (None)."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A token multiplier, or that it lies outside of what was measured.

    Attributes:
        value: the multiplier; at a bound, the smallest or largest multiple measured.
        bound: "" for a value, "below" for less than `value`, "above" for more than it.
    """

    value: float
    bound: str = ""

    def __str__(self) -> str:
        words = {"": "", "below": "less than ", "above": "more than "}[self.bound]
        return f"{words}{self.value:.3g}x"


@dataclass(frozen=True, slots=True)
class Multiplier:
    """The token multiplier of the means, of each seed, and its interval over seeds.

    `low` and `high` are None for one seed, and where a seed's reading is outside of what was
    measured: a bound has no spread.
    """

    reading: Reading
    seeds: tuple[Reading, ...]
    low: Reading | None = None
    high: Reading | None = None


def student_t_quantile(confidence: float, degrees: int) -> float:
    """T such that a Student's t variable lies in [-t, t] with probability `confidence`.

    By bisection over the closed form for whole degrees of freedom.

    Raises:
        ValueError: `confidence` is not in (0, 1) or `degrees` is below 1.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError("confidence must lie in (0, 1) and degrees must be at least 1")
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        if _central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle)); Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of values, one a seed.

    Raises:
        ValueError: there are none.
    """
    count = len(values)
    if count == 0:
        raise ValueError("no values")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = student_t_quantile(CONFIDENCE, count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """Ours - theirs by seed, over the seeds that both have; below 0 is a gain.

    Raises:
        ValueError: they have no seed in common.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    return mean_interval([ours[seed] - theirs[seed] for seed in seeds])


def verdict(difference: Interval) -> str:
    """`better` where the whole interval is below 0, `worse` above 0, else no measurable benefit."""
    if difference.low is None or difference.high is None:
        return NO_BENEFIT
    if difference.high < 0:
        return BETTER
    return WORSE if difference.low > 0 else NO_BENEFIT


def read_multiple(loss: float, multiples: Sequence[float], losses: Sequence[float]) -> Reading:
    """How many times the tokens the measured curve needs to come down to `loss`.

    Between two measured multiples the loss is taken as linear in the logarithm of the tokens;
    nothing is read off beyond the smallest or largest.

    Args:
        loss: what is to be reached.
        multiples: budgets of the curve, ascending.
        losses: its loss at each; the first crossing counts where noise makes several.
    """
    if loss == losses[0]:
        return Reading(multiples[0])
    if loss > losses[0]:
        return Reading(multiples[0], "below")
    for index in range(1, len(multiples)):
        if losses[index] <= loss:
            share = (losses[index - 1] - loss) / (losses[index - 1] - losses[index])
            logs = math.log(multiples[index - 1]), math.log(multiples[index])
            return Reading(math.exp(logs[0] + share * (logs[1] - logs[0])))
    return Reading(multiples[-1], "above")


def token_multiplier(
    ours: Mapping[int, float], curve: Mapping[float, Mapping[int, float]]
) -> Multiplier:
    """How many times the tokens of the curve's data reach the loss that `ours` reached.

    Args:
        ours: loss by seed.
        curve: for each multiple of our tokens, the loss by seed; one multiple at least.
    """
    multiples = sorted(curve)
    seeds = sorted(ours.keys() & curve[multiples[0]].keys())
    readings = tuple(
        read_multiple(ours[seed], multiples, [curve[m][seed] for m in multiples]) for seed in seeds
    )
    means = [mean_interval([curve[m][seed] for seed in seeds]).mean for m in multiples]
    mean = mean_interval([ours[seed] for seed in seeds]).mean
    reading = read_multiple(mean, multiples, means)
    if len(seeds) == 1 or any(one.bound for one in readings):
        return Multiplier(reading, readings)
    spread = mean_interval([math.log(one.value) for one in readings])
    low, high = (_within(end, multiples) for end in (spread.low, spread.high))
    return Multiplier(reading, readings, low, high)


def _within(logarithm: float | None, multiples: Sequence[float]) -> Reading:
    """The end of an interval, as a bound where it lies beyond what was measured."""
    value = math.exp(min(logarithm or 0.0, 700.0))
    if value < multiples[0]:
        return Reading(multiples[0], "below")
    return Reading(value) if value <= multiples[-1] else Reading(multiples[-1], "above")
