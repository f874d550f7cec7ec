"""The n-grams of tokenized documents: decoded and counted here, or in processes beside the models.

What is to be known of the n-grams is worked out where they are counted, so that little comes back.
Whatever no process answers is counted here, with the same result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from curate.clock import COUNT, doing
from curate.read.documents import Documents
from curate.select.ngrams import NgramHasher, Ngrams, concatenate_ngrams
from curate.select.processes import CountingProcesses

T = TypeVar("T")


class NgramCounter:
    """Counts the n-grams of documents in `num_buckets` buckets."""

    def __init__(
        self,
        decode: Callable[[Documents], list[str]],
        num_buckets: int,
        processes: CountingProcesses | None = None,
    ) -> None:
        """Count in `processes`; here, by the texts that `decode` gives, where there are none."""
        self._decode, self._num_buckets, self._processes = decode, num_buckets, processes
        self._hasher = NgramHasher(num_buckets)

    def __call__(self, documents: Documents) -> Ngrams:
        """The n-grams of each document."""
        return concatenate_ngrams(self.begin(documents, _whole)())

    @doing(COUNT)
    def begin(self, documents: Documents, work: Callable[[Ngrams], T]) -> Callable[[], list[T]]:
        """Have documents counted in the background, where there are processes for it.

        Args:
            documents: the documents.
            work: what is made of n-grams, the same object for many calls; it must be picklable,
                and its result not None.

        Returns:
            What waits for what `work` makes of consecutive parts of the documents, one part or
            more. The next `begin` forgets it.
        """
        processes = self._processes.running() if self._processes else []
        pieces = split(documents, max(1, len(processes)))
        for process, piece in zip(processes, pieces, strict=False):
            process.ask(piece, self._num_buckets, work)

        @doing(COUNT)
        def wait() -> list[T]:
            answers: list[T | None] = [process.answer() for process in processes] or [None]
            return [
                work(self._hasher(self._decode(piece))) if answer is None else answer
                for answer, piece in zip(answers, pieces, strict=True)
            ]

        return wait


def _whole(ngrams: Ngrams) -> Ngrams:
    return ngrams


def split(documents: Documents, parts: int) -> list[Documents]:
    """Consecutive documents in `parts` of about as many tokens each; their tokens are not copied.

    A part may be empty.
    """
    shares = documents.num_tokens * np.arange(1, parts) / parts
    inner = np.searchsorted(documents.offsets[1:], shares)
    ends = [0, *inner.tolist(), len(documents)]
    return [documents.slice(first, last) for first, last in itertools.pairwise(ends)]
