"""Randomness as a pure function of (seed, purpose, document id).

Every random choice about documents (order, partition, ties, mixtures, repetition) is read from
here, so it does not depend on the order in which documents come, on the number of workers or on
what was drawn before. The generator is counter based: the finalizer of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014) applied to the id, keyed by a digest of the seed and the purpose.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SMALLEST_UNIFORM = 2.0**-54
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def make_key(seed: int, *purpose: str | int) -> int:
    """A 64-bit key for one use of randomness, such as `make_key(seed, "order", pass_index)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def random_uint64(key: int, ids: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """One 64-bit random integer per id; equal (key, id) give equal values."""
    mixed = np.asarray(ids, dtype=np.int64).view(np.uint64) * _WEYL + np.uint64(key)
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
        mixed = (mixed ^ (mixed >> np.uint64(31))) + np.uint64(key)
    return mixed


def uniform(key: int, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per id, with 53 random bits."""
    return (random_uint64(key, ids) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents whose noise is below a cut-off: a random sample that keeps no list of ids.

    Attributes:
        key: which noise (`make_key`).
        cutoff: documents with noise in [0, cutoff) belong to it.
    """

    key: int
    cutoff: float

    def holds(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the documents belong to the sample, bool [N]."""
        return uniform(self.key, ids) < self.cutoff


def gumbel(key: int, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of each id, finite: the top k of logits plus it are a sample without
    replacement in proportion to their exponentials.
    """
    drawn = np.maximum(uniform(key, ids), _SMALLEST_UNIFORM)
    noise: npt.NDArray[np.float64] = -np.log(-np.log(drawn))
    return noise


def shuffled_order(key: int, ids: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Positions that put the ids into a random order; ties cannot change with the input order."""
    plain = np.asarray(ids, dtype=np.int64)
    return np.lexsort((plain, random_uint64(key, plain)))
