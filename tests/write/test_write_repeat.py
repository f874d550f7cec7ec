"""Weights become whole copies: right on average, and a function of seed and document alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.write.repeat import part_ids, repeat_counts

_IDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30)


@given(st.integers(0, 2**63 - 1), _IDS, st.randoms())
def test_counts_do_not_depend_on_company(seed: int, ids: list[int], random):
    alone = [int(repeat_counts([0.5], [i], seed)[0]) for i in ids]
    order = list(range(len(ids)))
    random.shuffle(order)
    together = repeat_counts(np.full(len(ids), 0.5), [ids[i] for i in order], seed)
    assert together.tolist() == [alone[i] for i in order]


@pytest.mark.parametrize("part", [0, 1, 77])
def test_counts_of_neighbours_and_seeds_are_uncorrelated(part: int):
    ids = part_ids(part, 100_000)
    halves = np.full(len(ids), 0.5)
    counts, other = repeat_counts(halves, ids, 3), repeat_counts(halves, ids, 4)
    assert abs(counts.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(counts, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(counts[1:], counts[:-1])[0, 1]) < 0.02


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
