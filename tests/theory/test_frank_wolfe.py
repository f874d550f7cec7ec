"""Does averaging memoryless decisions reach the optimum? Small convex problems over the simplex.

Each visit decides a block by its vertex alone (the top share by score, keep_top), and the weight of
a unit is the average of its decisions with the coefficients of visit_coefficients. That is Frank-
Wolfe on f over C = {0 <= a_i <= 1, sum over each block = its budget}, scores being -df/da_i at the
average so far. What is true, t being the visits and C_f the curvature of f over C (for a quadratic
with Hessian Q, the largest (s - r)' Q (s - r) over vertices s and r):

1. linear, 2/(e+2): f(a) - f* <= 2 C_f / (t + 2) after every visit (Jaggi, ICML 2013, Theorem 1).
2. uniform, 1/(e+1): f(a) - f* <= C_f (1 + ln t) / (2 t), by the same recursion.
3. The same optimum is reached when blocks are decided one after another within a pass, each seeing
   the averages that the ones before have moved.
4. last converges only where the optimum is a vertex: it then is there after one visit, as all three
   are if f is linear. Where the optimum is interior it runs through vertices in a cycle for ever.
5. f* is the optimum under the blocks' own budgets. If blocks are drawn anew each pass, as the tool
   draws them, the average moves towards the optimum over the whole pool, but the best share of a
   block is not the block's part of the best share: a gap is left that shrinks as blocks grow.
"""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from curate.select.budget import keep_top
from curate.select.schedule import visit_coefficients

VISITS = 200
ONE_BLOCK = [(12, 4)]
THREE_BLOCKS = [(4, 2), (5, 1), (3, 1)]
"""Units and budget of each block."""
LAYOUTS = pytest.mark.parametrize("layout", [ONE_BLOCK, THREE_BLOCKS], ids=["one", "three"])
GAMMAS = {
    average: [visit_coefficients(average, visit + 1)[-1] for visit in range(VISITS)]
    for average in ("last", "uniform", "linear")
}


class Quadratic:
    """f(a) = (a - center)' Q (a - center) / 2."""

    def __init__(self, hessian, center):
        self.hessian, self.center = hessian, center

    def __call__(self, a):
        return 0.5 * (a - self.center) @ self.hessian @ (a - self.center)

    def gradient(self, a):
        return self.hessian @ (a - self.center)


def random_quadratic(seed, units=12):
    """Ill-conditioned, its center outside of C."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.normal(size=(units, units)))
    center = random.normal(0.4, 0.5, units)
    return Quadratic((basis * np.geomspace(0.02, 1, units)) @ basis.T, center)


def slices(layout):
    ends = np.cumsum([units for units, _ in layout])
    return [slice(end - units, end) for (units, _), end in zip(layout, ends, strict=True)]


def best_vertex(scores, budget):
    ties = np.arange(len(scores), dtype=np.uint64)
    return keep_top(scores, np.ones(len(scores), np.int64), budget, ties).astype(np.float64)


def whole_vertex(f, a, layout):
    """Every block's vertex, all scored at the same average."""
    parts = zip(slices(layout), layout, strict=True)
    return np.concatenate([best_vertex(-f.gradient(a)[part], one[1]) for part, one in parts])


def start(layout):
    return np.concatenate([np.full(units, budget / units) for units, budget in layout])


def averages(f, layout, average):
    """The average after each visit, [VISITS, N], and the vertices, [VISITS, N]."""
    a, found, vertices = start(layout), [], []
    for gamma in GAMMAS[average]:
        vertices.append(whole_vertex(f, a, layout))
        a = (1 - gamma) * a + gamma * vertices[-1]
        found.append(a)
    return np.array(found), np.array(vertices)


def all_vertices(layout):
    blocks = [
        [np.isin(np.arange(units), chosen) for chosen in itertools.combinations(range(units), keep)]
        for units, keep in layout
    ]
    return np.array([np.concatenate(parts) for parts in itertools.product(*blocks)], dtype=float)


def optimum(f, layout):
    """The minimum of f over C by SLSQP, certified by the Frank-Wolfe gap at its solution."""
    budgets = [
        {"type": "eq", "fun": lambda a, part=part, keep=keep: a[part].sum() - keep}
        for part, (_, keep) in zip(slices(layout), layout, strict=True)
    ]
    found = minimize(
        f,
        start(layout),
        jac=f.gradient,
        bounds=[(0, 1)] * len(start(layout)),
        constraints=budgets,
        options={"ftol": 1e-14, "maxiter": 1000},
        method="SLSQP",
    ).x
    slope = f.gradient(found)
    assert slope @ found - (all_vertices(layout) @ slope).min() < 1e-5
    return f(found)


def curvature(f, layout):
    vertices = all_vertices(layout)
    products = vertices @ f.hessian @ vertices.T
    return (np.diag(products)[:, None] + np.diag(products) - 2 * products).max()


def gaps(f, layout, average):
    return np.array([f(a) for a in averages(f, layout, average)[0]]) - optimum(f, layout)


BOUNDS = {
    "linear": lambda visits: 2 / (visits + 2),
    "uniform": lambda visits: (1 + np.log(visits)) / (2 * visits),
}


