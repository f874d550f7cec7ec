import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import PREFIX, make_documents, tokens_of

from curate.read.windows import (
    SAMPLE_PIECES,
    make_batches,
    pack_batches,
    rolling_windows,
    sampled_windows,
)

LENGTHS = st.lists(st.integers(0, 60), max_size=12)
SIZES = st.integers(2, 17).flatmap(
    lambda window: st.tuples(st.just(window), st.integers(1, window - 1))
)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, []),
        (1, [(0, 0, 1)]),
        (7, [(0, 0, 7)]),
        (8, [(0, 0, 8)]),
        (9, [(0, 0, 8), (5, 8, 9)]),
        (13, [(0, 0, 8), (5, 8, 13)]),
        (14, [(0, 0, 8), (5, 8, 13), (10, 13, 14)]),
        (18, [(0, 0, 8), (5, 8, 13), (10, 13, 18)]),
    ],
)
def test_windows_of_one_document(length, expected):
    windows = rolling_windows(np.array([length]), window=8, overlap=3)
    found = zip(windows.start, windows.scored, windows.stop, strict=True)
    assert [tuple(map(int, one)) for one in found] == expected
    assert windows.document.tolist() == [0] * len(expected)


def test_overlap_of_one_less_than_the_window_moves_by_one():
    windows = rolling_windows(np.array([4]), window=2, overlap=1)
    assert windows.start.tolist() == [0, 1, 2]
    assert windows.scored.tolist() == [0, 2, 3]
    assert windows.stop.tolist() == [2, 3, 4]


@given(LENGTHS, SIZES)
def test_windows_partition_every_document(lengths, sizes):
    window, overlap = sizes
    windows = rolling_windows(np.array(lengths, dtype=np.int64), window, overlap)
    assert windows.document.tolist() == sorted(windows.document.tolist())
    for document, length in enumerate(lengths):
        mine = windows.take(np.flatnonzero(windows.document == document))
        covered = [
            position
            for first, last in zip(mine.scored, mine.stop, strict=True)
            for position in range(first, last)
        ]
        assert covered == list(range(length))
        assert (mine.lengths <= window).all()
        assert (mine.scored[1:] - mine.start[1:] == overlap).all()
        assert (mine.scored < mine.stop).all()
        assert (mine.lengths[:-1] == window).all()


def test_a_long_document_is_sampled_from_its_beginning_to_its_end():
    windows = sampled_windows(np.array([5, 100, 8]), window=16, overlap=3, most=8)
    found = zip(windows.document, windows.start, windows.scored, windows.stop, strict=True)
    assert [tuple(map(int, one)) for one in found] == [
        (0, 0, 0, 5),
        (1, 0, 0, 2),
        (1, 32, 32, 34),
        (1, 65, 65, 67),
        (1, 98, 98, 100),
        (2, 0, 0, 8),
    ]


@given(LENGTHS, SIZES, st.integers(1, 70))
def test_a_sample_reads_short_documents_whole_and_no_token_twice(lengths, sizes, most):
    window, overlap = sizes
    lengths = np.array(lengths, dtype=np.int64)
    sampled = sampled_windows(lengths, window, overlap, most)
    whole = rolling_windows(lengths, window, overlap)
    assert sampled.document.tolist() == sorted(sampled.document.tolist())
    assert (sampled.lengths <= window).all()
    for document, length in enumerate(lengths):
        mine = sampled.take(np.flatnonzero(sampled.document == document))
        if length <= most:
            same = whole.take(np.flatnonzero(whole.document == document))
            assert mine.start.tolist() == same.start.tolist()
            assert mine.scored.tolist() == same.scored.tolist()
            assert mine.stop.tolist() == same.stop.tolist()
            continue
        read = np.concatenate(
            [np.arange(a, b) for a, b in zip(mine.scored, mine.stop, strict=True)]
        )
        assert len(set(read.tolist())) == len(read)
        assert most - max(SAMPLE_PIECES, min(most, window)) < len(read) <= most
        assert read.min() == 0
        assert len(mine) == 1 or read.max() == length - 1


