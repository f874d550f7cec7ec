"""The linear minimization oracle over the capped simplex, in tokens.

C = {a : 0 <= a_i <= 1, sum a_i n_i = budget}. A linear objective sum a_i n_i s_i is maximal at the
vertex that takes units by score, highest first, until the token budget is spent. A whole document
is kept or not, so the last one is taken when that brings the kept tokens nearer to the budget.
At token granularity a unit is one token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from curate.noise import random_uint64
from curate.read.documents import Documents


def keep_top(
    scores: npt.NDArray[np.float64],
    tokens: npt.NDArray[np.int64],
    budget: float,
    ties: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Which documents the token budget keeps, bool [N].

    Args:
        scores: higher is kept first, [N].
        tokens: tokens of each document, [N].
        budget: tokens to keep; the kept tokens differ from it by less than one document, unless
            all documents together hold fewer.
        ties: order of documents with equal scores, lowest first, [N].
    """
    order = np.lexsort((ties, -scores))
    after = np.cumsum(tokens[order])
    kept = np.zeros(len(scores), dtype=bool)
    kept[order] = 2 * after - tokens[order] <= 2 * budget
    return kept


def token_noise(key: int, documents: Documents) -> npt.NDArray[np.uint64]:
    """One random integer per token, a function of (key, document id, position), [tokens]."""
    lengths = documents.lengths
    first = np.repeat(random_uint64(key, documents.ids), lengths)
    place = np.arange(documents.num_tokens) - np.repeat(documents.offsets[:-1], lengths)
    return random_uint64(key, (first + place.astype(np.uint64)).view(np.int64))