@LAYOUTS
@pytest.mark.parametrize("average", ["uniform", "linear"])
@pytest.mark.parametrize("seed", range(4))
def test_averages_approach_the_optimum_at_the_rate_of_frank_wolfe(layout, average, seed):
    f = random_quadratic(seed)
    found = gaps(f, layout, average)
    visits = np.arange(1, VISITS + 1)
    assert (found > -1e-6).all(), "averages lie in C"
    assert (found <= curvature(f, layout) * BOUNDS[average](visits) + 1e-6).all()
    assert found[-1] < 0.02 * found[0]


@LAYOUTS
@pytest.mark.parametrize("average", ["last", "uniform", "linear"])
def test_coefficients_weigh_the_decisions_of_the_visits(layout, average):
    """The averages above are what the tool makes of the logged decisions, and spend the budget."""
    found, vertices = averages(random_quadratic(0), layout, average)
    for visits in (1, 2, 7, VISITS):
        weights = np.array(visit_coefficients(average, visits))
        np.testing.assert_allclose(weights @ vertices[:visits], found[visits - 1], atol=1e-12)
    for part, (_, budget) in zip(slices(layout), layout, strict=True):
        np.testing.assert_allclose(found[:, part].sum(axis=1), budget)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12


@pytest.mark.parametrize("average", ["uniform", "linear"])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_decided_one_after_another_reach_the_same_optimum(average, seed):
    f, a = random_quadratic(seed), start(THREE_BLOCKS)
    best, found = optimum(f, THREE_BLOCKS), []
    for gamma in GAMMAS[average]:
        for part, (_, budget) in zip(slices(THREE_BLOCKS), THREE_BLOCKS, strict=True):
            a[part] += gamma * (best_vertex(-f.gradient(a)[part], budget) - a[part])
        found.append(f(a) - best)
    assert min(found) > -1e-6
    assert found[-1] < 0.02 * found[0]


def test_last_cycles_between_complements_where_half_of_each_is_best():
    f = Quadratic(np.eye(12), np.full(12, 0.5))
    found, vertices = averages(f, [(12, 6)], "last")
    np.testing.assert_array_equal(found, vertices)
    np.testing.assert_array_equal(vertices[1:], 1 - vertices[:-1])
    assert {f(a) for a in found} == {1.5}
    for average in ("uniform", "linear"):
        assert gaps(f, [(12, 6)], average)[-1] < 0.01


@LAYOUTS
@pytest.mark.parametrize("seed", range(4))
def test_last_stays_away_from_an_interior_optimum_and_repeats_itself(layout, seed):
    f = random_quadratic(seed)
    f.center = start(layout)  # the minimum over all a lies inside of C
    found, vertices = averages(f, layout, "last")
    nearest = min(f(vertex) for vertex in all_vertices(layout))
    assert optimum(f, layout) == pytest.approx(0, abs=1e-9)
    assert min(f(a) for a in found) >= nearest > 0.02
    tail = [tuple(vertex) for vertex in vertices[VISITS // 2 :]]
    period = tail[1:].index(tail[0]) + 1
    assert period > 1
    assert all(one == other for one, other in zip(tail, tail[period:], strict=False))
    for average in ("uniform", "linear"):
        assert gaps(f, layout, average)[-1] < nearest / 10


@LAYOUTS
def test_a_linear_objective_is_solved_by_one_visit_whatever_the_average(layout):
    f = random_quadratic(5)
    slope = f.gradient(start(layout))
    f.gradient = lambda a: slope
    best = (all_vertices(layout) @ slope).min()
    for average in ("last", "uniform", "linear"):
        found, _ = averages(f, layout, average)
        np.testing.assert_allclose(found @ slope, best)


def drawn_anew(f, units, block, keep, visits, seed=0):
    """The uniform average when each pass cuts the pool into other blocks."""
    random, a = np.random.default_rng(seed), np.full(units, keep)
    for gamma in GAMMAS["uniform"][:visits]:
        scores, vertex = -f.gradient(a), np.zeros(units)
        for part in random.permutation(units).reshape(-1, block):
            vertex[part] = best_vertex(scores[part], keep * block)
        a = a + gamma * (vertex - a)
    return a


@pytest.mark.parametrize("seed", range(3))
def test_blocks_drawn_anew_leave_a_gap_that_shrinks_as_blocks_grow(seed):
    """480 units seen through 3 numbers, as documents are through a model; a quarter is kept."""
    random, units, keep = np.random.default_rng(seed), 480, 0.25
    features = random.normal(size=(3, units)) / units
    wanted = features.sum(axis=1) * keep + 0.3 * random.normal(size=3)
    f = Quadratic(features.T @ features, np.linalg.pinv(features) @ wanted)
    whole = f(drawn_anew(f, units, units, keep, VISITS))
    gap = {block: f(drawn_anew(f, units, block, keep, VISITS)) - whole for block in (8, 24, 120)}
    assert 0 < gap[120] < gap[24] / 2 < gap[8] / 4
    sooner = f(drawn_anew(f, units, 8, keep, VISITS // 4)) - whole
    assert gap[8] > 0.8 * sooner, "more visits do not close it"
    assert gap[8] < 0.1 * f(np.full(units, keep)), "most of what can be gained is gained"


@pytest.mark.parametrize("seed", range(4))
def test_budgets_by_block_cannot_beat_one_budget(seed):
    f = random_quadratic(seed)
    assert optimum(f, [(12, 4)]) < optimum(f, THREE_BLOCKS)
