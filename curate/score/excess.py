"""The penalized excess loss: what one more token of a document is worth to the target.

BLADE equation for the outer gradient: dP/da_i is proportional to lambda n_i [l_i(w) - l_i(u)].
Descending on P raises a_i where l_i(u) - l_i(w) is large: higher score means keep.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from curate.read.documents import Documents

Float64 = npt.NDArray[np.float64]

_ROUNDING = 1e-9
"""Of the largest value: what equal values may differ by."""


def excess_loss(control_losses: Float64, reference_losses: Float64) -> Float64:
    """l_i(u) - l_i(w), nats per token, [N]; higher means keep."""
    return control_losses - reference_losses


def penalized_score(excess: Float64, lambda_: float) -> Float64:
    """s_i = lambda x excess loss, [N]; higher means keep.

    At lambda = 0 the factor is taken as 1: against the live proxy the penalized problem's direction
    is then the limit of s_i / lambda. Within one round the factor changes no order.
    """
    return excess * (lambda_ if lambda_ > 0 else 1.0)


def per_byte(excess: Float64, documents: Documents) -> Float64:
    """Excess loss in nats per byte of text, [N], from nats per token.

    Away from the target a reference loses what the proxy had learned, so least on what cannot be
    learned (minified code, tables of numbers). Such text has short tokens, and counted in bytes it
    loses as much as prose, or more (benchmarks/LOG.md).
    """
    return excess * documents.lengths / np.maximum(documents.bytes, 1)


def spread(values: Float64) -> float:
    """Standard deviation of values [N]; 1 where they are all the same but for rounding."""
    found = float(values.std())
    return found if found > _ROUNDING * float(np.abs(values).max()) else 1.0
