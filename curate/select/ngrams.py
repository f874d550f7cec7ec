"""Hashed word n-grams: what the methods without a language model see of a document.

Features are those of DSIR (arXiv 2302.03169, section 3): the text in lower case is cut into runs of
word characters and runs of punctuation; every word and every pair of neighbouring words falls into
one of B buckets. In scripts without spaces between words (Chinese, Japanese, Thai, ...) a character
is a word, and a pair a character bigram; vowel signs and accents that are characters of their own
belong to their word. A word's hash is a digest of its UTF-8 bytes, so buckets are the same in every
process and on every machine. Digests are slow, so those of the most recent words are remembered; a
pair's hash is mixed from its two words' hashes for a whole block at once. Buckets are shared: with
B far below the number of distinct n-grams, unrelated ones fall together, which costs sharpness and
buys a state of fixed size. Memory is that of one block's words.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.clock import COUNT, doing
from curate.read.documents import Int64, offsets_from_lengths

Float64 = npt.NDArray[np.float64]

_ALONE = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "]"
)
"""Characters of scripts without spaces between words."""
_MARKS = "".join(c for c in map(chr, range(0x300, 0xFB20)) if unicodedata.category(c)[0] == "M")
"""Vowel signs and accents, which are no word characters to a regular expression."""
_WORDS = re.compile(rf"[\w{_MARKS}]+|[^\w\s{_MARKS}]+")
_REMEMBERED_WORDS = 50_000
_LONGEST_REMEMBERED = 64
_LEFT = np.uint64(0x9E3779B97F4A7C15)
_RIGHT = np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The n-grams of N documents, as buckets.

    Attributes:
        buckets: bucket of each n-gram, document after document, int32 [offsets[-1]].
        offsets: document i has buckets[offsets[i]:offsets[i + 1]], int64 [N + 1].
    """

    buckets: npt.NDArray[np.int32]
    offsets: Int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64:
        """N-grams of each document, int64 [N]; 2 x words - 1, or 0."""
        return np.diff(self.offsets)

    def take(self, positions: npt.NDArray[np.integer]) -> Ngrams:
        """The n-grams of the documents at `positions`, in that order."""
        lengths = self.lengths[positions]
        offsets = offsets_from_lengths(lengths)
        starts = np.repeat(self.offsets[positions] - offsets[:-1], lengths)
        return Ngrams(self.buckets[starts + np.arange(offsets[-1])], offsets)

    def counts(self, num_buckets: int) -> Int64:
        """How often each bucket occurs in all documents together, int64 [num_buckets]."""
        return np.bincount(self.buckets, minlength=num_buckets)

    def sums(self, values: Float64) -> Float64:
        """Sum over each document's n-grams of their bucket's value, float64 [N].

        Args:
            values: one value a bucket, float64 [B].

        A document's values are added one after another, so that the sum does not depend on which
        documents stand beside it.
        """
        owners = np.repeat(np.arange(len(self)), self.lengths)
        sums = np.bincount(owners, weights=values[self.buckets], minlength=len(self))
        return sums.astype(np.float64)  # of nothing it would be integers

    def means(self, values: Float64) -> Float64:
        """`sums` divided by the number of n-grams, float64 [N]; 0 for a document without any."""
        return self.sums(values) / np.maximum(self.lengths, 1)


def concatenate_ngrams(parts: Sequence[Ngrams]) -> Ngrams:
    """The documents of all parts, one after another; at least one part."""
    lengths = np.concatenate([part.lengths for part in parts])
    buckets = np.concatenate([part.buckets for part in parts])
    return Ngrams(buckets, offsets_from_lengths(lengths))


class NgramHasher:
    """Texts to the buckets of their words and word pairs."""

    def __init__(self, num_buckets: int) -> None:
        """Hash into buckets 0 to `num_buckets` - 1."""
        self._num_buckets = np.uint64(num_buckets)
        self._hashes = _WordHashes()

    @doing(COUNT)
    def __call__(self, texts: Sequence[str]) -> Ngrams:
        """The n-grams of each text, in reading order: word, pair, word, ..., word."""
        hashes = array("Q")
        ends = [0]
        for text in texts:
            spaced = _ALONE.sub(r" \g<0> ", text.lower())
            hashes.extend(map(self._hashes.__getitem__, _WORDS.findall(spaced)))
            ends.append(len(hashes))
        words = np.frombuffer(hashes, dtype=np.uint64)
        word_offsets = np.array(ends, dtype=np.int64)
        both = np.empty(2 * len(words), dtype=np.uint64)
        both[0::2] = words
        both[1::2] = _pair(words, np.roll(words, -1))
        within = np.ones(len(both), dtype=bool)
        counts = np.diff(word_offsets)
        within[2 * word_offsets[1:][counts > 0] - 1] = False  # pairs across two documents
        buckets = (both[within] % self._num_buckets).astype(np.int32)
        return Ngrams(buckets, offsets_from_lengths(np.maximum(2 * counts - 1, 0)))


class _WordHashes(dict[str, int]):
    """64-bit digest of each word; forgets all when it holds too many, which changes no digest."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        if len(word) <= _LONGEST_REMEMBERED:
            if len(self) >= _REMEMBERED_WORDS:
                self.clear()
            self[word] = value
        return value


def _pair(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of each ordered pair of words."""
    mixed = first * _LEFT ^ (second + (first >> _SHIFT)) * _RIGHT
    mixed = (mixed ^ (mixed >> _SHIFT)) * _LEFT
    return mixed ^ (mixed >> _SHIFT)
