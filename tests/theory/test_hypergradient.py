"""Is the penalized score the derivative that it stands for? Quadratic losses give exact answers.

The derivative wanted is that of L_val(u*(a)) in a_i, through the proxy's optimum, Hessian included.
The tool scores s_i = lambda [l_i(u) - l_i(w)] instead. What is true, and shown here:

1. With both models at their optima, s_i x n_i / sum a_j n_j is minus that derivative but for an
   error of O(1 / lambda): the Hessian is there, though nobody computed it. At finite lambda s_i is
   minus the derivative of the penalized problem itself, but for a number common to all tokens (the
   normalization of L_train by sum a_j n_j), which changes no order.
2. From a common u that is no minimum, after K gradient steps:
   - the LOOKAHEAD control (u+ takes the same K steps) reaches s_i of the optima geometrically in K
     at fixed lambda, and hence the exact derivative as K and lambda grow, with error O(1 / lambda).
     At fixed K its error stays bounded however large lambda is.
   - the PUBLISHED control (u as it is) reaches s_i + lambda [l_i(u) - l_i(u*)]: a bias that no
     number of steps removes and that grows like lambda. Its direction tends to l_i(u) - l_i(u*),
     what training on the selected pool lowers most, in which the target does not occur.
   - at u = u* both agree, for every K, and K is how many terms of the Neumann series of the inverse
     Hessian the score has.
   - neither is good at small lambda and small K: there the published control can rank better.
3. At lambda = 0, the tool's default, both controls are the same and few steps score by
   grad l_i . grad L_val: the derivative with the identity in place of the Hessian.

Plain gradient steps are analysed; the tool takes AdamW steps on batches.
"""

import numpy as np
import pytest
from bilevel import make_bilevel
from scipy.stats import spearmanr

SEEDS = (2, 3, 4)
MANY = 4000
LARGE = np.geomspace(1e2, 1e5, 7)


@pytest.fixture(params=SEEDS)
def problem_and_a(request):
    return make_bilevel(request.param)


