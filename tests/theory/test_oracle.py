"""keep_top against a linear program: how far are whole documents from the exact oracle?

The exact oracle maximizes sum a_i n_i s_i over C = {0 <= a_i <= 1, sum a_i n_i = B}, and may keep a
part of a document. What is true of keep_top, which keeps whole ones:

1. Units of one token and a whole B: it attains the optimum, and keeps B tokens.
2. Any units, and B at the end of one of them in the order of scores: the same.
3. Otherwise it attains the optimum of the budget that it kept, so nothing is kept out of order.
   That budget differs from B by at most half of the one document that the cut falls into, and the
   objective from the optimum at B by exactly the missing (or surplus) tokens at that document's
   score. It can pass the optimum at B, since it can keep more than B.
4. B at or above all tokens keeps everything, where the program has no solution (or that one).
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from curate.select.budget import keep_top

UNITS = st.lists(
    st.tuples(st.floats(-5, 5, allow_subnormal=False), st.integers(1, 60)), min_size=1, max_size=20
)
ROUGH_UNITS = st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 60)), min_size=1, max_size=20)
"""With many equal scores."""
SHARE = st.floats(0, 1)
SOLVED = 1e-5
"""How nearly the solver, whose own tolerances are 1e-7, finds an optimum."""


def unpack(units):
    scores, tokens = zip(*units, strict=True)
    return np.array(scores, dtype=np.float64), np.array(tokens, dtype=np.int64)


def keep(scores, tokens, budget):
    return keep_top(scores, tokens, budget, np.arange(len(scores), dtype=np.uint64))


def optimum(scores, tokens, budget):
    """Best sum a_i n_i s_i over C."""
    found = linprog(
        -scores * tokens, A_eq=tokens[None, :], b_eq=[budget], bounds=(0, 1), method="highs"
    )
    assert found.success
    return -found.fun


def objective(scores, tokens, kept):
    return float((scores * tokens)[kept].sum())


def the_cut(scores, tokens, budget):
    """The document in which the budget ends, in the order of scores."""
    order = np.argsort(-scores, kind="stable")
    ends = np.cumsum(tokens[order])
    return order[min(int(np.searchsorted(ends, budget)), len(order) - 1)]


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=30), SHARE)
def test_units_of_one_token_attain_the_optimum(scores, share):
    scores = np.array(scores)
    tokens = np.ones(len(scores), dtype=np.int64)
    budget = round(share * len(scores))
    kept = keep(scores, tokens, budget)
    assert kept.sum() == budget
    assert objective(scores, tokens, kept) == pytest.approx(
        optimum(scores, tokens, budget), abs=SOLVED
    )


@settings(deadline=None)
@given(st.one_of(UNITS, ROUGH_UNITS), SHARE)
def test_a_budget_that_ends_with_a_document_attains_the_optimum(units, share):
    scores, tokens = unpack(units)
    order = np.argsort(-scores, kind="stable")
    budget = int(tokens[order][: round(share * len(order))].sum())
    kept = keep(scores, tokens, budget)
    assert tokens[kept].sum() == budget
    assert objective(scores, tokens, kept) == pytest.approx(
        optimum(scores, tokens, budget), abs=SOLVED
    )


@settings(deadline=None)
@given(st.one_of(UNITS, ROUGH_UNITS), SHARE)
def test_any_budget_is_met_within_half_the_document_at_the_cut(units, share):
    scores, tokens = unpack(units)
    budget = share * float(tokens.sum())
    kept = keep(scores, tokens, budget)
    kept_tokens = int(tokens[kept].sum())
    cut = the_cut(scores, tokens, budget)
    assert abs(kept_tokens - budget) <= tokens[cut] / 2 + 1e-9
    ours, best = objective(scores, tokens, kept), optimum(scores, tokens, budget)
    assert ours == pytest.approx(optimum(scores, tokens, kept_tokens), abs=SOLVED)
    assert best - ours == pytest.approx(scores[cut] * (budget - kept_tokens), abs=SOLVED)
    assert best - ours <= abs(scores[cut]) * tokens[cut] / 2 + SOLVED


@settings(deadline=None)
@given(UNITS, st.floats(0, 100))
def test_a_budget_of_all_tokens_or_more_keeps_everything(units, beyond):
    scores, tokens = unpack(units)
    assert keep(scores, tokens, float(tokens.sum()) + beyond).all()


def test_it_may_pass_the_optimum_by_passing_the_budget():
    """Two documents of 10 tokens and a budget of 16: 20 tokens are kept, at 4 more than allowed."""
    scores, tokens = np.array([2.0, 1.0]), np.array([10, 10])
    kept = keep(scores, tokens, 16)
    assert kept.all()
    assert objective(scores, tokens, kept) == 30
    assert optimum(scores, tokens, 16) == pytest.approx(26)
