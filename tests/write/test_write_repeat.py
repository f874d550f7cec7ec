"""Weights become whole copies: right on average, and a function of seed and document alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.write.repeat import curate_noise, part_ids, repeat_counts

_IDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30)


def test_noise_is_splitmix():
    """The first outputs of SplitMix64 seeded with 0, as published with its reference code."""
    from curate.write.repeat import _GOLDEN, _finalize

    counters = np.arange(1, 4, dtype=np.uint64) * _GOLDEN
    assert [hex(value) for value in _finalize(counters)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@given(st.integers(0, 2**63 - 1), _IDS, st.randoms())
def test_noise_does_not_depend_on_company(seed: int, ids: list[int], random):
    alone = [float(curate_noise(seed, [i])[0]) for i in ids]
    order = list(range(len(ids)))
    random.shuffle(order)
    together = curate_noise(seed, np.array([ids[i] for i in order], dtype=np.uint64))
    assert together.tolist() == [alone[i] for i in order]
    assert all(0 <= value < 1 for value in alone)


@pytest.mark.parametrize("part", [0, 1, 77])
def test_noise_is_uniform_and_uncorrelated(part: int):
    ids = part_ids(part, 100_000)
    noise, other = curate_noise(3, ids), curate_noise(4, ids)
    counts, _ = np.histogram(noise, bins=50, range=(0, 1))
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 100  # 49 degrees of freedom: mean 49, deviation 10
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02


@given(st.floats(0, 50, width=32), st.integers(0, 2**63 - 1))
def test_count_is_the_weight_rounded_down_or_up(weight: float, seed: int):
    count = repeat_counts([weight], [5], seed)[0]
    assert count in (np.floor(weight), np.ceil(weight))


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0, 1.3, 2.75])
def test_mean_count_over_seeds_is_the_weight(weight: float):
    seeds = 20_000
    total = sum(int(repeat_counts([weight], [12345], seed)[0]) for seed in range(seeds))
    fraction = weight % 1
    deviation = (fraction * (1 - fraction) / seeds) ** 0.5
    assert abs(total / seeds - weight) <= 5 * deviation + 1e-12


def test_sum_of_counts_is_near_the_sum_of_weights():
    weights = np.random.default_rng(0).gamma(2.0, 0.5, 50_000)
    fraction = weights % 1
    deviation = float((fraction * (1 - fraction)).sum()) ** 0.5
    total = int(repeat_counts(weights, part_ids(3, len(weights)), 11).sum())
    assert abs(total - weights.sum()) < 5 * deviation