def relative_error(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def slope(x, y):
    """Exponent p of y ~ x^p."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def differences(function, a, step=1e-5):
    """Central differences of a function of a, [N]."""
    directions = step * np.eye(len(a))
    return np.array([(function(a + e) - function(a - e)) / (2 * step) for e in directions])


def iterate(problem, seed=0, steps=5):
    """A proxy on its way: some gradient steps on all of the pool from a random point."""
    x = np.random.default_rng([99, seed]).normal(size=problem.centers.shape[1])
    for _ in range(steps):
        x = x - problem.train_gradient(np.ones(len(problem.tokens)), x)
    return x


def test_exact_direction_is_the_derivative_of_the_target_loss(problem_and_a):
    problem, a = problem_and_a
    u, total = problem.proxy(a), a @ problem.tokens
    assert np.abs(problem.train_gradient(a, u)).max() < 1e-12
    # d/da_i of grad L_train: the quotient rule on sum a_j n_j grad l_j / sum a_j n_j.
    mixed = problem.tokens[:, None] / total
    mixed = mixed * (problem.gradients(u) - problem.train_gradient(a, u))
    implicit = -mixed @ np.linalg.solve(problem.hessian(a), problem.target_gradient(u))
    numeric = differences(lambda one: problem.target_loss(problem.proxy(one)), a)
    np.testing.assert_allclose(numeric, implicit, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(-implicit * total / problem.tokens, problem.exact_score(a))


def test_the_hessian_matters_here(problem_and_a):
    problem, a = problem_and_a
    u = problem.proxy(a)
    aligned = problem.gradients(u) @ problem.target_gradient(u)
    assert cosine(aligned, problem.exact_score(a)) < 0.9


@pytest.mark.parametrize("lambda_", [0.1, 1.0, 30.0])
def test_score_is_the_derivative_of_the_penalized_problem_up_to_a_constant(problem_and_a, lambda_):
    problem, a = problem_and_a
    score = problem.score(problem.proxy(a), problem.reference(a, lambda_), lambda_)
    common = problem.shares(a) @ score
    numeric = differences(lambda one: problem.penalized(one, lambda_), a)
    expected = -problem.tokens / (a @ problem.tokens) * (score - common)
    np.testing.assert_allclose(numeric, expected, rtol=1e-5, atol=1e-9)


def test_at_the_optima_score_is_exact_up_to_one_over_lambda(problem_and_a):
    problem, a = problem_and_a
    u, exact = problem.proxy(a), problem.exact_score(a)
    scores = [problem.score(u, problem.reference(a, one), one) for one in LARGE]
    errors = [relative_error(score, exact) for score in scores]
    assert slope(LARGE, errors) == pytest.approx(-1, abs=0.03)
    assert errors[-1] < 1e-3
    common = [abs(problem.shares(a) @ score) for score in scores]
    assert slope(LARGE, common) == pytest.approx(-1, abs=0.03)


@pytest.mark.parametrize("lambda_", [1.0, 10.0])
def test_at_fixed_lambda_lookahead_converges_in_steps_and_published_keeps_a_bias(
    problem_and_a, lambda_
):
    problem, a = problem_and_a
    start, optimum = iterate(problem), problem.proxy(a)
    reached = problem.score(optimum, problem.reference(a, lambda_), lambda_)
    errors = []
    for steps in (900, 1100, MANY):
        w, ahead = problem.step_away(a, start, lambda_, steps=steps, rate=1.0)
        errors.append(relative_error(problem.score(ahead, w, lambda_), reached))
    flattest = np.linalg.eigvalsh(problem.hessian(a))[0]
    contraction = 1 - lambda_ / (1 + lambda_) * flattest
    assert np.log(errors[1] / errors[0]) / np.log(contraction) == pytest.approx(200, rel=0.1)
    assert errors[2] < 1e-9
    bias = lambda_ * (problem.losses(start) - problem.losses(optimum))
    published = problem.score(start, w, lambda_)
    np.testing.assert_allclose(published - reached, bias, rtol=1e-6, atol=1e-9)
    assert relative_error(published, reached) > 0.01  # however near u is to u*


def test_as_lambda_grows_lookahead_is_exact_and_published_is_not(problem_and_a):
    problem, a = problem_and_a
    start, exact = iterate(problem), problem.exact_score(a)
    lookahead, published = [], []
    for lambda_ in LARGE:
        w, ahead = problem.step_away(a, start, lambda_, steps=MANY, rate=1.0)
        lookahead.append(relative_error(problem.score(ahead, w, lambda_), exact))
        published.append(relative_error(problem.score(start, w, lambda_), exact))
    assert slope(LARGE, lookahead) == pytest.approx(-1, abs=0.03)
    assert slope(LARGE, published) == pytest.approx(+1, abs=0.05)
    learned = problem.losses(start) - problem.losses(problem.proxy(a))
    assert cosine(problem.score(start, w, LARGE[-1]), learned) > 0.99999


def test_at_fixed_steps_lookahead_stays_bounded_in_lambda(problem_and_a):
    problem, a = problem_and_a
    start, exact = iterate(problem), problem.exact_score(a)
    lookahead, published = [], []
    for lambda_ in (1e3, 1e6):
        w, ahead = problem.step_away(a, start, lambda_, steps=20, rate=1.0)
        lookahead.append(relative_error(problem.score(ahead, w, lambda_), exact))
        published.append(relative_error(problem.score(start, w, lambda_), exact))
    assert lookahead[1] == pytest.approx(lookahead[0], rel=0.05)
    assert lookahead[1] < 0.6
    assert published[1] / published[0] == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_at_the_minimum_the_controls_agree_and_steps_are_terms_of_the_neumann_series(
    problem_and_a, steps
):
    problem, a = problem_and_a
    optimum, lambda_ = problem.proxy(a), 1e6
    w, ahead = problem.step_away(a, optimum, lambda_, steps=steps, rate=1.0)
    score = problem.score(optimum, w, lambda_)
    np.testing.assert_allclose(ahead, optimum, atol=1e-12)
    np.testing.assert_allclose(problem.score(ahead, w, lambda_), score, rtol=1e-4, atol=1e-4)
    contraction = np.eye(len(optimum)) - problem.hessian(a)
    inverse = sum(np.linalg.matrix_power(contraction, power) for power in range(steps))
    series = problem.gradients(optimum) @ inverse @ problem.target_gradient(optimum)
    assert relative_error(score, series) < 1e-3


def test_without_the_pool_term_few_steps_score_by_gradient_alignment(problem_and_a):
    problem, a = problem_and_a
    start, steps = iterate(problem), 5
    aligned = problem.gradients(start) @ problem.target_gradient(start)
    rates = np.geomspace(1e-4, 1e-2, 5)
    errors = []
    for rate in rates:
        w, ahead = problem.step_away(a, start, 0.0, steps=steps, rate=rate)
        np.testing.assert_array_equal(ahead, start)
        errors.append(relative_error(problem.score(ahead, w, 0.0) / (steps * rate), aligned))
    assert slope(rates, errors) == pytest.approx(1, abs=0.03)
    assert errors[0] < 1e-3


@pytest.mark.parametrize(
    ("lambda_", "steps", "lookahead_wins"),
    [(0.1, 3, None), (0.1, 30, True), (1.0, 3, True), (1.0, 30, True), (10.0, 30, True)],
)
def test_rank_correlation_with_the_exact_direction(lambda_, steps, lookahead_wins):
    """Means over 40 problems, u a random point; without many steps or lambda neither is better."""
    found = []
    for seed in range(40):
        problem, a = make_bilevel(seed)
        start, exact = iterate(problem, seed, steps=0), problem.exact_score(a)
        w, ahead = problem.step_away(a, start, lambda_, steps=steps, rate=1.0)
        scores = problem.score(ahead, w, lambda_), problem.score(start, w, lambda_)
        found.append([spearmanr(score, exact).statistic for score in scores])
    lookahead, published = np.mean(found, axis=0)
    if lookahead_wins:
        assert lookahead > 0.7
        assert lookahead > published + 0.2
    else:
        assert abs(lookahead - published) < 0.2
