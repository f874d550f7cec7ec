"""A bi-level problem with closed forms for everything: quadratic losses in a few dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.score.excess import excess_loss, penalized_score

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bilevel:
    """N units of n_i tokens with losses l_i = (x - c_i)' A_i (x - c_i) / 2, and such an L_val.

    Attributes:
        curvatures: A_i, positive definite, [N, D, D].
        centers: c_i, [N, D].
        tokens: n_i, [N].
        target_curvature: of L_val, [D, D].
        target_center: of L_val, [D].
    """

    curvatures: Array
    centers: Array
    tokens: Array
    target_curvature: Array
    target_center: Array

    def losses(self, x: Array) -> Array:
        """l_i(x), [N]."""
        away = x - self.centers
        return 0.5 * np.einsum("nd,nde,ne->n", away, self.curvatures, away)

    def gradients(self, x: Array) -> Array:
        """Gradient of each l_i, [N, D]."""
        return np.einsum("nde,ne->nd", self.curvatures, x - self.centers)

    def target_loss(self, x: Array) -> float:
        """L_val(x)."""
        away = x - self.target_center
        return float(0.5 * away @ self.target_curvature @ away)

    def target_gradient(self, x: Array) -> Array:
        """Gradient of L_val, [D]."""
        return self.target_curvature @ (x - self.target_center)

    def shares(self, a: Array) -> Array:
        """a_i n_i / sum a_j n_j, [N]."""
        return a * self.tokens / (a @ self.tokens)

    def train_loss(self, a: Array, x: Array) -> float:
        """L_train(a, x): loss per selected token."""
        return float(self.shares(a) @ self.losses(x))

    def train_gradient(self, a: Array, x: Array) -> Array:
        """Gradient of L_train(a, x) in x, [D]."""
        return self.shares(a) @ self.gradients(x)

    def hessian(self, a: Array) -> Array:
        """Of L_train(a, .), [D, D]; the same everywhere."""
        return np.einsum("n,nde->de", self.shares(a), self.curvatures)

    def proxy(self, a: Array) -> Array:
        """u*(a), the minimizer of L_train(a, .), [D]."""
        pulled = np.einsum("n,nde,ne->d", self.shares(a), self.curvatures, self.centers)
        return np.linalg.solve(self.hessian(a), pulled)

    def reference(self, a: Array, lambda_: float) -> Array:
        """w, the minimizer of L_val + lambda L_train(a, .), [D]."""
        pulled = np.einsum("n,nde,ne->d", self.shares(a), self.curvatures, self.centers)
        return np.linalg.solve(
            self.target_curvature + lambda_ * self.hessian(a),
            self.target_curvature @ self.target_center + lambda_ * pulled,
        )

    def penalized(self, a: Array, lambda_: float) -> float:
        """P(a): L_val(w) + lambda [L_train(a, w) - L_train(a, u*)] at its own w and u*."""
        u, w = self.proxy(a), self.reference(a, lambda_)
        return self.target_loss(w) + lambda_ * (self.train_loss(a, w) - self.train_loss(a, u))

    def score(self, control: Array, reference: Array, lambda_: float) -> Array:
        """s_i as the tool computes it, [N]; higher means keep."""
        return penalized_score(excess_loss(self.losses(control), self.losses(reference)), lambda_)

    def exact_score(self, a: Array) -> Array:
        """What s_i should be: -dL_val(u*(a))/da_i x sum a_j n_j / n_i, [N].

        Implicit differentiation of grad L_train(a, u*) = 0 in a_i. The normalization adds
        -n_i / sum a_j n_j x grad L_train(a, u*), which is zero, so that it drops out.
        """
        u = self.proxy(a)
        inverse = np.linalg.solve(self.hessian(a), self.target_gradient(u))
        return self.gradients(u) @ inverse

    def step_away(
        self, a: Array, start: Array, lambda_: float, *, steps: int, rate: float
    ) -> tuple[Array, Array]:
        """w and u+ after K gradient steps from one start, of size rate / (1 + lambda).

        w descends on L_val + lambda L_train(a, .), u+ on lambda L_train(a, .) alone.
        """
        w, ahead, size = start, start, rate / (1 + lambda_)
        for _ in range(steps):
            w = w - size * (self.target_gradient(w) + lambda_ * self.train_gradient(a, w))
            ahead = ahead - size * lambda_ * self.train_gradient(a, ahead)
        return w, ahead


def make_bilevel(
    seed: int, *, units: int = 12, dimensions: int = 4, condition: float = 50.0
) -> tuple[Bilevel, Array]:
    """A random problem and an interior a.

    Curvatures share their axes up to a small turn, as losses of one model do, so that the mean of
    them stays ill-conditioned and the Hessian matters.
    """
    random = np.random.default_rng(seed)
    axes = random.normal(size=(dimensions, dimensions))

    def curvature() -> Array:
        turned, _ = np.linalg.qr(axes + 0.1 * random.normal(size=axes.shape))
        sizes = np.geomspace(1 / condition, 1, dimensions) * random.uniform(0.5, 1, dimensions)
        return (turned * sizes) @ turned.T

    problem = Bilevel(
        np.stack([curvature() for _ in range(units)]),
        random.normal(size=(units, dimensions)),
        random.integers(5, 50, units).astype(np.float64),
        curvature(),
        random.normal(size=dimensions) + 1.0,
    )
    return problem, random.uniform(0.1, 0.9, units)
