"""Means, intervals, verdicts and multipliers against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from curate.evaluation.statistics import (
    Interval,
    Reading,
    mean_interval,
    paired_difference,
    read_multiple,
    student_t_quantile,
    token_multiplier,
    verdict,
)

# Printed tables of Student's t, two-sided.
T_TABLE = [
    (0.95, 1, 12.7062),
    (0.95, 2, 4.3027),
    (0.95, 3, 3.1824),
    (0.95, 4, 2.7764),
    (0.95, 5, 2.5706),
    (0.95, 9, 2.2622),
    (0.95, 10, 2.2281),
    (0.95, 30, 2.0423),
    (0.95, 120, 1.9799),
    (0.99, 2, 9.9248),
    (0.99, 7, 3.4995),
    (0.90, 1, 6.3138),
    (0.50, 1, 1.0),
]


@pytest.mark.parametrize(("confidence", "degrees", "expected"), T_TABLE)
def test_student_t(confidence: float, degrees: int, expected: float) -> None:
    assert student_t_quantile(confidence, degrees) == pytest.approx(expected, abs=6e-5)


def test_student_t_goes_to_the_normal() -> None:
    assert student_t_quantile(0.95, 5000) == pytest.approx(1.96, abs=1e-3)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_student_t_refuses_nonsense(confidence: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="confidence must lie"):
        student_t_quantile(confidence, degrees)


def test_interval_of_three() -> None:
    """Mean 4, deviations -2, 0, 2: variance 4, standard error 2 / sqrt 3, t(2) = 4.302653."""
    found = mean_interval([2.0, 4.0, 6.0])
    half = 4.302653 * 2 / math.sqrt(3)
    assert found.mean == 4
    assert found.low == pytest.approx(4 - half, rel=1e-6)
    assert found.high == pytest.approx(4 + half, rel=1e-6)
    assert found.count == 3


def test_interval_of_one_value_and_of_none() -> None:
    assert mean_interval([2.5]) == Interval(2.5, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_equal_values_have_no_spread() -> None:
    assert mean_interval([1.5, 1.5]) == Interval(1.5, 1.5, 1.5, 2)


def test_differences_are_paired_by_seed() -> None:
    """Seeds that differ by 10 among themselves, but by 1 within each pair."""
    ours = {0: 1.0, 1: 11.0, 2: 21.0, 9: 99.0}
    theirs = {2: 22.0, 1: 12.0, 0: 2.0}
    assert paired_difference(ours, theirs) == Interval(-1.0, -1.0, -1.0, 3)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.2, -0.01, "better"),
        (0.01, 0.2, "worse"),
        (-0.2, 0.01, "no measurable benefit"),
        (-0.2, 0.0, "no measurable benefit"),
        (0.0, 0.2, "no measurable benefit"),
        (None, None, "no measurable benefit"),
    ],
)
def test_verdict(low: float | None, high: float | None, expected: str) -> None:
    assert verdict(Interval(-0.1, low, high, 3)) == expected


def test_verdict_of_no_effect_is_no_benefit() -> None:
    noise = {0: 0.01, 1: -0.02, 2: 0.015}
    assert verdict(paired_difference(noise, dict.fromkeys(noise, 0.0))) == "no measurable benefit"


CURVE = [1.0, 2.0, 4.0], [3.0, 2.0, 1.5]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (3.5, Reading(1.0, "below")),
        (3.0, Reading(1.0)),
        (2.5, Reading(math.sqrt(2))),
        (2.0, Reading(2.0)),
        (1.75, Reading(2 * math.sqrt(2))),
        (1.5, Reading(4.0)),
        (1.4, Reading(4.0, "above")),
    ],
)
def test_multiples_are_read_between_points(loss: float, expected: Reading) -> None:
    found = read_multiple(loss, *CURVE)
    assert found.bound == expected.bound
    assert found.value == pytest.approx(expected.value, rel=1e-12)


def test_a_bumpy_curve_is_read_at_its_first_crossing() -> None:
    assert read_multiple(2.5, [1, 2, 4], [3.0, 2.0, 2.8]) == Reading(pytest.approx(2**0.5))
    assert read_multiple(2.5, [1, 2, 4], [3.0, 3.2, 1.8]).value == pytest.approx(2 * 2**0.5)


def test_one_point_bounds_only() -> None:
    assert read_multiple(1.0, [1.0], [2.0]) == Reading(1.0, "above")
    assert read_multiple(3.0, [1.0], [2.0]) == Reading(1.0, "below")


def test_readings_in_words() -> None:
    assert str(Reading(4.0, "above")) == "more than 4x"
    assert str(Reading(1.0, "below")) == "less than 1x"
    assert str(Reading(2.345)) == "2.35x"


def seeds_of(*losses: float) -> dict[int, float]:
    return dict(enumerate(losses))


def test_multiplier_with_its_interval() -> None:
    """Curves of the seeds are shifted by 0, 1, 2 and so is the loss, but for small steps."""
    curve = {m: {s: loss + s for s in range(3)} for m, loss in zip(*CURVE, strict=True)}
    found = token_multiplier(seeds_of(2.5, 3.5, 4.5), curve)
    assert found.reading.value == pytest.approx(math.sqrt(2))
    assert [one.value for one in found.seeds] == pytest.approx([math.sqrt(2)] * 3)
    assert found.low is not None
    assert found.high is not None
    assert (found.low.value, found.high.value) == pytest.approx((2**0.5, 2**0.5))


def test_multiplier_interval_stays_within_what_was_measured() -> None:
    curve = {m: seeds_of(loss, loss) for m, loss in zip(*CURVE, strict=True)}
    found = token_multiplier(seeds_of(2.9, 1.6), curve)
    assert (found.low, found.high) == (Reading(1.0, "below"), Reading(4.0, "above"))


def test_multiplier_beyond_the_curve_has_no_interval() -> None:
    curve = {m: seeds_of(loss, loss) for m, loss in zip(*CURVE, strict=True)}
    found = token_multiplier(seeds_of(1.0, 1.6), curve)
    assert str(found.reading) == "more than 4x"
    assert [str(one) for one in found.seeds] == ["more than 4x", "3.48x"]
    assert (found.low, found.high) == (None, None)


def test_multiplier_of_one_seed_has_no_interval() -> None:
    found = token_multiplier({0: 2.0}, {1.0: {0: 3.0}, 2.0: {0: 2.0}})
    assert (str(found.reading), found.low, found.high) == ("2x", None, None)