@given(LENGTHS, SIZES, st.integers(1, 400), st.sampled_from([1, 4, 32]))
def test_every_token_is_a_label_once_and_its_input_is_the_token_before(
    lengths, sizes, microbatch_tokens, multiple
):
    window, overlap = sizes
    # Token ids are unique in the whole corpus, so that each label names its own place.
    documents = make_documents(lengths)
    documents.input_ids[:] = PREFIX + 1 + np.arange(documents.num_tokens)
    windows = rolling_windows(documents.lengths, window, overlap)
    batches = list(
        make_batches(
            documents,
            windows,
            prefix_id=PREFIX,
            microbatch_tokens=microbatch_tokens,
            multiple=multiple,
        )
    )
    before = {
        token: [PREFIX, *text][place]
        for text in tokens_of(documents)
        for place, token in enumerate(text)
    }
    labels = []
    for batch in batches:
        assert batch.inputs.shape == batch.labels.shape
        assert batch.inputs.shape[1] < window + multiple
        assert len(batch.inputs) == 1 or batch.inputs.size <= microbatch_tokens
        rows = (batch.labels != -100).sum(axis=1)
        assert batch.counts.tolist() == rows[: len(batch.windows)].tolist()
        assert not rows[len(batch.windows) :].any()
        for row, column in zip(*np.nonzero(batch.labels != -100), strict=True):
            label = int(batch.labels[row, column])
            labels.append(label)
            assert batch.inputs[row, column] == before[label]
            # What the model sees before the label is the document itself, without a gap.
            start = int(windows.start[batch.windows[row]])
            text = [PREFIX, *tokens_of(documents)[windows.document[batch.windows[row]]]]
            assert batch.inputs[row, : column + 1].tolist() == text[start : start + column + 1]
    assert sorted(labels) == sorted(before)
    read = [int(window) for batch in batches for window in batch.windows]
    assert sorted(read) == list(range(len(windows)))


@given(LENGTHS, SIZES, st.integers(1, 400), st.booleans())
def test_packed_every_token_is_a_label_once_behind_its_own_document(
    lengths, sizes, microbatch_tokens, some
):
    window, overlap = sizes
    documents = make_documents(lengths)
    documents.input_ids[:] = PREFIX + 1 + np.arange(documents.num_tokens)
    wanted = documents.input_ids
    if some:
        documents = documents.masked(np.arange(documents.num_tokens) % 3 > 0)
        wanted = wanted[documents.counted]
    windows = rolling_windows(documents.lengths, window, overlap)
    batches = list(
        pack_batches(documents, windows, prefix_id=PREFIX, microbatch_tokens=microbatch_tokens)
    )
    labels = []
    for batch in batches:
        assert batch.inputs.shape == batch.labels.shape == (1, batch.starts[-1])
        assert len(batch.windows) == 1 or batch.inputs.size <= microbatch_tokens
        assert len(batch.counts) == len(batch.windows)
        window_of = np.repeat(np.arange(len(batch.windows)), batch.counts)
        for cell, place in zip(batch.counted, window_of, strict=True):
            number = batch.windows[place]
            text = [PREFIX, *tokens_of(documents)[windows.document[number]]]
            before = batch.inputs[0, batch.starts[place] : cell + 1].tolist()
            start = int(windows.start[number])
            assert before == text[start : start + len(before)]
            assert batch.labels[0, cell] == text[start + len(before)]
            labels.append(batch.labels[0, cell])
    assert labels == wanted.tolist()
    read = [int(window) for batch in batches for window in batch.windows]
    assert read == list(range(len(windows)))


def test_packed_batches_are_about_as_large_as_each_other():
    documents = make_documents([30] * 100)
    windows = rolling_windows(documents.lengths, 32, 4)
    batches = list(pack_batches(documents, windows, prefix_id=PREFIX, microbatch_tokens=1400))
    assert [batch.inputs.size for batch in batches] == [1020, 1020, 960]


def test_batches_pack_like_lengths_and_waste_little():
    documents = make_documents([3, 30] * 8)
    windows = rolling_windows(documents.lengths, 32, 4)
    batches = list(
        make_batches(documents, windows, prefix_id=PREFIX, microbatch_tokens=128, multiple=4)
    )
    assert [batch.inputs.shape for batch in batches] == [(4, 32), (4, 32), (8, 4)]


@pytest.mark.parametrize(
    ("lengths", "shapes"),
    [
        ([230] * 5, [(6, 256)]),
        ([230] * 4 + [40, 20], [(4, 256), (8, 64)]),
        ([230, 130], [(2, 256)]),
        ([60, 20], [(8, 64)]),
        ([20] * 33, [(40, 64)]),
    ],
    ids=["few rows", "short ones apart", "like lengths", "too little to spare", "narrow"],
)
def test_a_small_batch_is_padded_little(lengths, shapes):
    documents = make_documents(lengths)
    windows = rolling_windows(documents.lengths, 256, 32)
    batches = list(make_batches(documents, windows, prefix_id=PREFIX, microbatch_tokens=4096))
    assert [batch.inputs.shape for batch in batches] == shapes


def test_no_documents_and_empty_documents_give_no_batches():
    for lengths in ([], [0], [0, 0]):
        documents = make_documents(lengths)
        windows = rolling_windows(documents.lengths, 8, 3)
        assert len(windows) == 0
        assert list(make_batches(documents, windows, prefix_id=0, microbatch_tokens=8)) == []
        assert list(pack_batches(documents, windows, prefix_id=0, microbatch_tokens=8)) == []
