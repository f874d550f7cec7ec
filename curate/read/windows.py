"""Rolling windows: how a document of any length passes through a model of fixed length.

A document of n tokens is read as the sequence [prefix, t_0, ..., t_{n-1}], the prefix being the
model's document separator, so that every token, the first included, is predicted exactly once.
A window reads inputs [start, stop) of that sequence and predicts the token after each. Windows
after the first re-read `overlap` inputs as context and are scored only on what is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.clock import PACK, doing
from curate.read.documents import Documents, offsets_from_lengths

Int64 = npt.NDArray[np.int64]

SAMPLE_PIECES = 4
"""Pieces in which a long document is sampled, so that its end counts as its beginning does."""
_ROW_STEPS = 8
"""Numbers of rows that occur, at most, in batches of one width."""
_BATCH_COST = 256
"""Padded cells whose computation takes about as long as starting another batch does."""


@dataclass(frozen=True, slots=True)
class Windows:
    """M windows over N documents, in document order.

    Attributes:
        document: position of the document each window belongs to, int64 [M].
        start: first input read, int64 [M]; input 0 is the prefix.
        scored: first input whose prediction counts, int64 [M]; start <= scored < stop.
        stop: one past the last input read, int64 [M].
        window: inputs a model reads at once; no row of a batch is wider.
    """

    document: Int64
    start: Int64
    scored: Int64
    stop: Int64
    window: int

    def __len__(self) -> int:
        return len(self.document)

    @property
    def lengths(self) -> Int64:
        """Inputs read by each window, int64 [M]."""
        return self.stop - self.start

    def take(self, positions: npt.NDArray[np.integer]) -> Windows:
        """The windows at `positions`, in that order."""
        return Windows(
            self.document[positions],
            self.start[positions],
            self.scored[positions],
            self.stop[positions],
            self.window,
        )


def rolling_windows(lengths: npt.NDArray[np.integer], window: int, overlap: int) -> Windows:
    """Windows of at most `window` inputs over documents of the given token lengths.

    Args:
        lengths: tokens of each document, [N]; documents without tokens get no window.
        window: inputs a model reads at once.
        overlap: inputs of context that each later window re-reads; 1 <= overlap < window.

    Every token of every document is predicted (counted) in exactly one window.
    """
    stride = window - overlap
    rest = np.maximum(np.asarray(lengths, dtype=np.int64) - window, 0)
    counts = np.where(np.asarray(lengths) > 0, 1 + -(-rest // stride), 0).astype(np.int64)
    document = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(document)) - first) * stride
    scored = np.where(start == 0, 0, start + overlap)
    stop = np.minimum(start + window, np.asarray(lengths, dtype=np.int64)[document])
    return Windows(document, start, scored, stop, window)


def sampled_windows(
    lengths: npt.NDArray[np.integer], window: int, overlap: int, most: int
) -> Windows:
    """Windows that read at most `most` tokens of a document.

    A longer document is read in `SAMPLE_PIECES` evenly spaced pieces, the first at its beginning
    and the last at its end; each begins without context but for the token before it. A document of
    no more than `most` tokens is read whole, as by `rolling_windows`.

    Args:
        lengths: tokens of each document, [N].
        window: inputs a model reads at once.
        overlap: inputs of context that each later window of a whole document re-reads.
        most: tokens predicted of a document; a multiple of the pieces, or a little less is read.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    whole = np.flatnonzero(lengths <= most)
    rolled = rolling_windows(lengths[whole], window, overlap)
    cut = np.flatnonzero(lengths > most)
    pieces, size = sample_pieces(window, most)
    rank = np.tile(np.arange(pieces), len(cut))
    document = np.repeat(cut, pieces)
    start = rank * (lengths[document] - size) // max(1, pieces - 1)
    windows = Windows(
        np.concatenate([whole[rolled.document], document]),
        np.concatenate([rolled.start, start]),
        np.concatenate([rolled.scored, start]),
        np.concatenate([rolled.stop, start + size]),
        window,
    )
    return windows.take(np.argsort(windows.document, kind="stable"))


