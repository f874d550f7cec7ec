"""Tokenized documents in memory: flat arrays, one slice per document.

The unit that moves between reading, training, scoring and selecting. Flat arrays instead of one
object per document keep a block cheap to slice, concatenate and hand to the models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

_TAKEN_AT_ONCE = 1 << 18
"""Tokens whose places are held while documents are copied, at 24 bytes each."""


@dataclass(frozen=True, slots=True)
class Documents:
    """N tokenized documents.

    Attributes:
        ids: document ids, int64 [N].
        bytes: UTF-8 bytes of each text, int64 [N].
        offsets: token offsets, int64 [N + 1]; document i is input_ids[offsets[i]:offsets[i + 1]].
        input_ids: all token ids, integers [offsets[-1]].
        counted: which tokens count as training labels, bool [offsets[-1]]; None means all.
    """

    ids: Int64
    bytes: Int64
    offsets: Int64
    input_ids: npt.NDArray[np.integer]
    counted: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int64:
        """Tokens of each document, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return int(self.offsets[-1])

    @property
    def num_counted(self) -> int:
        """Tokens of all documents that count as training labels."""
        return self.num_tokens if self.counted is None else int(self.counted.sum())

    def take(self, positions: npt.NDArray[np.integer]) -> Documents:
        """The documents at `positions`, in that order."""
        lengths = self.lengths[positions]
        offsets = offsets_from_lengths(lengths)
        moved = self.offsets[positions] - offsets[:-1]
        input_ids = np.empty(offsets[-1], dtype=self.input_ids.dtype)
        counted = None if self.counted is None else np.empty(offsets[-1], dtype=bool)
        last = 0
        while last < len(lengths):
            first, full = last, offsets[last] + _TAKEN_AT_ONCE
            last = max(first + 1, int(np.searchsorted(offsets, full, side="right")) - 1)
            to = slice(offsets[first], offsets[last])
            places = np.arange(to.start, to.stop) + np.repeat(
                moved[first:last], lengths[first:last]
            )
            input_ids[to] = self.input_ids[places]
            if self.counted is not None and counted is not None:
                counted[to] = self.counted[places]
        return Documents(self.ids[positions], self.bytes[positions], offsets, input_ids, counted)

    def slice(self, first: int, last: int) -> Documents:
        """The documents from `first` to before `last`; no token is copied."""
        begin, end = self.offsets[first], self.offsets[last]
        return Documents(
            self.ids[first:last],
            self.bytes[first:last],
            self.offsets[first : last + 1] - begin,
            self.input_ids[begin:end],
            None if self.counted is None else self.counted[begin:end],
        )

    def masked(self, counted: npt.NDArray[np.bool_]) -> Documents:
        """The same documents with other tokens as training labels, bool [offsets[-1]]."""
        return dataclasses.replace(self, counted=counted)


def offsets_from_lengths(lengths: npt.NDArray[np.integer]) -> Int64:
    """Running offsets of consecutive slices, int64 [N + 1], starting at 0."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def from_tokens(
    ids: Sequence[int] | Int64,
    sizes: Sequence[int] | Int64,
    tokens: Sequence[npt.NDArray[np.integer]],
) -> Documents:
    """N documents from their ids, UTF-8 bytes and arrays of token ids."""
    lengths = np.array([len(one) for one in tokens], dtype=np.int64)
    return Documents(
        np.asarray(ids, dtype=np.int64),
        np.asarray(sizes, dtype=np.int64),
        offsets_from_lengths(lengths),
        np.concatenate([np.zeros(0, dtype=np.uint16), *tokens]),
    )


def concatenate(parts: Sequence[Documents]) -> Documents:
    """All documents of `parts`, one after another."""
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return Documents(empty, empty, np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.uint16))
    lengths = np.concatenate([part.lengths for part in parts])
    return Documents(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.bytes for part in parts]),
        offsets_from_lengths(lengths),
        np.concatenate([part.input_ids for part in parts]),
        _concatenate_counted(parts),
    )


def _concatenate_counted(parts: Sequence[Documents]) -> npt.NDArray[np.bool_] | None:
    if all(part.counted is None for part in parts):
        return None
    every = [np.ones(p.num_tokens, dtype=bool) if p.counted is None else p.counted for p in parts]
    return np.concatenate(every)


def cut(documents: Documents, piece_tokens: int) -> tuple[Int64, Documents]:
    """Cut documents into consecutive pieces of at most `piece_tokens` tokens, copying no token.

    Returns:
        owners: position of the document that each piece belongs to, int64 [P].
        pieces: the pieces, with their documents' ids and bytes in proportion to their tokens.
    """
    lengths = documents.lengths
    counts = -(-lengths // piece_tokens)
    owners = np.repeat(np.arange(len(documents)), counts)
    number = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = documents.offsets[owners] + number * piece_tokens
    sizes, whole = np.asarray(documents.bytes)[owners], np.maximum(lengths[owners], 1)
    before = sizes * (number * piece_tokens) // whole
    after = sizes * np.minimum((number + 1) * piece_tokens, lengths[owners]) // whole
    pieces = Documents(
        np.asarray(documents.ids)[owners],
        after - before,
        np.append(starts, documents.offsets[-1]),
        documents.input_ids,
        documents.counted,
    )
    return owners, pieces
