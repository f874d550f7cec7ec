"""Hashed n-grams: what is counted, and that nothing but the text decides it."""

import hashlib
import itertools
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.select import ngrams as module
from curate.select.ngrams import NgramHasher, concatenate_ngrams

MANY = 2**31 - 1
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=0x2FF), max_size=30),
        st.lists(
            st.sampled_from(
                ["a", "b", "It's", "ünï", "!?", "x_1", "日本", "かな。", "हिन्दी", "e\u0301"]
            ),
            max_size=12,
        ).map(" ".join),
    ),
    max_size=6,
)


def is_word(character):
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def is_alone(character):
    """Of a script without spaces, by the names of its characters."""
    name = unicodedata.name(character, "")
    scripts = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
    return name.startswith(scripts)


def plain_words(text):
    """Runs of word characters and runs of anything else but space, by a loop over characters."""
    words, last = [], None
    for character in text.lower():
        kind = None if character.isspace() else is_word(character)
        if is_alone(character):
            words.append(character)
            last = None
            continue
        if kind is not None and kind == last:
            words[-1] += character
        elif kind is not None:
            words.append(character)
        last = kind
    return words


def buckets_of(ngrams):
    return [part.tolist() for part in np.split(ngrams.buckets, ngrams.offsets[1:-1])]


def test_words_and_pairs_of_neighbours_are_counted():
    found = NgramHasher(MANY)(["The cat: the CAT!", "cat the", "", " \n", "mat"])
    assert found.lengths.tolist() == [11, 3, 0, 0, 1]
    first, second, *_ = buckets_of(found)
    the, the_cat_mark, cat, _, colon = first[0], first[1], first[2], first[3], first[4]
    assert first[6] == the and first[8] == cat and first[10] != colon  # in lower case
    assert second == [cat, second[1], the]
    assert first[7] != second[1], "a pair has an order"
    assert first[7] == the_cat_mark


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("日本語 text", ["日", "本", "語", "text"]),
        ("カナ2つ。", ["カ", "ナ", "2", "つ", "。"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("\U00020000\U00020001", ["\U00020000", "\U00020001"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("e\u0301te\u0301!", ["e\u0301te\u0301", "!"]),
        ("한국어 문장", ["한국어", "문장"]),
    ],
)
def test_words_of_scripts_without_spaces_are_characters(text, words):
    found = NgramHasher(MANY)([text]).buckets[::2].tolist()
    assert found == [int(NgramHasher(MANY)([word]).buckets[0]) for word in words]
    assert plain_words(text) == words


def test_a_bucket_is_a_digest_of_the_word():
    digest = hashlib.blake2b("naïve".encode(), digest_size=8).digest()
    found = NgramHasher(10_000)(["Naïve"]).buckets
    assert found.tolist() == [int.from_bytes(digest, "little") % 10_000]


def test_what_is_remembered_is_of_the_whole_word():
    hasher = NgramHasher(MANY)
    hasher(["category catalogue", "dog"])
    assert hasher(["cat"]).buckets.tolist() == NgramHasher(MANY)(["cat"]).buckets.tolist()


@given(TEXTS)
def test_as_many_features_as_the_plain_words_have(texts):
    found = NgramHasher(MANY)(texts)
    words = [plain_words(text) for text in texts]
    assert found.lengths.tolist() == [max(0, 2 * len(one) - 1) for one in words]
    names: dict[object, int] = {}
    for one, buckets in zip(words, buckets_of(found) if texts else [], strict=True):
        grams = [gram for pair in itertools.pairwise(one) for gram in (pair[0], pair)] + one[-1:]
        for gram, bucket in zip(grams, buckets, strict=True):
            assert names.setdefault(gram, bucket) == bucket
    assert len(set(names.values())) == len(names), "no two n-grams fall together in 2^31 buckets"


@given(TEXTS, st.integers(0, 6))
def test_block_boundaries_change_nothing(texts, cut):
    hasher = NgramHasher(50)
    whole = hasher(texts)
    parts = concatenate_ngrams([hasher(texts[:cut]), hasher(texts[cut:])])
    assert parts.buckets.tolist() == whole.buckets.tolist()
    assert parts.offsets.tolist() == whole.offsets.tolist()
    backwards = whole.take(np.arange(len(texts))[::-1])
    assert backwards.buckets.tolist() == hasher(texts[::-1]).buckets.tolist()
    assert whole.buckets.dtype == np.int32


@given(TEXTS)
def test_counts_sums_and_means(texts):
    num_buckets = 7
    found = NgramHasher(num_buckets)(texts)
    values = np.random.default_rng(0).normal(size=num_buckets)
    parts = buckets_of(found) if texts else []
    tally = Counter(found.buckets.tolist())
    assert found.counts(num_buckets).tolist() == [tally[bucket] for bucket in range(num_buckets)]
    sums = [sum(values[bucket] for bucket in part) for part in parts]
    np.testing.assert_allclose(found.sums(values), sums, atol=1e-12)
    means = [total / len(part) if part else 0 for total, part in zip(sums, parts, strict=True)]
    np.testing.assert_allclose(found.means(values), means, atol=1e-12)


def test_forgetting_words_changes_no_bucket(monkeypatch):
    texts = [f"word{number} {'long' * 40}{number} word{number // 2}" for number in range(50)]
    expected = NgramHasher(1000)(texts).buckets.tolist()
    monkeypatch.setattr(module, "_REMEMBERED_WORDS", 8)
    hasher = NgramHasher(1000)
    assert hasher(texts).buckets.tolist() == expected
    assert len(hasher._hashes) <= 8


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_buckets_are_the_same_in_every_process(hash_seed):
    code = (
        "from curate.select.ngrams import NgramHasher;"
        "print(NgramHasher(10000)(['to be or not', 'to be']).buckets.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(
        NgramHasher(10000)(["to be or not", "to be"]).buckets.tolist()
    )


def test_buckets_are_spread_evenly():
    found = NgramHasher(100)([f"w{number} x{number * 7}" for number in range(10_000)])
    for offset in (0, 1, 2):
        counts = np.bincount(found.buckets[offset::3], minlength=100)
        assert np.square(counts - 100).sum() / 100 < 160, "chi square of 99 degrees of freedom"
