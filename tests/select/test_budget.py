import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.select.budget import keep_top

UNITS = st.lists(st.tuples(st.integers(-4, 4), st.integers(1, 50)), min_size=1, max_size=25)
SHARE = st.floats(0, 1)


def keep(scores, tokens, budget, ties=None):
    ties = range(len(scores)) if ties is None else ties
    return keep_top(
        np.array(scores, dtype=np.float64),
        np.array(tokens, dtype=np.int64),
        budget,
        np.array(ties, dtype=np.uint64),
    )


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (-5, [0, 0, 0]),
        (0, [0, 0, 0]),
        (4.9, [0, 0, 0]),
        (5, [0, 1, 0]),  # half of the document: either is as near
        (10, [0, 1, 0]),
        (11.9, [0, 1, 0]),
        (12.1, [0, 1, 1]),
        (14, [0, 1, 1]),
        (23.9, [0, 1, 1]),
        (24.1, [1, 1, 1]),
        (1e9, [1, 1, 1]),
    ],
)
def test_best_documents_first_and_the_last_when_it_brings_the_budget_nearer(budget, expected):
    assert keep([-1.0, 3.0, 2.0], [20, 10, 4], budget).tolist() == [bool(one) for one in expected]


def test_equal_scores_go_by_ties_lowest_first():
    assert keep([1, 1, 1], [5, 5, 5], 10, [2**64 - 1, 0, 7]).tolist() == [False, True, True]


def test_no_documents():
    assert keep([], [], 10).shape == (0,)


@given(UNITS, SHARE)
def test_budget_is_met_within_one_document_by_the_highest_scores(units, share):
    scores, tokens = map(np.array, zip(*units, strict=True))
    budget = share * tokens.sum()
    kept = keep(scores, tokens, budget)
    order = sorted(range(len(units)), key=lambda i: (-scores[i], i))
    sums = [0, *itertools.accumulate(tokens[order].tolist())]
    assert tokens[kept].sum() in sums
    nearest = min(abs(one - budget) for one in sums)
    assert abs(tokens[kept].sum() - budget) == pytest.approx(nearest, abs=1e-9)
    assert abs(tokens[kept].sum() - budget) < tokens.max()
    if kept.any() and not kept.all():
        assert scores[kept].min() >= scores[~kept].max()


@given(UNITS, SHARE, st.randoms())
def test_a_decision_is_of_the_document_not_of_its_position(units, share, random):
    scores, tokens = map(np.array, zip(*units, strict=True))
    ties = np.array(random.sample(range(1000), len(units)))
    order = np.array(random.sample(range(len(units)), len(units)))
    budget = share * tokens.sum()
    kept = keep(scores, tokens, budget, ties)
    assert keep(scores[order], tokens[order], budget, ties[order]).tolist() == kept[order].tolist()


@given(
    st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=8),
    st.integers(0, 8),
)
def test_units_of_one_token_reach_the_optimum_of_the_linear_objective(scores, budget):
    budget = min(budget, len(scores))
    kept = keep(scores, [1] * len(scores), budget)
    assert kept.sum() == budget
    best = max(sum(subset) for subset in itertools.combinations(scores, budget))
    assert sum(np.array(scores)[kept]) == pytest.approx(best, abs=1e-6)


@given(UNITS, SHARE, SHARE)
def test_a_larger_budget_keeps_whatever_a_smaller_one_kept(units, one, other):
    scores, tokens = map(np.array, zip(*units, strict=True))
    small, large = sorted([one, other])
    less = keep(scores, tokens, small * tokens.sum())
    more = keep(scores, tokens, large * tokens.sum())
    assert (more | ~less).all()