def sample_pieces(window: int, most: int) -> tuple[int, int]:
    """Pieces in which a document of more than `most` tokens is read, and the tokens of each."""
    size = min(window, max(1, most // SAMPLE_PIECES))
    return max(1, most // size), size


@dataclass(frozen=True, slots=True)
class Batch:
    """Some windows, in rows or packed.

    In rows, each window has one, right-padded: under causal attention no mask is needed. Packed,
    all are in one row, one after another without padding, and attention must not cross `starts`.

    Attributes:
        windows: position in its `Windows` of each window of the batch, int64 [R].
        inputs: token ids, int64 [B, L]; B >= R, rows beyond are empty. Packed, B is 1.
        labels: the token after each input, int64 [B, L]; -100 where it is none or not counted.
        starts: of a packed batch, where each window begins, and the end, int64 [R + 1].
    """

    windows: Int64
    inputs: Int64
    labels: Int64
    starts: Int64 | None = None

    @property
    def counted(self) -> Int64:
        """Where in the flat inputs the token after counts, window by window, int64 [M]."""
        return np.flatnonzero(self.labels.ravel() != -100)

    @property
    def counts(self) -> Int64:
        """Tokens that count of each window, int64 [R]."""
        counted = self.labels != -100
        found: Int64
        if self.starts is None:
            found = np.count_nonzero(counted[: len(self.windows)], axis=1)
        else:
            found = np.add.reduceat(counted[0], self.starts[:-1], dtype=np.int64)
        return found


def make_batches(
    documents: Documents,
    windows: Windows,
    *,
    prefix_id: int,
    microbatch_tokens: int,
    multiple: int = 64,
) -> Iterator[Batch]:
    """Group windows of like length into padded batches of at most `microbatch_tokens` cells.

    Rows are padded to a multiple of `multiple` inputs, and batches to a multiple of an eighth of
    the rows that they could hold, so that few distinct shapes occur: kernels are made, and a
    megabyte or so held for each, once a shape. Windows less than half as long as the longest of a
    batch go to the next one, if that spares more cells than a batch costs. Which windows share a
    batch is a matter of speed only: no number depends on it beyond rounding.
    """
    order = np.argsort(-windows.lengths, kind="stable")
    padded = np.minimum(-(-windows.lengths[order] // multiple) * multiple, windows.window)
    first = 0
    while first < len(order):
        width = int(padded[first])
        rows = max(1, microbatch_tokens // width)
        chosen = order[first : first + _rows_of_like_length(padded[first : first + rows])]
        step = -(-rows // _ROW_STEPS)
        shape = (min(rows, -(-len(chosen) // step) * step), width)
        with doing(PACK):
            batch = _fill(documents, windows, chosen, shape, prefix_id)
        yield batch
        first += len(chosen)


def pack_batches(
    documents: Documents, windows: Windows, *, prefix_id: int, microbatch_tokens: int
) -> Iterator[Batch]:
    """Put windows one after another into packed batches of at most `microbatch_tokens` inputs.

    Batches are about as large as each other. A window longer than that has a batch of its own.
    """
    if not len(windows):
        return
    ends = np.cumsum(windows.lengths)
    even = ends[-1] / -(-ends[-1] // microbatch_tokens) + windows.lengths.max()
    limit = min(microbatch_tokens, even)
    first, filled = 0, 0
    while first < len(windows):
        room = int(np.searchsorted(ends, filled + limit, side="right"))
        last = max(first + 1, room)
        with doing(PACK):
            batch = _pack(documents, windows, np.arange(first, last), prefix_id)
        yield batch
        first, filled = last, int(ends[last - 1])


def _pack(documents: Documents, windows: Windows, chosen: Int64, prefix_id: int) -> Batch:
    lengths = windows.lengths[chosen]
    starts = offsets_from_lengths(lengths)
    offset = documents.offsets[windows.document[chosen]]
    first = np.repeat(windows.start[chosen] - starts[:-1], lengths)
    place = np.arange(starts[-1]) + first  # in the document's sequence, whose input 0 is the prefix
    token = place + np.repeat(offset, lengths)
    ids = documents.input_ids
    inputs = np.where(place == 0, prefix_id, ids[np.maximum(token - 1, 0)].astype(np.int64))
    counted = place >= np.repeat(windows.scored[chosen], lengths)
    if documents.counted is not None:
        counted &= documents.counted[token]
    labels = np.where(counted, ids[token].astype(np.int64), -100)
    return Batch(chosen, inputs[None], labels[None], starts)


def _rows_of_like_length(widths: Int64) -> int:
    """How many of the falling widths share a batch."""
    longer = int(np.count_nonzero(2 * widths >= widths[0]))
    short = widths[longer:]
    spared = len(short) * int(widths[0] - short[0]) if len(short) else 0
    return longer if spared > _BATCH_COST else len(widths)


def _fill(
    documents: Documents, windows: Windows, rows: Int64, shape: tuple[int, int], prefix_id: int
) -> Batch:
    inputs = np.full(shape, prefix_id, dtype=np.int64)
    labels = np.full(shape, -100, dtype=np.int64)
    counted = documents.counted
    for line, window in enumerate(rows):
        base = documents.offsets[windows.document[window]]
        start, scored, stop = windows.start[window], windows.scored[window], windows.stop[window]
        read_from = max(start, 1)
        text = documents.input_ids[base + read_from - 1 : base + stop]
        inputs[line, read_from - start : stop - start] = text[:-1]
        predicted = text[len(text) - (stop - scored) :]
        if counted is not None:
            predicted = np.where(counted[base + scored : base + stop], predicted.astype(int), -100)
        labels[line, scored - start : stop - start] = predicted
    return Batch(np.asarray(rows, dtype=np.int64), inputs, labels)
