"""Flat arrays of documents: any of them in any order, whole."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_documents, tokens_of

from curate.read import documents as module
from curate.read.documents import Documents, from_tokens

LENGTHS = st.lists(st.integers(0, 9), max_size=12)


@given(lengths=LENGTHS, seed=st.integers(0, 99), at_once=st.integers(1, 20), data=st.data())
def test_documents_are_taken_in_any_order_however_many_tokens_at_once(
    lengths: list[int], seed: int, at_once: int, data: st.DataObject
) -> None:
    plain = make_documents(lengths, seed)
    flags = np.random.default_rng(seed).random(plain.num_tokens) < 0.5
    every = dataclasses.replace(plain, counted=flags)
    places = st.lists(st.integers(0, len(lengths) - 1)) if lengths else st.just([])
    order = np.array(data.draw(places), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TAKEN_AT_ONCE", at_once)
        found = every.take(order)
    assert tokens_of(found) == [tokens_of(every)[i] for i in order]
    assert found.input_ids.dtype == every.input_ids.dtype
    for ours, theirs in ((found.ids, every.ids), (found.bytes, every.bytes)):
        np.testing.assert_array_equal(ours, theirs[order])
    masks = Documents(every.ids, every.bytes, every.offsets, flags.astype(np.uint16))
    assert tokens_of(masks.take(order)) == [
        found.counted[first:last].tolist()
        for first, last in zip(found.offsets[:-1], found.offsets[1:], strict=True)
    ]


@given(lengths=LENGTHS, ends=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_a_slice_is_the_same_documents_and_copies_no_token(
    lengths: list[int], ends: tuple[int, int]
) -> None:
    plain = make_documents(lengths)
    first, last = sorted(min(end, len(lengths)) for end in ends)
    flags = np.arange(plain.num_tokens) % 3 == 0
    for every in (plain, dataclasses.replace(plain, counted=flags)):
        found, taken = every.slice(first, last), every.take(np.arange(first, last))
        for field in dataclasses.fields(Documents):
            ours, theirs = getattr(found, field.name), getattr(taken, field.name)
            np.testing.assert_array_equal(ours, theirs)
        assert not found.num_tokens or np.shares_memory(found.input_ids, every.input_ids)


@pytest.mark.parametrize("tokens", [[], [[]], [[1, 2], [], [3]]])
def test_separate_tokens_become_documents(tokens: list[list[int]]) -> None:
    arrays = [np.array(one, dtype=np.int32) for one in tokens]
    found = from_tokens(range(len(tokens)), [9] * len(tokens), arrays)
    assert tokens_of(found) == tokens
    assert found.ids.tolist() == list(range(len(tokens)))
    assert len(found.offsets) == len(tokens) + 1
